"""Put LoRA into a model and take it out again: find the target layers, freeze the rest, wrap, count, eject.

`inject` is all or nothing. Everything that can be refused is refused before the first layer is touched.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import nn

from lora_lab.init import default_factors
from lora_lab.layer import Init, LoRALinear, check_settings, is_linear

ALL_LINEAR = "all-linear"
_WAS_TRAINABLE = "_trainable_before_inject"


class Count(NamedTuple):
    """Numbers of parameters (elements, each shared tensor once). `percent` is trainable / total · 100."""

    trainable: int
    total: int
    percent: float

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.percent:.4f} %)"


def matches(name: str, targets: str | Iterable[str]) -> bool:
    """Does the module path `name` match, by PEFT's rule?

    A string is a regular expression that must match the whole path. A list holds names, each the whole path or its
    end after a dot: "q_proj" matches "layers.0.q_proj" and "q_proj", but neither "seq_proj" nor "q_proj.base".
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every adapted layer of `model` by its path (a layer reachable by two paths: by the first)."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def find_targets(model: nn.Module, targets: str | Iterable[str]) -> dict[str, nn.Module]:
    """The layers to adapt, by path, in the model's own order.

    `targets`: a list of names, a regular expression, or "all-linear" (every linear layer except the output head).
    A layer that several paths lead to is found by any of them, and listed once.
    Raises ValueError if anything named matches nothing, or matches something that is not a linear layer.
    """
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        found = {name: m for name, m in model.named_modules() if name and is_linear(m) and m is not head}
        if not found:
            raise ValueError(f"{type(model).__name__} has no linear layer below its root, so all-linear finds nothing")
        return found
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    targets = targets if isinstance(targets, str) else list(targets)
    _refuse_unmatched(modules, targets)
    first_path: dict[nn.Module, str] = {}
    for name, module in modules.items():
        if matches(name, targets):
            if not is_linear(module):
                raise ValueError(f"target {name!r} is a {type(module).__name__}, LoRA wraps nn.Linear and Conv1D")
            first_path.setdefault(module, name)
    return {name: module for module, name in first_path.items()}


def _refuse_unmatched(modules: dict[str, nn.Module], targets: str | list[str]) -> None:
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"target {targets!r} is not a regular expression: {error}") from None
    elif not targets:
        raise ValueError("targets is empty: name at least one layer, or use 'all-linear'")
    # A string is one pattern, and each name of a list must find something by itself.
    patterns = {targets: targets} if isinstance(targets, str) else {name: [name] for name in targets}
    for target, pattern in patterns.items():
        if not any(matches(name, pattern) for name in modules):
            ends = sorted({name.rpartition(".")[2] for name, module in modules.items() if is_linear(module)})
            raise ValueError(
                f"target {target!r} matches no module (a list holds names, a string is a regular expression for the "
                f"whole path); linear layers here end in {ends}"
            )


def inject(
    model: nn.Module,
    targets: str | Iterable[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    rslora: bool = False,
    init: Init = default_factors,
) -> nn.Module:
    """Freeze `model` and wrap its target layers in `LoRALinear`, in place. Returns the same model.

    A layer that the model reaches by several paths is wrapped once and replaced at all of them. Only A and B train
    afterwards. `targets` as in `find_targets`; the other arguments as in `LoRALinear`.

    Raises ValueError or TypeError with the model untouched: already injected, a target that matches nothing or no
    linear layer, a rank, alpha or dropout outside its limits.
    """
    if lora_layers(model):
        raise ValueError("the model is already injected: eject it first, or two adapters would be nested")
    found = find_targets(model, targets)
    for name, base in found.items():
        try:
            check_settings(base, rank, alpha, dropout)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    return install(
        model, lambda: {n: LoRALinear(base, rank, alpha, dropout, rslora, init) for n, base in found.items()}
    )


def install(model: nn.Module, build: Callable[[], dict[str, LoRALinear]]) -> nn.Module:
    """Freeze `model` and put the wrappers that `build()` returns in the place of their bases, wherever those stand.

    Remembers what trained before, for `eject`. If `build` fails or is interrupted, the model is as it was.
    """
    was_trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    try:
        wrappers = build()
        model.requires_grad_(False)
        _replace(model, {wrapper.base: wrapper for wrapper in wrappers.values()})
    except BaseException:
        unwrap(model)
        _set_trainable(model, was_trainable)
        raise
    model.__dict__[_WAS_TRAINABLE] = was_trainable
    return model


def eject(model: nn.Module) -> nn.Module:
    """Take the adapters out, in place: every base layer returns to its place, the very same object, and every
    parameter trains again that trained before `inject`. A and B are dropped: save them first. Returns the model (for
    a bare `LoRALinear` its base).

    Raises ValueError if nothing is injected, or if a layer is merged (its base would not be the base).
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("nothing to eject: the model has no LoRA layer")
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(f"{len(merged)} layers are merged ({merged[0]}, ...): unmerge_ first, or take merged(model)")
    return unwrap(model)


def unwrap(model: nn.Module) -> nn.Module:
    """Replace each LoRA layer by its base as it is now, merged or not, in place; restore what trained before."""
    _replace(model, {layer: layer.base for layer in lora_layers(model).values()})
    # The record stands where `inject` was called, which may be a part of `model`.
    for module in list(model.modules()):
        if _WAS_TRAINABLE in module.__dict__:
            _set_trainable(module, module.__dict__.pop(_WAS_TRAINABLE))
    return model.base if isinstance(model, LoRALinear) else model


def count(model: nn.Module) -> Count:
    """Count trainable and all parameters: elements, not tensors, shared ones once (the same numbers as PEFT's)."""
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return Count(trainable, total, 100 * trainable / total if total else 0.0)


def _set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    names = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put `new[child]` wherever `child` stands below `model`, at every path that leads to it."""
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, attribute, new[child])
