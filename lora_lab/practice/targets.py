"""Which layers a family of models has: read off its modules on the meta device, beside lists that people copy by hand.

    print(architecture_table())        attention, MLP and experts of each family, and what PEFT takes by default
    print(folklore_table())            hand-typed lists, and what PEFT makes of each
    verdict("Phi-3-mini", ["q_proj"])  one of them, in numbers

Nothing is downloaded. The names come from `lora_lab.budget.target_table`; whether PEFT accepts a list is asked of PEFT.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_lab.base import is_linear, weight_shape
from lora_lab.budget.architectures import config_of, decoder_layers, skeleton
from lora_lab.budget.sites import tensors
from lora_lab.budget.table import target_table
from lora_lab.targets import matches

FAMILIES = (
    "Llama-3-8B",
    "Mistral-7B",
    "Qwen3-8B",
    "Gemma-2-2B",
    "Mixtral-8x7B",
    "Falcon-7B",
    "Pythia-1.4B",
    "BLOOM-7B1",
    "Phi-2",
    "Phi-3-mini",
    "GPT-2",
)
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_PHI = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
STABLELM = "StableLM-2-1.6B"
# A table as it goes round: one line for families that "are the same". Kept with its mistakes; `verdict` finds them.
FOLKLORE: dict[str, tuple[str, tuple[str, ...]]] = {
    "Llama": ("Llama-3-8B", _LLAMA),
    "Mistral": ("Mistral-7B", _LLAMA),
    "Mixtral": ("Mixtral-8x7B", _LLAMA),
    "Falcon": ("Falcon-7B", _NEOX),
    "GPT-NeoX, Pythia": ("Pythia-1.4B", _NEOX),
    "GPT-NeoX, StableLM": (STABLELM, _NEOX),
    "BLOOM": ("BLOOM-7B1", _NEOX),
    "Phi-2": ("Phi-2", _PHI),
    "Phi-3": ("Phi-3-mini", _PHI),
    "GPT-2": ("GPT-2", ("c_attn", "c_proj", "c_fc")),
}


class Targets(NamedTuple):
    """The layers of a model by role. attention, mlp: names for target_modules. experts, router: for target_parameters.

    grouped: are there fewer key and value heads than query heads? peft_default: what PEFT takes without a word,
    () where it refuses. all_linear: the linear layers of attention and MLP, what PEFT's "all-linear" adapts without
    experts and router (it takes those too, as target_parameters) and without the output head.
    """

    model: str
    model_type: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    experts: tuple[str, ...]
    router: tuple[str, ...]
    grouped: bool
    peft_default: tuple[str, ...]
    all_linear: tuple[str, ...]


class Verdict(NamedTuple):
    """What PEFT makes of a list of names. found: name -> adapted layers in each block; missing: names that match none.

    refused: PEFT's message, "" if it accepts. share: of the numbers in the blocks' matrices, how many lie in adapted
    ones (0 to 1). unadapted: what is left out, by name. says: one sentence.
    """

    found: dict[str, int]
    missing: tuple[str, ...]
    refused: str
    share: float
    unadapted: tuple[str, ...]
    says: str


def targets_of(model: Any) -> Targets:
    """`model`: a name in `lora_lab.budget.MODELS`, a transformers config, or a model. Errors as in `config_of`."""
    name = model if isinstance(model, str) else ""
    model = _config(model)
    table, config = target_table(model), config_of(model)
    heads = config.num_attention_heads
    keys = _key_heads(config)
    linears = tuple(dict.fromkeys([*table.names("attention"), *table.names("mlp")]))
    return Targets(
        name or config.model_type,
        config.model_type,
        tuple(table.names("attention")),
        tuple(table.names("mlp")),
        tuple(table.names("experts")),
        tuple(table.names("router")),
        keys < heads,
        peft_default(config.model_type),
        linears,
    )


def peft_default(model_type: str) -> tuple[str, ...]:
    """The names that PEFT adapts when it is given none; () for a family that it has no entry for."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    return tuple(known.get(model_type, ()))


