"""Adapters on disk, in PEFT's own format: a folder with adapter_config.json and adapter_model.safetensors.

Keys: "base_model.model.<path>.lora_A.weight" (rank, in) and "...lora_B.weight" (out, rank). PEFT loads what this
module saves, and this module loads what PEFT saves.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_lab.inject import install, lora_layers
from lora_lab.layer import LoRALinear, check_settings, is_conv1d, is_linear, oriented_weight

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# The inits that leave the base weight alone, so that A and B in the file are the whole update.
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# What else PEFT can put in a LoRA checkpoint. Loading it as plain LoRA would give other outputs without a word.
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
    "monteclora_config",
    "kasa_config",
)


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every LoRA layer under PEFT's keys: detached CPU copies."""
    state = {}
    for name, layer in lora_layers(model).items():
        for factor in ("A", "B"):
            tensor = getattr(layer, factor).detach()
            state[f"{PREFIX}{name}.lora_{factor}.weight"] = tensor.to("cpu", copy=True).contiguous()
    return state


def save_adapter(model: nn.Module, folder: str | os.PathLike) -> Path:
    """Write the adapters of `model` to `folder` (made if need be; other files in it stay). Returns the folder.

    Both files are written beside, then moved into place: a full disk or an error leaves the old adapter as it was,
    and no crash leaves half a file. The weights carry a digest of their config, so that the one gap, a kill between
    the two moves, is noticed on loading.

    Raises ValueError, with nothing written, if `model` has no LoRA layer or is a bare one (its path names it in the
    file), if an adapter holds NaN or infinity, or if its layers differ in what one config can say (dropout, rsLoRA).
    """
    layers = lora_layers(model)
    if not layers or "" in layers:
        raise ValueError(f"{type(model).__name__} has no LoRA layer below its root: there is no adapter to save")
    state = adapter_state(model)
    _refuse_not_finite(state)
    config = _config(model, layers)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "lora_lab_config": _digest(config)}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
        save_file(state, Path(beside) / WEIGHTS, metadata=metadata)
        (Path(beside) / CONFIG).write_text(text, encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            os.replace(Path(beside) / name, folder / name)
    return folder


def load_adapter(model: nn.Module, folder: str | os.PathLike) -> nn.Module:
    """Inject the adapter in `folder` into `model`, in place; the base is frozen, A and B can train on.

    Raises, with `model` and the global random state untouched: FileNotFoundError for a missing file; ValueError for
    a truncated or foreign file, NaNs, a rank other than the config's, layers that the model lacks or that have
    another shape (a wrong base), a model that is injected already, or a kind of adapter that is not plain LoRA.
    """
    if lora_layers(model):
        raise ValueError("the model is already injected: eject it first")
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    state, digest = _read_weights(folder / WEIGHTS)
    if digest not in (None, _digest(config)):
        raise ValueError(f"{folder}: {CONFIG} and {WEIGHTS} are not of one save: was a save interrupted?")
    _refuse_not_finite(state)
    pairs = _pairs(state)
    settings = _settings(model, config, pairs)
    modules = dict(model.named_modules())

    def build() -> dict[str, LoRALinear]:
        # Ready-made factors instead of an init: nothing is drawn from the global random state.
        return {
            name: LoRALinear(modules[name], *settings[name], init=lambda *_, pair=pair: (pair["A"], pair["B"]))
            for name, pair in pairs.items()
        }

    return install(model, build)


def _config(model: nn.Module, layers: dict[str, LoRALinear]) -> dict[str, Any]:
    """What PEFT's LoraConfig needs to rebuild these layers; ranks and alphas that differ become patterns."""
    common: dict[str, Any] = {}
    for key, read in {
        "lora_dropout": lambda layer: getattr(layer.dropout, "p", 0.0),
        "use_rslora": lambda layer: layer.rslora,
    }.items():
        values = {read(layer) for layer in layers.values()}
        if len(values) > 1:
            raise ValueError(f"the layers differ in {key} ({sorted(values)}), which one adapter file cannot say")
        common[key] = values.pop()
    first = next(iter(layers.values()))
    # A pattern is a regular expression that may match the end of a path: "^" and escapes keep it to this very path.
    path = {name: f"^{re.escape(name)}" for name in layers}
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    return common | {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "bias": "none",
        # Of a model that mixes Conv1D and Linear too: PEFT corrects it layer by layer, with a warning.
        "fan_in_fan_out": any(is_conv1d(layer.base) for layer in layers.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "rank_pattern": {path[name]: layer.rank for name, layer in layers.items() if layer.rank != first.rank},
        "alpha_pattern": {path[name]: layer.alpha for name, layer in layers.items() if layer.alpha != first.alpha},
        "target_modules": sorted(layers),
    }


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: an adapter folder holds {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{path} does not describe a LoRA adapter")
    for key in UNSUPPORTED:
        if config.get(key):
            raise ValueError(f"{path}: {key} = {config[key]!r} is more than plain LoRA, and is not read here")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias = {config['bias']!r}: trained biases are not read here")
    init = config.get("init_lora_weights", True)
    if (init.lower() if isinstance(init, str) else init) not in PLAIN_INITS:
        raise ValueError(
            f"{path}: init {init!r} shifted the base weight; save it converted to plain LoRA and load that"
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{path}: {key} must be a positive number, got {value!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        _check_pattern(path, key, config.get(key))
    return config


def _check_pattern(path: Path, key: str, pattern: Any) -> None:
    try:
        for expression in dict(pattern or {}):
            re.compile(f"({expression})")
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"{path}: {key} = {pattern!r} does not map regular expressions to numbers: {error}") from None


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist (pickled adapter_model.bin files are never read)")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, (file.metadata() or {}).get("lora_lab_config")
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from None


def _pairs(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{"path": {"A": ..., "B": ...}} from PEFT's keys."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        found = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
        if not found:
            raise ValueError(f"unexpected tensor {key!r}: plain LoRA holds only ...lora_A.weight and ...lora_B.weight")
        pairs.setdefault(found[1], {})[found[2]] = tensor
    if not pairs:
        raise ValueError("the adapter file holds no tensor")
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise ValueError(f"{name} has only lora_{next(iter(pair))}: the other factor is missing")
    return pairs


def _settings(model: nn.Module, config: dict, pairs: dict[str, dict[str, Tensor]]) -> dict[str, tuple]:
    """(rank, alpha, dropout, rslora) of every layer, after checking that file, config and base agree."""
    modules = dict(model.named_modules())
    missing = [name for name in pairs if name not in modules or not is_linear(modules[name])]
    if missing:
        raise ValueError(
            f"wrong base: {len(missing)} of {len(pairs)} layers are not linear layers of it ({missing[0]})"
        )
    settings = {}
    for name, pair in pairs.items():
        rank = _by_pattern(config.get("rank_pattern"), name, config["r"])
        alpha = _by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
        out_features, in_features = oriented_weight(modules[name]).shape
        for factor, shape in {"A": (rank, in_features), "B": (out_features, rank)}.items():
            got = tuple(pair[factor].shape)
            if got != shape:
                raise ValueError(f"{name}.lora_{factor}: config and base want {shape}, the file has {got}")
        settings[name] = (rank, alpha, config.get("lora_dropout") or 0.0, bool(config.get("use_rslora")))
        check_settings(modules[name], *settings[name][:3])
    return settings


def _by_pattern(pattern: dict | None, name: str, default: float) -> float:
    """PEFT's rule: the first key that, as a regular expression, ends the path after a dot or is the whole path."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", name):
            return value
    return default


def _refuse_not_finite(state: dict[str, Tensor]) -> None:
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{key} holds NaN or infinity")


def _digest(config: dict[str, Any]) -> str:
    # Only what changes the numbers: a name or path may be edited by hand.
    keys = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
    return hashlib.sha256(json.dumps({key: config.get(key) for key in keys}, sort_keys=True).encode()).hexdigest()
