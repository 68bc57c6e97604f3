"""A training run on disk: parameters, optimizer and history in one file, so that it goes on exactly where it was."""

import dataclasses
import os
from pathlib import Path

import torch


def save_checkpoint(path: Path, settings: dict, parameters: dict, optimizer, history) -> None:
    """Write a checkpoint to `path`: beside first, then replaced. `history`: a dataclass."""
    state = {
        "settings": settings,
        "parameters": {name: p.detach() for name, p in parameters.items()},
        "optimizer": optimizer.state_dict(),
        "history": dataclasses.asdict(history),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@torch.no_grad()
def resume(path: Path, settings: dict, parameters: dict, optimizer) -> dict:
    """Put the checkpoint at `path` into the parameters and the optimizer, and return the fields of its history.

    Raises ValueError, with nothing changed, if it is unreadable or of a run with other settings.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        history = {key: list(values) for key, values in state["history"].items()}
        saved, shapes = dict(state["settings"]), {name: p.shape for name, p in state["parameters"].items()}
        optimizer_state = state["optimizer"]
    except Exception as error:
        # Only its kind: torch's own words for a damaged file advise to switch weights_only off.
        reason = type(error).__name__
        raise ValueError(f"{path} is no readable checkpoint ({reason}): delete it to start afresh") from None
    other = [key for key in settings if saved.get(key) != settings[key]]
    if shapes != {name: p.shape for name, p in parameters.items()}:
        other.append("trained parameters")
    if other:
        raise ValueError(f"{path} belongs to a run with other {', '.join(other)}: delete it, or name another file")
    optimizer.load_state_dict(optimizer_state)
    for name, parameter in parameters.items():
        parameter.copy_(state["parameters"][name])
    return history
