"""Adapters on disk, in PEFT's own format: a folder with adapter_config.json and adapter_model.safetensors.

PEFT loads what this module saves, and this module loads what PEFT saves. `adapter_format` has the keys and the files.

An adapter whose init shifted the base by -s·B0 A0 is saved as an update of the original base, at twice the rank:

    W + s·(BA - B0 A0) = W + s·[B, -B0] [A; A0]

Anything that reads PEFT's format can use that. A note in the header of the weights lets `load_adapter` split it
again, shift the base again, and train on at the original rank. A second note says which base the adapter was made for
(`lora_lab.provenance`), and any other is refused. PEFT passes over both.
"""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.adapter import Adapter, Factors
from lora_lab.adapter_format import rank_and_alpha, read_files, state_of, write_files
from lora_lab.adapter_notes import Notes, notes_of
from lora_lab.base import is_linear, refuse_many, weight_shape
from lora_lab.init.start import Start
from lora_lab.inject import eject, install, lora_layers, quantize_base_
from lora_lab.layer import LoRALinear, check_settings
from lora_lab.peft_config import config_of
from lora_lab.provenance import Fingerprints, bases_of, differs, experts_tensor, fingerprints
from lora_lab.variants.experts import LoRAExperts, expert_layers
from lora_lab.variants.experts.files import config_with_experts, stored_experts, take_experts
from lora_lab.variants.experts.inject import install_experts


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


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every LoRA layer under PEFT's keys, and those of adapted experts: detached CPU copies."""
    return state_of(adapter_of(model) | stored_experts(model))


def save_adapter(model: nn.Module, folder: str | os.PathLike) -> Path:
    """Write the adapters of `model` to `folder` (made if need be; other files in it stay). Returns the folder.

    Both files are written beside, then moved into place: a full disk or an error leaves the old adapter as it was,
    and no crash leaves half a file. The weights carry a digest of their config, so that the one gap, a kill between
    the two moves, is noticed on loading. Their header says which base the adapter was made for, unless that is gone or
    known only to rounding (`lora_lab.provenance`). That takes a pass over the adapted weights.

    Raises ValueError, with nothing written, if `model` has no LoRA layer or is a bare one (its path names it in the
    file), if an adapter holds NaN or infinity, or if its layers differ in what one config can say (dropout, rsLoRA).
    """
    layers, experts = lora_layers(model), expert_layers(model)
    if not (layers or experts) or "" in (layers | experts):
        raise ValueError(f"{type(model).__name__} has no LoRA layer below its root: there is no adapter to save")
    dropouts = {getattr(layer.dropout, "p", 0.0) for layer in layers.values()}
    if len(dropouts) > 1:
        raise ValueError(f"the layers differ in lora_dropout ({sorted(dropouts)}), which one adapter file cannot say")
    adapter, notes = adapter_of(model), notes_of(layers) if layers else Notes()
    notes = replace(notes, base=fingerprints(bases_of(model)))
    if experts:
        return write_files(folder, adapter | stored_experts(model), config_with_experts(adapter, model), notes)
    return write_files(folder, adapter, config_of(adapter, dropouts.pop(), model), notes)


def write_adapter(adapter: Adapter, folder: str | os.PathLike, model: nn.Module | None = None) -> Path:
    """Write plain factors, of `combine` say, as `save_adapter` does. `model`: the base they are for, if at hand."""
    if not adapter or "" in adapter:
        raise ValueError("the adapter names no layer: there is nothing to save")
    modules = dict(model.named_modules()) if model is not None else {}
    found = {name: modules[name] for name in adapter if name in modules}
    known = len(found) == len(adapter) and all(isinstance(m, LoRALinear) or is_linear(m) for m in found.values())
    notes = Notes(base=fingerprints(found) if known else {})
    return write_files(folder, adapter, config_of(adapter, model=model), notes)


