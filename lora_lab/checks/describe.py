"""Values in words for the sentences of a check, and what a call changed about them."""

from typing import Any

import torch
from torch import Tensor, nn


def shape(value: Tensor | torch.Size | tuple) -> str:
    """'6 × 4', 'length 5' for one dimension, 'no dimensions' for a single number."""
    sizes = tuple(value.shape if isinstance(value, Tensor) else value)
    if len(sizes) > 1:
        return " × ".join(map(str, sizes))
    return f"length {sizes[0]}" if sizes else "no dimensions"


def dtype(value: torch.dtype) -> str:
    """'float32'."""
    return str(value).removeprefix("torch.")


def short(value: Any, limit: int = 70) -> str:
    """repr, cut in the middle of a sentence's patience."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def kind(value: Any) -> str:
    """What a value is, as a noun: 'a tensor of 6 × 4', 'the float 0.5', 'nothing (None)'."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Tensor):
        return f"a tensor of {shape(value)}"
    if isinstance(value, nn.Module):
        return f"a module ({type(value).__name__})"
    if isinstance(value, bool | int | float | str):
        return f"the {type(value).__name__} {short(value, 30)}"
    if isinstance(value, tuple | list | dict | set):
        name = next(each.__name__ for each in (tuple, list, dict, set) if isinstance(value, each))
        return f"a {name} of {len(value)}"
    return f"a {type(value).__name__}"


def describe(label: str, value: Any) -> str:
    """One argument of a case: 'W 6 × 4', 'rank = 2'. Empty for what needs no words (a random generator)."""
    if isinstance(value, torch.Generator):
        return ""
    if isinstance(value, Tensor):
        kept = "" if value.dtype == torch.float32 else f" in {dtype(value.dtype)}"
        return f"{label} {'of ' if value.ndim == 1 else ''}{shape(value)}{kept}"
    if isinstance(value, nn.Linear):
        bias = "" if value.bias is None else " with bias"
        return f"{label} = Linear({value.in_features}, {value.out_features}){bias} in {dtype(value.weight.dtype)}"
    if isinstance(value, nn.Module):
        return f"a {label}"
    if isinstance(value, float):
        return f"{label} = {value:.4g}"
    if isinstance(value, list | tuple) and len(repr(value)) > 70:
        return f"{len(value)} {label}"
    return f"{label} = {short(value)}"


def in_words(labels: tuple[str, ...], args: tuple) -> str:
    """All arguments of a case: 'W 6 × 4, rank = 2'."""
    parts = (describe(label, value) for label, value in zip(labels, args, strict=False))
    return ", ".join(part for part in parts if part)


def snapshot(value: Any) -> Any:
    """A copy that `change` can compare with the value later."""
    if isinstance(value, Tensor):
        return value.detach().clone(), value.requires_grad
    if isinstance(value, nn.Module):
        parts = dict(value.named_modules(remove_duplicate=False))
        flags = {name: module.training for name, module in parts.items()}
        return parts, flags, {name: (tensor, snapshot(tensor)) for name, tensor in _tensors(value)}
    return list(value) if isinstance(value, list) else None


def change(label: str, before: Any, value: Any) -> str:
    """What happened to `value` since `before = snapshot(value)`: 'changed W', or '' if nothing did."""
    if before is None:
        return ""
    if isinstance(value, Tensor):
        return _tensor_change(label, *before, value)
    if isinstance(value, nn.Module):
        return _module_change(label, *before, value)
    return "" if value == before else f"changed the list {label}"


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _tensor_change(label: str, values: Tensor, required: bool, now: Tensor) -> str:
    if now.shape != values.shape:
        return f"changed the shape of {label} from {shape(values)} to {shape(now)}"
    if now.dtype != values.dtype:
        return f"changed the dtype of {label} from {dtype(values.dtype)} to {dtype(now.dtype)}"
    if not torch.equal(now.detach(), values):
        return f"changed {label} itself (an operation in place, such as += or a name that ends in _)"
    if now.requires_grad != required:
        return f"switched requires_grad of {label} to {now.requires_grad}"
    return ""


def _module_change(label: str, parts: dict, flags: dict, tensors: dict, now: nn.Module) -> str:
    present = dict(now.named_modules(remove_duplicate=False))
    for name in parts | present:
        if parts.get(name) is not present.get(name):
            return f"replaced the module {name} of the {label}"
    current = dict(_tensors(now))
    for name in tensors | current:
        if name not in tensors or name not in current or tensors[name][0] is not current[name]:
            return f"replaced {name} of the {label}"
        if what := _tensor_change(f"{name} of the {label}", *tensors[name][1], current[name]):
            return what
    for name, training in flags.items():
        if present[name].training != training:
            return f"switched the {label} to {'train' if not training else 'eval'} mode"
    return ""
