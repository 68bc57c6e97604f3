"""Questions to the record of inits: how soon was a target reached, and whose spread does not meet the default's?

`part` is record()["plain"], ["nf4"] or ["longer"]: init -> what was measured. `cell` is one of its values.
"""

import statistics
from collections.abc import Mapping

from lora_lab.init.evidence import apart

ABSOLUTE = 0.5  # nats per token, fixed before the runs were made
DEFAULT_S_LAST = "the default's last"


def targets(part: Mapping[str, Mapping]) -> dict[str, float]:
    """The two targets of a part: the default's last watched loss (the mean of its seeds), and half a nat."""
    last = list(part["default"]["watched"].values())[-1]
    return {DEFAULT_S_LAST: statistics.fmean(last), f"{ABSOLUTE:g}": ABSOLUTE}


def steps_to(cell: Mapping, target: float) -> list[int | None]:
    """For each seed the first watched step of a validation loss of `target` or less; None if none came."""
    curves = zip(*cell["watched"].values(), strict=True)
    steps = [int(step) for step in cell["watched"]]
    return [next((s for s, loss in zip(steps, curve, strict=True) if loss <= target), None) for curve in curves]


def seconds_to(cell: Mapping, target: float) -> list[float | None]:
    """The same in processor seconds of one core, the set-up of the init included."""
    seconds = zip(steps_to(cell, target), cell["seconds_per_step"], strict=True)
    return [None if steps is None else cell["setup_seconds"] + steps * each for steps, each in seconds]


def table(part: Mapping[str, Mapping]) -> list[dict]:
    """A row for each init, the lowest mean test loss first.

    mean and range of the test loss; exact match; stories loss (forgetting); median steps and seconds to the default's
    last loss (None unless most seeds got there); set-up seconds and bytes; `beyond`: is its test loss apart from the
    default's (-1 better, 1 worse, 0 within the spread)?
    """
    target = targets(part)[DEFAULT_S_LAST]
    rows = []
    for name, cell in part.items():
        losses = cell["test_loss"]
        rows.append(
            {
                "init": name,
                "lr": cell["lr"],
                "test_loss": statistics.fmean(losses),
                "least": min(losses),
                "most": max(losses),
                "beyond": 0 if name == "default" else apart(losses, part["default"]["test_loss"]),
                "exact": statistics.fmean(cell["exact"]),
                "stories_loss": statistics.fmean(cell["stories_loss"]),
                "reading": statistics.fmean(cell["reading"]),
                "steps": _median(steps_to(cell, target)),
                "seconds": _median(seconds_to(cell, target)),
                "setup_seconds": cell["setup_seconds"],
                "setup_peak_bytes": cell["setup_peak_bytes"],
            }
        )
    return sorted(rows, key=lambda row: row["test_loss"])


def _median(values: list[float | None]) -> float | None:
    """The middle value (of an even number the upper one), where None is more than any number."""
    ordered = sorted(values, key=lambda value: (value is None, value or 0))
    return ordered[len(ordered) // 2]
