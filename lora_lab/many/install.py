"""Adapters move in and out of a model: wrap the layers that the first one covers, unwrap those that the last one left.

An adapter is an update of the ORIGINAL base, also one whose init shifted the base when it was trained (`adapter_of` and
`read_adapter` give it twice the rank for that). No base weight is ever written here, so no adapter can change another.
"""

import os

from torch import nn

from lora_lab.adapter import Adapter
from lora_lab.adapter_file import read_adapter
from lora_lab.base import is_linear, weight_shape
from lora_lab.combine.check import check_adapter
from lora_lab.inject import lora_layers, replace_modules, set_trainable
from lora_lab.many.layer import MultiLoRALinear, Selection, Slot, multi_layers

_WAS_TRAINABLE = "_trainable_before_adapters"


def add_adapter(model: nn.Module, name: str, adapter: Adapter | str | os.PathLike) -> nn.Module:
    """Put an adapter, or the one in a folder, beside those that `model` has, in place, under `name`. Returns the model.

    What the model answers stays the same until `use` or `rows` asks for it. The first adapter freezes the model; a
    later one may cover other layers, and have another rank, alpha and rsLoRA. The factors are copied.

    Raises TypeError, ValueError or FileNotFoundError with the model untouched: a name that is taken or no name, layers
    that the model lacks or that have another shape (a wrong base), DoRA, NaN, a model that is injected or folded, and
    whatever `read_adapter` raises.
    """
    layers = multi_layers(model)
    selection = selection_of(model, layers) if layers else Selection()
    refuse_folded(selection)
    _check_name(name, layers)
    if lora_layers(model):
        raise ValueError("the model is injected: its base may be shifted or merged. Take adapter_of(model), then eject")
    adapter = read_adapter(adapter) if isinstance(adapter, str | os.PathLike) else adapter
    check_adapter(adapter, f"adapter {name!r}")
    bases = _bases(model, name, adapter)
    was_trainable = [path for path, p in model.named_parameters() if p.requires_grad]
    new: dict[str, MultiLoRALinear] = {}
    try:
        slots = {path: Slot(factors, bases[path]) for path, factors in adapter.items()}
        new.update((path, MultiLoRALinear(base, selection)) for path, base in bases.items() if path not in layers)
        for path, slot in slots.items():
            (new.get(path) or layers[path]).adapters[name] = slot
        if not layers:
            model.requires_grad_(False)
        replace_modules(model, {bases[path]: layer for path, layer in new.items()})
    except BaseException:
        _take_out(layers, name)
        replace_modules(model, {layer: bases[path] for path, layer in new.items()})
        set_trainable(model, was_trainable)
        raise
    if not layers:
        model.__dict__[_WAS_TRAINABLE] = was_trainable
    return model


def remove_adapter(model: nn.Module, name: str) -> nn.Module:
    """Take an adapter out again, in place. Returns the model.

    A layer that it leaves without adapters is its old base again, the very same object, and when the last one is gone,
    every parameter trains that trained before. Raises ValueError with the model untouched: no such adapter, or it is in
    use.
    """
    layers = multi_layers(model)
    selection = selection_of(model, layers)
    refuse_folded(selection)
    refuse_unknown([name], adapters(model))
    mixes = [mix for mix, _ in selection.rows.groups] if selection.rows else []
    if any(name in mix for mix in (selection.mix, *mixes)):
        raise ValueError(f"adapter {name!r} is in use: switch first, with use(model, None)")
    _take_out(layers, name)
    unwrap(model, [layer for layer in layers.values() if not layer.adapters])
    return model


def adapters(model: nn.Module) -> list[str]:
    """The names of the adapters that `model` carries, in the order of its layers and of their adding."""
    return list(dict.fromkeys(name for layer in multi_layers(model).values() for name in layer.adapters))


def adapter_of_many(model: nn.Module, name: str) -> Adapter:
    """One of the adapters as data, by path (shared tensors, detached): to write to a file, or to combine.

    Raises ValueError if there is no such adapter.
    """
    layers = multi_layers(model)
    refuse_unknown([name], adapters(model))
    return {path: layer.adapters[name].factors() for path, layer in layers.items() if name in layer.adapters}


def unwrap(model: nn.Module, layers: list[MultiLoRALinear]) -> None:
    """Put the bases of these layers back; when no adapter is left, restore what trained before."""
    replace_modules(model, {layer: layer.base for layer in layers})
    # The record stands where the first adapter was added, which may be a part of `model`.
    for module in list(model.modules()):
        if _WAS_TRAINABLE in module.__dict__ and not multi_layers(module):
            set_trainable(module, module.__dict__.pop(_WAS_TRAINABLE))


def selection_of(model: nn.Module, layers: dict[str, MultiLoRALinear] | None = None) -> Selection:
    """The one selection of all the layers. Raises ValueError if there is none, or more than one."""
    found = {layer.selection for layer in (multi_layers(model) if layers is None else layers).values()}
    if not found:
        raise ValueError(f"{type(model).__name__} carries no adapters: add_adapter first")
    if len(found) > 1:
        raise ValueError(f"adapters were added to {len(found)} parts of the model separately: select in each part")
    return found.pop()


def refuse_folded(selection: Selection) -> None:
    if selection.folded:
        raise ValueError("the mix is folded into the base weights: leave `with folded(model)` first")


def refuse_unknown(names: list[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"no adapter is called {name!r}; the model carries {known}")


def _take_out(layers: dict[str, MultiLoRALinear], name: str) -> None:
    for layer in layers.values():
        if name in layer.adapters:
            del layer.adapters[name]


def _check_name(name: str, layers: dict[str, MultiLoRALinear]) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of an adapter must be a string, got {type(name).__name__}")
    # It is part of the keys of the state dict, and an attribute of a module.
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"{name!r} cannot be the name of an adapter: empty, with a dot, or a name that torch needs")
    if any(name in layer.adapters for layer in layers.values()):
        raise ValueError(f"an adapter is called {name!r} already: remove_adapter first, or choose another name")


def _bases(model: nn.Module, name: str, adapter: Adapter) -> dict[str, nn.Module]:
    """The bare layer for every path of the adapter, after checking that they fit."""
    layers = multi_layers(model)
    inside = {module for layer in layers.values() for module in layer.modules()} - set(layers.values())
    modules = {path: module for path, module in model.named_modules() if path and module not in inside}
    modules |= {path: layer.base for path, layer in layers.items()}
    bases = {path: modules[path] for path in adapter if path in modules}
    missing = [path for path in adapter if path not in bases or not is_linear(bases[path])]
    if missing:
        raise ValueError(
            f"wrong base: {len(missing)} of {len(adapter)} layers of adapter {name!r} are not linear layers of "
            f"{type(model).__name__} ({missing[0]!r})"
        )
    for path, factors in adapter.items():
        wanted = factors.B.shape[0], factors.A.shape[1]
        if wanted != weight_shape(bases[path]):
            raise ValueError(
                f"wrong base: adapter {name!r} wants {path!r} to be (out, in) = {wanted}, it is "
                f"{weight_shape(bases[path])}"
            )
    return bases
