"""The two files of an adapter, in PEFT's format: tensors under PEFT's keys, written and read whole or not at all.

"base_model.model.<path>.lora_A.weight" (rank, in), "...lora_B.weight" (out, rank), and with DoRA
"...lora_magnitude_vector" (out,).
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lora_lab.adapter import Adapter
from lora_lab.adapter_notes import Notes, read_notes
from lora_lab.peft_config import by_pattern, digest, read_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEYS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def state_of(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of `adapter` under PEFT's keys: CPU copies."""
    state = {}
    for name, factors in adapter.items():
        for field, key in KEYS.items():
            tensor = getattr(factors, field)
            if tensor is not None:
                state[f"{PREFIX}{name}.{key}"] = tensor.detach().to("cpu", copy=True).contiguous()
    return state


def write_files(folder: str | os.PathLike, adapter: Adapter, config: dict[str, Any], notes: Notes) -> Path:
    """Write both files beside, then move them into place. Raises ValueError for NaN, with nothing written."""
    state = state_of(adapter)
    _refuse_not_finite(state)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "lora_lab_config": digest(config)} | notes.metadata()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
        save_file(state, Path(beside) / WEIGHTS, metadata=metadata)
        (Path(beside) / CONFIG).write_text(text, encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            os.replace(Path(beside) / name, folder / name)
    return folder


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], Notes]:
    """Config, tensors ({"path": {"A": ..., "B": ...}}) and notes, after every check that needs no model."""
    config = read_config(folder / CONFIG)
    state, metadata = _read_weights(folder / WEIGHTS)
    if metadata.get("lora_lab_config") not in (None, digest(config)):
        raise ValueError(f"{folder}: {CONFIG} and {WEIGHTS} are not of one save: was a save interrupted?")
    _refuse_not_finite(state)
    pairs = _pairs(state, bool(config.get("use_dora")))
    return config, pairs, read_notes(metadata, {name: pair["A"].shape[0] for name, pair in pairs.items()})


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist (pickled adapter_model.bin files are never read)")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from None


def _pairs(state: dict[str, Tensor], dora: bool) -> dict[str, dict[str, Tensor]]:
    """{"path": {"A": ..., "B": ...}} from PEFT's keys; with DoRA "magnitude" as well."""
    fields = {key: field for field, key in KEYS.items() if dora or field != "magnitude"}
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        found = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.({'|'.join(map(re.escape, fields))})", key)
        if not found:
            raise ValueError(f"unexpected tensor {key!r}: plain LoRA holds only ...lora_A.weight and ...lora_B.weight")
        pairs.setdefault(found[1], {})[fields[found[2]]] = tensor
    if not pairs:
        raise ValueError("the adapter file holds no tensor")
    for name, pair in pairs.items():
        missing = set(fields.values()) - set(pair)
        if missing:
            raise ValueError(
                f"{name} has only {', '.join(KEYS[f].split('.')[0] for f in pair)}: {', '.join(missing)} is missing"
            )
    return pairs


def rank_and_alpha(config: dict[str, Any], name: str) -> tuple[int, float]:
    """Of the layer at that path, by the config and its patterns."""
    return (
        by_pattern(config.get("rank_pattern"), name, config["r"]),
        by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]),
    )


def _refuse_not_finite(state: dict[str, Tensor]) -> None:
    for key, tensor in state.items():
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # NaN is the least and the greatest
            raise ValueError(f"{key} holds NaN or infinity")
