"""Figures of training: curves over steps, and bars that compare results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from lora_lab.plots.style import COLOURS, figure, label_axes, legend_below, not_empty, styled, vector


@styled
def training_curves(
    histories: Mapping[str, Any],
    ylabel: str = "loss (nats per token)",
    log: bool = False,
    smooth: int = 1,
    title: str = "Training",
) -> Figure:
    """A quantity over training steps.

    histories: label -> a sequence of one value per step, counted from 1, or anything with `steps` and `loss` as
    keys or attributes. smooth: each point is the mean of the last `smooth` values, which the axis then says.
    Raises ValueError when there is no history, smooth < 1, or steps and values differ in number."""
    not_empty(histories, "histories")
    if smooth < 1:
        raise ValueError(f"smooth = {smooth}; the least is 1, no smoothing")
    fig, ax = figure()
    for label, history in histories.items():
        steps, values = _points(history, label)
        ax.plot(steps, _trailing_mean(values, smooth), label=label, markevery=max(1, len(values) // 8))
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    notes = [f"mean of the last {smooth} steps"] * (smooth > 1) + ["log scale"] * log
    label_axes(ax, title, "training step", ", ".join([ylabel, *notes]))
    legend_below(fig, ax)
    return fig


@styled
def bars(
    values: Mapping[str, float | tuple[float, float]],
    ylabel: str,
    percent: bool = False,
    title: str = "Results side by side",
) -> Figure:
    """Horizontal bars, one per label, each with its value written out.

    values: label -> value, or (mean, spread) with the spread drawn to both sides. ylabel: the quantity and its unit.
    percent: the values are shares from 0 to 1, shown as 0 % to 100 %. Raises ValueError when values is empty."""
    not_empty(values, "values")
    pairs = [v if isinstance(v, Sequence) else (v, 0.0) for v in values.values()]
    means, spreads = np.asarray(pairs, dtype=float).T
    fig, ax = figure(height=0.9 + 0.42 * len(pairs))
    rows = np.arange(len(pairs))
    ax.barh(rows, means, height=0.62, color=COLOURS[0])
    if spreads.any():
        shown = np.where(spreads > 0, spreads, np.nan)
        ax.errorbar(means, rows, xerr=shown, color="black", fmt="none", capsize=3)
    for row, mean, spread in zip(rows, means, spreads, strict=True):
        ax.annotate(_written(mean, spread, percent), (max(mean + spread, 0), row), (6, 0), **_BESIDE)
    ax.set_yticks(rows, list(values))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.axvline(0, color="#444444", linewidth=0.8, linestyle="-", marker="")
    if percent:
        ax.set_xlim(0, 1.26 if spreads.any() else 1.12)  # room for the number beside a full bar
        ax.set_xticks(np.linspace(0, 1, 6))
        ax.xaxis.set_major_formatter(PercentFormatter(1))
    else:
        ax.margins(x=0.14)
    label_axes(ax, title, ylabel, "")
    return fig


_BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "ha": "left", "fontsize": 9.5}


def _written(mean: float, spread: float, percent: bool) -> str:
    value = f"{100 * mean:.1f} %" if percent else f"{mean:.3g}".replace("-", "−")
    if not spread:
        return value
    return f"{value} ± {100 * spread:.1f}" if percent else f"{value} ± {spread:.2g}"


def _points(history: Any, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one history, whatever its form."""
    if isinstance(history, Mapping):
        values, steps = history["loss"], history.get("steps")
    else:
        values, steps = getattr(history, "loss", history), getattr(history, "steps", None)
    values = vector(values, label)
    steps = np.arange(1, len(values) + 1) if steps is None else vector(steps, f"{label}: steps")
    if len(steps) != len(values):
        raise ValueError(f"{label!r} has {len(values)} values for {len(steps)} steps")
    return steps, values


def _trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values; of all there are, at the beginning."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)