def verdict(model: Any, names: Sequence[str]) -> Verdict:
    """Give `names` to PEFT as target_modules of `model` (two of its blocks, meta device), and look at what it adapts.

    model: as in `targets_of`, or `STABLELM`. Raises ValueError for an empty list.
    """
    names = tuple(names)
    if not names:
        raise ValueError("names is empty: name at least one layer")
    small = _two_blocks(_config(model))
    blocks = len(decoder_layers(small))
    refused = ""
    try:
        adapted = _adapted(small, names)
    except ValueError as error:  # PEFT's NoMatchingPeftModuleError is one too
        adapted, refused = set(), str(error).strip().split("\n")[0]
    sizes = _sizes(small)
    found = {name: sum(matches(path, [name]) for path in adapted) // blocks for name in names}
    missing = tuple(name for name in names if not found[name])
    found = {name: number for name, number in found.items() if number}
    left = tuple(dict.fromkeys(_short(path) for path in sizes if path not in adapted))
    share = sum(sizes[path] for path in adapted if path in sizes) / sum(sizes.values())
    return Verdict(found, missing, refused, share, left, _says(found, missing, refused, share, left))


def folklore() -> dict[str, Verdict]:
    """The verdict on every line of `FOLKLORE`."""
    return {label: verdict(model, names) for label, (model, names) in FOLKLORE.items()}


def folklore_table() -> str:
    """`FOLKLORE` and what becomes of each line, as text."""
    rows = [("family", "names that match", "adapted", "what happens")]
    for label, one in folklore().items():
        total = len(FOLKLORE[label][1])
        rows.append((label, f"{total - len(one.missing)} of {total}", f"{one.share:.0%}", one.says))
    return _aligned(rows)


def architecture_table(models: Iterable[Any] = FAMILIES) -> str:
    """One line a model: attention, MLP, experts, grouped heads, PEFT's default."""
    rows = [("model", "attention", "MLP", "experts (target_parameters)", "grouped", "PEFT's default")]
    for model in models:
        t = targets_of(model)
        cells = (" ".join(names) or "-" for names in (t.attention, t.mlp, t.experts))
        rows.append((t.model, *cells, "yes" if t.grouped else "no", " ".join(t.peft_default) or "none: refuses"))
    return _aligned(rows)


def _says(found, missing, refused, share, left) -> str:
    if refused:
        return "PEFT refuses: no name matches"
    parts = [f"no {', '.join(missing)}"] if missing else []
    if left:
        parts.append(f"{', '.join(left)} stay as they are")
    if not parts:
        return "every linear layer of the blocks"
    return "; ".join(parts) + (", without a word" if missing else "")


def _config(model: Any) -> Any:
    """As `config_of`, and the one family that the folklore names and `MODELS` does not hold.

    Sizes of stabilityai/stablelm-2-1_6b's config.json.
    """
    if model != STABLELM:
        return config_of(model)
    from transformers import AutoConfig

    sizes = {"vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24}
    return AutoConfig.for_model("stablelm", **sizes, num_attention_heads=32, num_key_value_heads=32)


def _two_blocks(config: Any) -> nn.Module:
    small = copy.deepcopy(config)
    small.num_hidden_layers = 2
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:2]
    return skeleton(small)


@functools.lru_cache(maxsize=64)
def _adapted(model: nn.Module, names: tuple[str, ...]) -> frozenset[str]:
    """Paths of the layers that PEFT wraps. Raises its ValueError if there are none."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, lora_alpha=4, target_modules=list(names)))
    prefix = "base_model.model."
    return frozenset(n.removeprefix(prefix) for n, m in wrapped.named_modules() if isinstance(m, LoraLayer))


def _sizes(model: nn.Module) -> dict[str, int]:
    """Numbers in each matrix of the decoder blocks, by path: linear layers, routers and experts."""
    inside = tuple(f"{path}." for path in decoder_layers(model))
    linears = {name: m for name, m in model.named_modules() if is_linear(m) and name.startswith(inside)}
    found = {name: weight_shape(m)[0] * weight_shape(m)[1] for name, m in linears.items()}
    for path, shape in tensors(model).items():
        if path.startswith(inside):
            found[path] = int(torch.Size(shape).numel())
    return found


def _key_heads(config: Any) -> int:
    from lora_lab.budget.blocks import heads_of

    return heads_of(config).kv


def _short(path: str) -> str:
    name = path.removesuffix(".weight").split(".")
    return ".".join(name[-2:]) if name[-2] in ("experts", "mlp") and name[-1] in ("gate",) else name[-1]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
