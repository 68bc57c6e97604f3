"""Which layers to adapt: names, patterns, "all-linear", by PEFT's rules, and the refusal of what matches nothing."""

import re
from collections.abc import Iterable

from torch import nn

from lora_lab.base import is_linear

ALL_LINEAR = "all-linear"


def matches(name: str, targets: str | Iterable[str]) -> bool:
    """Does the module path `name` match, by PEFT's rule?

    A string is a regular expression that must match the whole path. A list holds names, each the whole path or its
    end after a dot: "q_proj" matches "layers.0.q_proj" and "q_proj", but neither "seq_proj" nor "q_proj.base".
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


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
