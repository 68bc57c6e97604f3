"""The figure of a search over ranks and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lora_lab.plots.style import not_empty
from lora_lab.plots.sweeps import sweep
from lora_lab.plots.training import bars


def search_plot(cells: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Validation loss over the rank, a line for each set of targets with its spread over the seeds; bars where every
    set of targets has one rank only.

    cells: `Search.tuned()`. Raises ValueError when there is none."""
    not_empty(cells, "cells")
    curves: dict[str, dict[int, list[float]]] = {}
    for cell in cells:
        curves.setdefault(cell["label"], {})[cell["rank"]] = cell["losses"]
    ylabel = "validation loss (nats per token)"
    if len(curves) > 1 and all(len(points) == 1 for points in curves.values()):
        values = {}
        for label, points in curves.items():
            ((rank, losses),) = points.items()
            mean = sum(losses) / len(losses)
            values[f"{label}\nrank {rank}"] = (mean, max(abs(loss - mean) for loss in losses))
        return bars(values, ylabel + ", mean and largest deviation", title=title)
    return sweep(curves, "rank (log scale)", ylabel, title)
