"""Adapters on disk, in PEFT's own format: a folder with adapter_config.json and adapter_model.safetensors.

Keys: "base_model.model.<path>.lora_A.weight" (rank, in), "...lora_B.weight" (out, rank), and with DoRA
"...lora_magnitude_vector" (out,). PEFT loads what this module saves, and this module loads what PEFT saves.

An adapter whose init shifted the base by -s·B0 A0 is saved as an update of the original base, at twice the rank:

    W + s·(BA - B0 A0) = W + s·[B, -B0] [A; A0]

Anything that reads PEFT's format can use that. A note in the header of the weights lets `load_adapter` split it
again, shift the base again, and train on at the original rank.
"""

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

from lora_lab.adapter import Adapter, Factors
from lora_lab.adapter_notes import Notes, notes_of, read_notes
from lora_lab.base import is_linear, refuse_many, weight_shape
from lora_lab.init.start import Start
from lora_lab.inject import install, lora_layers, quantize_base_
from lora_lab.layer import LoRALinear, check_settings
from lora_lab.peft_config import by_pattern, config_of, digest, read_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEYS = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def adapter_of(model: nn.Module) -> Adapter:
    """The adapters of `model` as updates of its original base, by path (shared tensors, detached).

    A layer whose init has a shift gives [A; A0] and [B, -B0] and twice its alpha (√2 times with rsLoRA): the same s.
    """
    adapter = {}
    for name, layer in lora_layers(model).items():
        A, B, alpha = layer.A.detach(), layer.B.detach(), layer.alpha
        if layer.A0 is not None:
            A, B = torch.cat([A, layer.A0]), torch.cat([B, -layer.B0], dim=1)
            alpha *= math.sqrt(2) if layer.rslora else 2
        magnitude = getattr(layer, "magnitude", None)
        adapter[name] = Factors(A, B, alpha, layer.rslora, None if magnitude is None else magnitude.detach())
    return adapter


def state_of(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of `adapter` under PEFT's keys: CPU copies."""
    state = {}
    for name, factors in adapter.items():
        for field, key in KEYS.items():
            tensor = getattr(factors, field)
            if tensor is not None:
                state[f"{PREFIX}{name}.{key}"] = tensor.detach().to("cpu", copy=True).contiguous()
    return state


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """`state_of(adapter_of(model))`: A and B of every LoRA layer under PEFT's keys, detached CPU copies."""
    return state_of(adapter_of(model))


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
    dropouts = {getattr(layer.dropout, "p", 0.0) for layer in layers.values()}
    if len(dropouts) > 1:
        raise ValueError(f"the layers differ in lora_dropout ({sorted(dropouts)}), which one adapter file cannot say")
    adapter = adapter_of(model)
    return _write(folder, adapter, config_of(adapter, dropouts.pop(), model), notes_of(layers))


def write_adapter(adapter: Adapter, folder: str | os.PathLike, model: nn.Module | None = None) -> Path:
    """Write plain factors, of `combine` say, as `save_adapter` does. `model`: the base they are for, if at hand."""
    if not adapter or "" in adapter:
        raise ValueError("the adapter names no layer: there is nothing to save")
    return _write(folder, adapter, config_of(adapter, model=model), Notes())


def read_adapter(folder: str | os.PathLike) -> Adapter:
    """The adapter in `folder` on the CPU, as an update of the original base. Raises as `load_adapter` does."""
    config, pairs, _ = _read(Path(folder))
    adapter = {}
    for name, pair in pairs.items():
        rank, alpha = _rank_and_alpha(config, name)
        if pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            shapes = tuple(pair["A"].shape), tuple(pair["B"].shape)
            raise ValueError(f"{name}: the config's rank is {rank}, the file has A and B of shapes {shapes}")
        adapter[name] = Factors(pair["A"], pair["B"], alpha, bool(config.get("use_rslora")), pair.get("magnitude"))
    return adapter


def load_adapter(model: nn.Module, folder: str | os.PathLike, *, plain: bool = False) -> nn.Module:
    """Inject the adapter in `folder` into `model`, in place; the base is frozen, A and B can train on.

    If its init had shifted or `inject` had quantized the base that it was trained on, the same is done to this base,
    and the outputs are those of the saved model. `plain` leaves the base alone, as PEFT would: an adapter with a shift
    then has twice the rank.

    Raises, with `model` and the global random state untouched: FileNotFoundError for a missing file; ValueError for
    a truncated or foreign file, NaNs, a rank other than the config's, layers that the model lacks or that have
    another shape (a wrong base), a model that is injected already, or a kind of adapter that is not plain LoRA.
    """
    if lora_layers(model):
        raise ValueError("the model is already injected: eject it first")
    refuse_many(model)
    config, pairs, notes = _read(Path(folder))
    settings = _settings(model, config, pairs)
    modules = dict(model.named_modules())
    found = {name: modules[name] for name in pairs}
    notes = Notes() if plain else notes
    notes.check(found)

    def build() -> dict[str, LoRALinear]:
        return {name: _rebuild(base, pairs[name], settings[name], notes, name) for name, base in found.items()}

    return install(model, found, build)


def _rebuild(base: nn.Module, pair: dict[str, Tensor], settings: tuple, notes: Notes, name: str) -> LoRALinear:
    # Ready-made factors instead of an init: nothing is drawn from the global random state.
    start, (rank, alpha, *more) = Start(pair["A"], pair["B"], None, notes.trains), settings
    if name in notes.shifted:
        rank, alpha = rank // 2, notes.shifted[name]
        shift = pair["A"][rank:], -pair["B"][:, rank:]
        start = Start(pair["A"][:rank], pair["B"][:, :rank], shift, notes.trains)
    cls: type[LoRALinear] = LoRALinear
    if "magnitude" in pair:
        from lora_lab.variants.dora import DoRALinear as cls
    wrapper = cls(base, rank, alpha, *more, init=lambda *_: start)
    if notes.quantizes(base):
        quantize_base_(wrapper, notes.quantize)
    if "magnitude" in pair:  # last: it would start anew on another base
        wrapper.magnitude.data.copy_(pair["magnitude"])
    return wrapper


def _write(folder: str | os.PathLike, adapter: Adapter, config: dict[str, Any], notes: Notes) -> Path:
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


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], Notes]:
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


def _rank_and_alpha(config: dict[str, Any], name: str) -> tuple[int, float]:
    return (
        by_pattern(config.get("rank_pattern"), name, config["r"]),
        by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"]),
    )


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
        rank, alpha = _rank_and_alpha(config, name)
        out_features, in_features = weight_shape(modules[name])
        shapes = {"A": (rank, in_features), "B": (out_features, rank), "magnitude": (out_features,)}
        for field, tensor in pair.items():
            if tuple(tensor.shape) != shapes[field]:
                raise ValueError(
                    f"{name}.lora_{field}: config and base want {shapes[field]}, the file has {tuple(tensor.shape)}"
                )
        settings[name] = (rank, alpha, config.get("lora_dropout") or 0.0, bool(config.get("use_rslora")))
        check_settings(modules[name], *settings[name][:3])
    return settings


def _refuse_not_finite(state: dict[str, Tensor]) -> None:
    for key, tensor in state.items():
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # NaN is the least and the greatest
            raise ValueError(f"{key} holds NaN or infinity")