def read_adapter(folder: str | os.PathLike) -> Adapter:
    """The adapter in `folder` on the CPU, as an update of the original base. Raises as `load_adapter` does."""
    config, pairs, _ = read_files(Path(folder))
    if config.get("target_parameters"):
        raise ValueError(f"{folder} adapts experts ({config['target_parameters'][0]}, ...): only load_adapter reads it")
    adapter = {}
    for name, pair in pairs.items():
        rank, alpha = rank_and_alpha(config, name)
        if pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            shapes = tuple(pair["A"].shape), tuple(pair["B"].shape)
            raise ValueError(f"{name}: the config's rank is {rank}, the file has A and B of shapes {shapes}")
        adapter[name] = Factors(pair["A"], pair["B"], alpha, bool(config.get("use_rslora")), pair.get("magnitude"))
    return adapter


def load_adapter(
    model: nn.Module, folder: str | os.PathLike, *, plain: bool = False, any_base: bool = False
) -> nn.Module:
    """Inject the adapter in `folder` into `model`, in place; the base is frozen, A and B can train on.

    If its init had shifted or `inject` had quantized the base that it was trained on, the same is done to this base,
    and the outputs are those of the saved model. `plain` leaves the base alone, as PEFT would: an adapter with a shift
    then has twice the rank.

    A file that says which base its adapter was made for is refused by any other. The same base rounded to another dtype
    is accepted, biases and layers without an adapter are not looked at, and a file that says nothing (PEFT's own, older
    ones of ours) fits any base of its shapes: see `lora_lab.provenance`. any_base: do not ask.

    Raises, with `model` and the global random state untouched: FileNotFoundError for a missing file; ValueError for
    a truncated or foreign file, NaNs, a rank other than the config's, layers that the model lacks or that have
    another shape, or other weights than the adapter was made for (a wrong base), a model that is injected already, or
    a kind of adapter that is not plain LoRA.
    """
    if lora_layers(model) or expert_layers(model):
        raise ValueError("the model is already injected: eject it first")
    refuse_many(model)
    config, pairs, notes = read_files(Path(folder))
    experts = take_experts(model, config, pairs)
    settings = _settings(model, config, pairs)
    modules = dict(model.named_modules())
    found = {name: modules[name] for name in pairs}
    made_for, notes = notes.base, Notes() if plain else notes
    notes.check(found)
    if made_for and not any_base:
        _refuse_other_base(folder, made_for, _given(model, found, experts, made_for, notes))

    def build() -> dict[str, LoRALinear]:
        return {name: _rebuild(base, pairs[name], settings[name], notes, name) for name, base in found.items()}

    if found:
        install(model, found, build)
    if experts:
        try:
            install_experts(model, lambda: {modules[n]: LoRAExperts(modules[n], experts[n]) for n in experts})
        except BaseException:
            if found:
                eject(model)
            raise
    return model


def _given(model: nn.Module, found: dict, experts: dict, made_for: Fingerprints, notes: Notes) -> Fingerprints:
    """Of the base as it is; quantized for the comparison if the adapter knows no more than the codes beside it."""
    sources: dict[str, Any] = dict(found)
    if set(made_for) == {"codes"} and notes.quantize:
        from lora_lab.quantized_linear import QuantizedLinear

        sources = {
            name: QuantizedLinear.from_linear(base, **notes.quantize) if notes.quantizes(base) else base
            for name, base in found.items()
        }
    for name, tensors in experts.items():
        sources |= {f"{name}.{tensor}": experts_tensor(model.get_submodule(name), tensor) for tensor in tensors}
    return fingerprints(sources)


def _refuse_other_base(folder: str | os.PathLike, made_for: Fingerprints, given: Fingerprints) -> None:
    if found := differs(made_for, given):
        dtype, wanted, here = found
        raise ValueError(
            f"{folder}: the adapter was made for the base {wanted[:16]}, this one is {here[:16]} (SHA-256 of the "
            f"adapted weights, {dtype}): another base, or trained, merged or damaged since. any_base=True loads it "
            "all the same"
        )


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
        rank, alpha = rank_and_alpha(config, name)
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
