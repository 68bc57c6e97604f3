"""A training run on disk: parameters, optimizer and history in one file, so that it goes on exactly where it was."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SAME_SHIFT = 1e-3  # how far apart, relative to its size, two computations of the same shift may be


class Fixed(NamedTuple):
    """Tensors that do not train. frozen: factors by name, put back on resuming. shifts: (A0, B0) by layer, compared."""

    frozen: dict[str, Tensor]
    shifts: dict[str, tuple[Tensor, Tensor]]


def save_checkpoint(path: Path, settings: dict, parameters: dict, optimizer, history, fixed: Fixed) -> None:
    """Write a checkpoint to `path`: beside first, then replaced. `history`: a dataclass."""
    state = {
        "settings": settings,
        "parameters": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "history": dataclasses.asdict(history),
        "fixed": tuple(fixed),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@torch.no_grad()
def resume(path: Path, settings: dict, parameters: dict, optimizer, fixed: Fixed) -> dict:
    """Put the checkpoint at `path` into the parameters and the optimizer, and return the fields of its history.

    Raises ValueError, with nothing changed, if it is unreadable or of a run with other settings.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        history = {key: list(values) for key, values in state["history"].items()}
        saved, shapes = dict(state["settings"]), {name: p.shape for name, p in state["parameters"].items()}
        optimizer_state, before = state["optimizer"], Fixed(*state["fixed"])
    except Exception as error:
        # Only its kind: torch's own words for a damaged file advise to switch weights_only off.
        reason = type(error).__name__
        raise ValueError(f"{path} is no readable checkpoint ({reason}): delete it to start afresh") from None
    other = [key for key in settings if saved.get(key) != settings[key]]
    if shapes != {name: p.shape for name, p in parameters.items()}:
        other.append("trained parameters")
    if before.frozen.keys() != fixed.frozen.keys():
        other.append("frozen factors")
    if before.shifts.keys() != fixed.shifts.keys() or any(
        _apart(before.shifts[name], shift) > SAME_SHIFT for name, shift in fixed.shifts.items()
    ):
        other.append("shifts of the base")
    if other:
        raise ValueError(f"{path} belongs to a run with other {', '.join(other)}: delete it, or name another file")
    optimizer.load_state_dict(optimizer_state)
    for name, parameter in parameters.items():
        parameter.copy_(state["parameters"][name])
    for name, factor in fixed.frozen.items():
        factor.copy_(before.frozen[name])
    return history


def _apart(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """‖B0 A0 - B0' A0'‖ / ‖B0 A0‖: the same for the same init, also if a singular vector came out negated."""
    (A, B), (A2, B2) = ([factor.cpu().double() for factor in pair] for pair in (first, second))
    if A.shape != A2.shape or B.shape != B2.shape:
        return float("inf")
    rows, columns = torch.cat([A, A2]), torch.cat([B, -B2], dim=1)

    def squared(left: Tensor, right: Tensor) -> Tensor:
        return ((left.T @ left) * (right @ right.T)).sum().clamp(min=0)

    return (squared(columns, rows) / squared(B, A)).sqrt().item()
