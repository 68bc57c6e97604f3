"""Three adapters that differ in everything: layers, rank, alpha and the scale's rule; and models that carry them."""

import copy
from pathlib import Path

import peft
import torch
from adapters_for_tests import adapter, random, wanted_sum
from models_for_tests import gpt2, linear, llama
from torch import Tensor, nn

from lora_lab import Adapter, Factors, inject, lora_layers
from lora_lab.adapter_file import write_adapter
from lora_lab.base import oriented_weight
from lora_lab.many import MultiLoRALinear, adapters, add_adapter, remove_adapter
from lora_lab.many.layer import Selection, Slot

MODELS = {"llama": llama, "gpt2": gpt2}
COVERED = {
    "llama": {"a": ("q_proj", "down_proj"), "b": ("q_proj", "up_proj"), "c": ("0.self_attn.v_proj", "0.mlp.down_proj")},
    "gpt2": {"a": ("c_attn", "mlp.c_proj"), "b": ("c_attn", "c_fc"), "c": ("0.attn.c_proj", "0.mlp.c_proj")},
}
SETTINGS = {  # every scale is another, and none is 1
    "a": {"rank": 4, "alpha": 10, "seed": 1},
    "b": {"rank": 3, "alpha": 2, "rslora": True, "seed": 2},
    "c": {"rank": 7, "alpha": 4, "seed": 3},
}


def three(base: nn.Module, kind: str = "llama", size: float = 0.15) -> dict[str, Adapter]:
    """Adapters for `base`, as if trained: b has a layer that a lacks, c only layers of the first block."""
    return {name: adapter(base, COVERED[kind][name], **SETTINGS[name], size=size) for name in "abc"}


def carrying(kind: str = "llama", dtype=torch.float32) -> tuple[nn.Module, dict[str, Adapter]]:
    """A model with the three adapters, none in use, and the adapters."""
    model = MODELS[kind](dtype)
    adapters = three(model, kind)
    for name, one in adapters.items():
        add_adapter(model, name, one)
    return model, adapters


def folders(base: nn.Module, adapters: dict[str, Adapter], folder: Path) -> dict[str, Path]:
    return {name: write_adapter(one, folder / name, base) for name, one in adapters.items()}


def peft_model(base: nn.Module, saved: dict[str, Path], **more) -> peft.PeftModel:
    """PEFT on a copy of `base`, with every saved adapter under its name."""
    (first, folder), *others = saved.items()
    twin = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder, adapter_name=first, **more)
    for name, folder in others:
        twin.load_adapter(folder, name, **more)
    return twin.eval()


@torch.no_grad()
def dense(base: nn.Module, adapters: dict[str, Adapter], mix: dict[str, float]) -> nn.Module:
    """A copy of `base` with W + Σ wᵢ sᵢ Bᵢ Aᵢ, computed in fp64, for its weights."""
    model = copy.deepcopy(base)
    for path, delta in wanted_sum([adapters[name] for name in mix], list(mix.values())).items():
        weight = oriented_weight(model.get_submodule(path))
        weight.copy_(weight.double() + delta)
    return model


OUT, IN = 20, 12
MIX = {"a": 0.7, "c": -1.6, "b": 0.3}


def layer_carrying(base: nn.Module) -> tuple[MultiLoRALinear, dict[str, Factors]]:
    """One layer with three adapters of rank 4, 2 and 5; and these as data."""
    layer = MultiLoRALinear(base, Selection())
    found = {}
    for seed, (name, rank, alpha, rslora) in enumerate([("a", 4, 10, False), ("b", 2, 3, True), ("c", 5, 4, False)]):
        A, B = 0.3 * random(rank, IN, seed=seed), 0.3 * random(OUT, rank, seed=seed + 10)
        found[name] = Factors(A, B, alpha, rslora)
        layer.adapters[name] = Slot(found[name], base)
    return layer, found


def one_layer(dtype=torch.float32, conv1d=False, bias=True) -> tuple[MultiLoRALinear, dict[str, Factors]]:
    return layer_carrying(linear(OUT, IN, bias, dtype, conv1d))


def exact(layer: MultiLoRALinear, found: dict[str, Factors], mix: dict[str, float], x: Tensor) -> Tensor:
    """base(x), as it is returned, plus the updates, in fp64."""
    total = layer.base(x).double()
    for name, weight in mix.items():
        total = total + weight * x.double() @ (found[name].scale * found[name].B.double() @ found[name].A.double()).T
    return total.detach()


OTHER = {"b": -1.2, "a": 0.4}
COMPOSITIONS = {
    "distinct": ["b", None, "a", MIX, "c", OTHER],
    "one for all": ["a"] * 5,
    "only the base": [None, None],
    "one row": ["c"],
    "sorted, even": ["b", "b", "b", None, None, None, "c", "c", "c"],
    "mixed up": ["a", "b", "a", None, "b", None],
    "many alike": [["a", MIX][i % 2] for i in range(11)],
    "many alike, uneven": ["a", "c"] * 2 + ["a"] * 9 + [OTHER, None],
}


def without_adapters(model: nn.Module) -> nn.Module:
    """A copy of the bare base."""
    plain = copy.deepcopy(model)
    for name in adapters(plain):
        remove_adapter(plain, name)
    return plain


def injected(model: nn.Module, found: Adapter) -> nn.Module:
    """`model` with the same adapter in LoRALinear layers."""
    some = next(iter(found.values()))
    inject(model, list(found), some.rank, some.alpha, rslora=some.rslora)
    with torch.no_grad():
        for path, layer in lora_layers(model).items():
            layer.A.copy_(found[path].A)
            layer.B.copy_(found[path].B)
    return model
