"""Figures over rank: the singular value spectrum, and a loss as the rank grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from lora_lab.plots.style import COLOURS, GREY, figure, label_axes, legend_below, not_empty, styled, to_array, vector


@styled
def singular_values(
    spectra: Mapping[str, Any],
    log: bool = True,
    mark_rank: int | None = None,
    title: str = "Singular values, largest first",
    ylabel: str = "singular value",
) -> Figure:
    """Spectra side by side. spectra: label -> (k,) singular values, in descending order.

    On a log scale zeros cannot be drawn and are left out. mark_rank: a vertical line behind that many values.
    Raises ValueError when there is no spectrum, or one is not one-dimensional."""
    not_empty(spectra, "spectra")
    fig, ax = figure()
    for label, values in spectra.items():
        values = vector(values, label)
        index = np.arange(1, len(values) + 1)
        drawn = np.where(values > 0, values, np.nan) if log else values
        ax.plot(index, drawn, label=label, markevery=max(1, len(values) // 12))
    if log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    if mark_rank is not None:
        ax.axvline(mark_rank + 0.5, color=GREY, linewidth=1.2, linestyle=":", marker="", label=f"rank {mark_rank}")
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_axes(ax, title, "index of the singular value", ylabel + (" (log scale)" if log else ""))
    legend_below(fig, ax)
    return fig


@styled
def loss_by_rank(
    ranks: Sequence[int],
    losses: Mapping[str, Any],
    references: Mapping[str, float] | None = None,
    title: str = "Loss by rank",
    ylabel: str = "loss (nats per token)",
    xlabel: str = "rank",
) -> Figure:
    """A loss against the rank, with horizontal lines to compare with.

    ranks: (n,), 0 allowed. losses: label -> (n,), or (repeats, n): then the mean, with a band from least to greatest.
    references: label -> height of a horizontal line, such as the loss of the unchanged model.
    Raises ValueError when there is no curve, or one has not as many values as there are ranks."""
    not_empty(losses, "losses")
    curves = {label: np.atleast_2d(to_array(values)) for label, values in losses.items()}
    for label, values in curves.items():
        if values.shape[-1] != len(ranks):
            raise ValueError(f"{label!r} has {values.shape[-1]} values for {len(ranks)} ranks")
    fig, ax = figure(height=3.6)
    for i, (label, values) in enumerate(curves.items()):
        ax.plot(ranks, values.mean(0), label=label)
        if len(values) > 1:
            ax.fill_between(ranks, values.min(0), values.max(0), color=COLOURS[i % len(COLOURS)], alpha=0.18, lw=0)
    for i, (label, height) in enumerate((references or {}).items()):
        ax.axhline(height, color=GREY, linewidth=1.3, linestyle=("--", ":", "-.")[i % 3], marker="", label=label)
    rank_axis(ax, ranks)
    label_axes(ax, title, xlabel, ylabel)
    legend_below(fig, ax)
    return fig


def rank_axis(ax: Axes, ranks: Sequence[int]) -> None:
    """A base-2 logarithmic axis with a tick at each rank; linear below 1 where rank 0 is among them."""
    if min(ranks) < 1:
        ax.set_xscale("symlog", base=2, linthresh=1)
        ax.set_xlim(min(ranks) - 0.2, 1.2 * max(ranks))
    else:
        ax.set_xscale("log", base=2)
    # Ranks that lie closer than about a sixth of an octave would write over each other.
    kept = [r for i, r in enumerate(ranks) if i == 0 or r >= 1.25 * ranks[i - 1] or ranks[i - 1] < 1]
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
