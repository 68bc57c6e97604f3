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

    cells: `Search.tuned()`. Where one set of targets has one rank with several alphas, or with and without rslora,
    each of these has its own line, named so. Raises ValueError when there is no cell, or where two would share a point.
    """
    not_empty(cells, "cells")
    curves: dict[str, dict[int, list[float]]] = {}
    telling = _telling(cells)
    for cell in cells:
        points = curves.setdefault(_label(cell, telling), {})
        if cell["rank"] in points:
            raise ValueError(
                f"two cells of {cell['label']!r} at rank {cell['rank']} and alpha {cell.get('alpha')} "
                "differ in neither alpha nor rslora: they would share a point, so pass one of them"
            )
        points[cell["rank"]] = cell["losses"]
    ylabel = "validation loss (nats per token)"
    if len(curves) > 1 and all(len(points) == 1 for points in curves.values()):
        values = {}
        for label, points in curves.items():
            ((rank, losses),) = points.items()
            mean = sum(losses) / len(losses)
            values[f"{label}\nrank {rank}"] = (mean, max(abs(loss - mean) for loss in losses))
        return bars(values, ylabel + ", mean and largest deviation", title=title)
    return sweep(curves, "rank (log scale)", ylabel, title)


def _telling(cells: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Which of alpha and rslora differ between cells of the same label and rank, so that a label must tell them."""
    seen: dict[tuple[str, int], Mapping[str, Any]] = {}
    pairs = [(cell, seen.setdefault((cell["label"], cell["rank"]), cell)) for cell in cells]
    return tuple(key for key in ("alpha", "rslora") if any(one.get(key) != other.get(key) for one, other in pairs))


def _label(cell: Mapping[str, Any], telling: Sequence[str]) -> str:
    parts = [cell["label"]]
    if "alpha" in telling:
        parts.append(f"alpha {cell['alpha']:g}")
    if "rslora" in telling:
        parts.append("α/√r" if cell["rslora"] else "α/r")
    return ", ".join(parts)
