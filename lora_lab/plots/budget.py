"""Figures of costs: stacked bars of bytes by kind, and a cost against what it grows with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from lora_lab.plots.style import COLOURS, GREY, figure, label_axes, legend_below, not_empty, styled, to_array

HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "++++", "oo")


def kind_style(index: int) -> dict[str, Any]:
    """Colour and hatch of the kind at `index`: told apart in greyscale too."""
    colours = (*COLOURS[:-1], "#444444", "#aaaaaa")
    return {"facecolor": colours[index % len(colours)], "hatch": HATCHES[index % len(HATCHES)], "edgecolor": "white"}


@styled
def stacked_bars(
    bars: Mapping[str, Mapping[str, float]],
    xlabel: str,
    title: str,
    limits: Mapping[str, float] | None = None,
    share: bool = False,
) -> Figure:
    """A horizontal bar for each label, its parts end to end, the total behind it.

    bars: label -> part -> length; a part that is missing or zero takes no room. limits: label -> a vertical line, such
    as a GPU's memory. share: draw every bar to its own total, as percentages. The legend names what is wide enough to
    be seen in some bar.
    Raises ValueError when there is nothing to draw, or a length is negative."""
    not_empty(bars, "bars")
    named = list(dict.fromkeys(kind for parts in bars.values() for kind in parts))
    kinds = {kind: i for i, kind in enumerate(named) if any(parts.get(kind) for parts in bars.values())}
    if any(size < 0 for parts in bars.values() for size in parts.values()):
        raise ValueError("a part of a bar is negative")
    fig, ax = figure(height=1.2 + 0.36 * len(bars))
    totals = np.array([sum(parts.values()) for parts in bars.values()], dtype=float)
    scale = 100 / totals if share else np.ones(len(bars))
    rows, left = np.arange(len(bars)), np.zeros(len(bars))
    for kind, i in kinds.items():
        sizes = scale * [parts.get(kind, 0) for parts in bars.values()]
        seen = max(sizes) > 0.004 * max(scale * totals)
        ax.barh(
            rows,
            sizes,
            left=left,
            height=0.68,
            label=kind if seen else "_too narrow to see",
            linewidth=0.6,
            **kind_style(i),
        )
        left += sizes
    if not share:
        for row, total in zip(rows, totals, strict=True):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            place = {"xy": (total, row), "xytext": (4, 0), "textcoords": "offset points"}
            ax.annotate(f"{total:,.1f}", **place, va="center", size=9, bbox=box, zorder=5)
    for i, (label, place) in enumerate((limits or {}).items()):
        look = {"linestyle": ("--", ":", "-.")[i % 3], "marker": "", "linewidth": 1.4}
        ax.axvline(place, color="black", label=label, **look)
    ax.set_yticks(rows, list(bars))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, 100 if share else 1.12 * max([*totals, *(limits or {}).values()]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    label_axes(ax, title, xlabel, "")
    legend_below(fig, ax)
    return fig


@styled
def cost_curves(
    x: Sequence[float],
    curves: Mapping[str, Any],
    xlabel: str,
    ylabel: str,
    title: str,
    references: Mapping[str, float] | None = None,
) -> Figure:
    """Costs against what they grow with, both axes logarithmic, with horizontal lines to compare with.

    x: (n,). curves: label -> (n,). references: label -> height.
    Raises ValueError when there is no curve, or one has not as many values as x."""
    not_empty(curves, "curves")
    fig, ax = figure(height=3.3)
    for label, values in curves.items():
        values = to_array(values)
        if values.shape != (len(x),):
            raise ValueError(f"{label!r} has shape {values.shape} for {len(x)} places")
        ax.plot(x, values, label=label, markevery=max(1, len(x) // 10))
    for i, (label, height) in enumerate((references or {}).items()):
        ax.axhline(height, color=GREY, linewidth=1.3, linestyle=("--", ":", "-.")[i % 3], marker="", label=label)
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_locator(FixedLocator(x[:: -(-len(x) // 8)]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    label_axes(ax, title, xlabel, ylabel)
    legend_below(fig, ax)
    return fig
