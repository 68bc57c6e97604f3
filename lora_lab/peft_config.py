"""adapter_config.json: what PEFT's LoraConfig says about an adapter, written and read by its rules.

One rank, alpha, dropout and scaling rule for all layers; ranks and alphas that differ stand in patterns, regular
expressions over paths.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lora_lab.adapter import Adapter
from lora_lab.base import is_conv1d

# The inits that leave the base weight alone, so that A and B in the file are the whole update.
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
# What else PEFT can put in a LoRA checkpoint. Loading it as plain LoRA would give other outputs without a word.
UNSUPPORTED = (
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
    "monteclora_config",
    "kasa_config",
)


def config_of(adapter: Adapter, dropout: float = 0.0, model: nn.Module | None = None) -> dict[str, Any]:
    """What PEFT's LoraConfig needs to rebuild these layers; ranks and alphas that differ become patterns.

    `model`: the base, for its name, its kind of task and its `Conv1D` layers.
    Raises ValueError if the layers differ in what one config can say (rsLoRA, DoRA).
    """
    common = {}
    for key, read in {
        "use_rslora": lambda factors: factors.rslora,
        "use_dora": lambda factors: factors.magnitude is not None,
    }.items():
        values = {read(factors) for factors in adapter.values()}
        if len(values) > 1:
            raise ValueError(f"the layers differ in {key} ({sorted(values)}), which one adapter file cannot say")
        common[key] = values.pop()
    first = next(iter(adapter.values()))
    # A pattern is a regular expression that may match the end of a path: "^" and escapes keep it to this very path.
    path = {name: f"^{re.escape(name)}" for name in adapter}
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    modules = dict(model.named_modules()) if model is not None else {}
    bases = [getattr(modules[name], "base", modules[name]) for name in adapter if name in modules]
    return common | {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "bias": "none",
        # Of a model that mixes Conv1D and Linear too: PEFT corrects it layer by layer, with a warning.
        "fan_in_fan_out": any(is_conv1d(base) for base in bases),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": dropout,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "rank_pattern": {path[n]: factors.rank for n, factors in adapter.items() if factors.rank != first.rank},
        "alpha_pattern": {path[n]: factors.alpha for n, factors in adapter.items() if factors.alpha != first.alpha},
        "target_modules": sorted(adapter),
    }


def read_config(path: Path) -> dict[str, Any]:
    """The config in the file `path`. Raises FileNotFoundError, or ValueError for what is not a plain LoRA's config."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: an adapter folder holds {path.name} and its weights")
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


def by_pattern(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule: the first key that, as a regular expression, ends the path after a dot or is the whole path."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", name):
            return value
    return default


def digest(config: Mapping[str, Any]) -> str:
    """Of what changes the numbers: a name or path may be edited by hand."""
    keys = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
    return hashlib.sha256(json.dumps({key: config.get(key) for key in keys}, sort_keys=True).encode()).hexdigest()


def _check_pattern(path: Path, key: str, pattern: Any) -> None:
    try:
        for expression in dict(pattern or {}):
            re.compile(f"({expression})")
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"{path}: {key} = {pattern!r} does not map regular expressions to numbers: {error}") from None
