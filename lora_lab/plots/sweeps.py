"""Figures of sweeps: a result over a setting with its spread, loss over learning rate, histories side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from lora_lab.plots.style import (
    COLOURS,
    GREY,
    LINES,
    MARKERS,
    figure,
    label_axes,
    legend_below,
    not_empty,
    styled,
    to_array,
)


@styled
def sweep(
    curves: Mapping[str, Mapping[float, Any]],
    xlabel: str,
    ylabel: str,
    title: str,
    log: bool = True,
    even: bool = False,
    expected: Mapping[str, Mapping[float, float]] | None = None,
    references: Mapping[str, Any] | None = None,
    single: bool = False,
) -> Figure:
    """A result over a setting such as the rank: the mean over the seeds, and a band from the least to the greatest.

    single: in place of means and bands, a line for each seed.

    curves: label -> {setting: value or the values of several seeds}; the settings stand on an axis of base 2,
    or, with `even`, on a plain one.
    expected: label -> {setting: value}, thin dotted lines in front, such as a prediction. references: label -> values
    of seeds: a horizontal line at their mean, with its band. Raises ValueError when there is no curve or a curve is
    empty."""
    not_empty(curves, "curves")
    fig, ax = figure(height=3.7)
    for i, (label, points) in enumerate(curves.items()):
        not_empty(points, label)
        x, rows = _sorted(points)
        if single:
            style = {
                "color": COLOURS[i % len(COLOURS)],
                "ls": LINES[i % len(LINES)],
                "marker": MARKERS[i % len(MARKERS)],
            }
            for seed, losses in enumerate(zip(*rows, strict=True)):
                ax.plot(x, losses, **style, ms=4, lw=1.4, label=None if seed else label)
            continue
        ax.plot(x, [row.mean() for row in rows], label=label)
        if any(len(row) > 1 for row in rows):
            low, high = [row.min() for row in rows], [row.max() for row in rows]
            ax.fill_between(x, low, high, color=COLOURS[i % len(COLOURS)], alpha=0.2, lw=0)
    for i, points in enumerate((expected or {}).values()):
        x, rows = _sorted(points)
        label = "predicted" if i == 0 else None
        ax.plot(x, [row.mean() for row in rows], color="black", ls=":", marker="", lw=1.6, zorder=4, label=label)
    for i, (label, values) in enumerate((references or {}).items()):
        row = np.atleast_1d(to_array(values))
        ax.axhline(row.mean(), color=GREY, lw=1.3, ls=("--", "-.")[i % 2], marker="", label=label)
        ax.axhspan(row.min(), row.max(), color=GREY, alpha=0.15, lw=0)
    if even:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    else:
        _base_two(ax, sorted({x for points in curves.values() for x in points}))
    if log:
        _log_y(ax)
    label_axes(ax, title, xlabel, _log_label(ylabel) if log else ylabel)
    legend_below(fig, ax)
    return fig


@styled
def rates(
    curves: Mapping[str, Mapping[float, float]],
    title: str,
    ylabel: str = "validation loss (nats per token)",
    xlabel: str = "peak learning rate, log scale",
) -> Figure:
    """Loss over learning rate, one line for each way to train, a large ring at the lowest point.

    curves: label -> {rate: loss}; None or NaN where training went astray (left out). Raises ValueError without any."""
    not_empty(curves, "curves")
    fig, ax = figure(height=3.7)
    for label, points in curves.items():
        known = {rate: loss for rate, loss in sorted(points.items()) if loss is not None and np.isfinite(loss)}
        not_empty(known, label)
        (line,) = ax.plot(list(known), list(known.values()), label=label)
        best = min(known, key=known.get)
        ax.plot(best, known[best], ls="", marker="o", ms=13, mfc="none", mec=line.get_color(), mew=1.6)
    ax.set_xscale("log")
    _log_y(ax)
    label_axes(ax, title, xlabel, _log_label(ylabel))
    legend_below(fig, ax)
    return fig


@styled
def histories(runs: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Runs side by side: training loss with validation loss above, gradient norm below, one column a run.

    runs: label -> {"loss": [...], "grad_norm": [...], "watched": {step: validation loss}}; a value that is not finite
    is marked by a cross at the top of its panel. Raises ValueError when there is no run."""
    not_empty(runs, "runs")
    fig, axes = figure(height=4.6, nrows=2, ncols=len(runs), sharex=True, sharey="row", squeeze=False)
    for column, (label, run) in zip(axes.T, runs.items(), strict=True):
        top, bottom = column
        loss, norm = to_array(run["loss"]), to_array(run["grad_norm"])
        _curve(top, loss, COLOURS[0], "-", "training loss")
        seen = {int(step): value for step, value in run.get("watched", {}).items()}
        look = {"color": COLOURS[3], "linestyle": "", "marker": "D", "markersize": 4}
        top.plot(list(seen), list(seen.values()), label="validation loss", **look)
        _curve(bottom, norm, COLOURS[2], "-", "gradient norm")
        top.set_title("\n".join(label.split(" ", 1)), size=10)
        bottom.set_xlabel("step")
        bottom.xaxis.set_major_locator(MaxNLocator(3, integer=True, prune="upper"))
    for ax, name in ((axes[0, 0], "loss"), (axes[1, 0], "gradient norm")):
        _log_y(ax)
        ax.set_ylabel(f"{name}\n(log scale)")
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
    lines = {line.get_label(): line for ax in axes.flat for line in ax.lines if not line.get_label().startswith("_")}
    fig.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines))
    return fig


def _curve(ax: Axes, values: np.ndarray, colour: str, style: str, label: str) -> None:
    steps = np.arange(1, len(values) + 1)
    ax.plot(
        steps, np.where(np.isfinite(values), values, np.nan), color=colour, ls=style, marker="", lw=1.5, label=label
    )
    if (bad := steps[~np.isfinite(values)]).size:
        high = ax.get_xaxis_transform()  # steps across, shares of the panel up
        ax.plot(
            bad, np.full(len(bad), 0.94), transform=high, color="black", ls="", marker="X", ms=7, label="not a number"
        )


def _sorted(points: Mapping[float, Any]) -> tuple[list[float], list[np.ndarray]]:
    return sorted(points), [np.atleast_1d(to_array(points[x])) for x in sorted(points)]


def _base_two(ax: Axes, ticks: Sequence[float]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _log_label(label: str) -> str:
    """Short enough for one line: 'loss (nats per token, log)'."""
    return f"{label[:-1]}, log)" if label.endswith(")") else f"{label} (log)"


def _log_y(ax: Axes) -> None:
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    span = high / low
    subs = (1.0,) if span > 100 else (1, 3) if span > 15 else (1, 2, 5) if span > 6 else (1, 1.5, 2, 3, 4, 5, 7)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
