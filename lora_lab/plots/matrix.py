"""Matrices as pictures: weights and their low-rank factors in proportion, and subspace similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from lora_lab.plots.style import DIVERGING, WIDTH, figure, label_axes, not_empty, styled, to_array

THINNEST = 0.07  # inches: a factor of rank 1 must still be visible
CHARACTER = 0.085  # inches, about, of a letter in a panel's label


@styled
def similarity_heatmap(
    phi: Any,
    title: str = "How much of one subspace lies in the other",
    xlabel: str = "j, leading directions of the second",
    ylabel: str = "i, leading directions of the first",
) -> Figure:
    """phi(i, j) as a heat map, as in figure 3 of the LoRA paper (Hu et al., 2021).

    phi: (i, j), entry [i - 1, j - 1] compares the first i directions of one with the first j of the other, 0 to 1.
    NaN (pairs left out, such as j < i) stays white. Raises ValueError when phi has not two axes or leaves [0, 1]."""
    phi = to_array(phi)
    known = phi[np.isfinite(phi)]
    if phi.ndim != 2 or known.size == 0:
        raise ValueError(f"phi has shape {phi.shape} and {known.size} finite values; a filled matrix is needed")
    if known.min() < -1e-4 or known.max() > 1 + 1e-4:
        raise ValueError(f"phi ranges from {known.min():.4g} to {known.max():.4g}; a similarity lies in [0, 1]")
    rows, cols = phi.shape
    tall = 5.5 * rows / cols
    fig, ax = figure(height=float(np.clip(tall, 2.0, 4.4)) + 0.9)
    ax.grid(False)
    ax.imshow(
        phi,
        norm=Normalize(0, 1),
        extent=(0.5, cols + 0.5, rows + 0.5, 0.5),
        interpolation="nearest",
        aspect="equal" if tall > 2 else "auto",  # a flat strip is stretched until its rows can be read
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    label_axes(ax, title, xlabel, ylabel)
    fig.colorbar(ax.images[0], ax=ax, label="φ (0 orthogonal, 1 contained)")
    return fig


@styled
def matrices(
    panels: Sequence[tuple[str, Any]], title: str = "The same scale for every matrix", limit: float | None = None
) -> Figure:
    """Matrices next to each other as pictures, sizes in proportion, one colour scale symmetric about zero.

    panels: (label, (rows, cols) matrix); a bare operator such as ("=", None) is written between the pictures.
    limit: value at the ends of the scale. When None, 99 % of all entries lie within it: a few outliers would
    otherwise turn the rest grey.
    Raises ValueError when there is no matrix, or one has not two axes."""
    not_empty(panels, "panels")
    drawn = [(label, None if m is None else to_array(m)) for label, m in panels]
    arrays = [m for _, m in drawn if m is not None]
    if not arrays or any(m.ndim != 2 or m.size == 0 for m in arrays):
        raise ValueError(f"shapes {[m.shape for m in arrays]}: every panel needs two axes that are not empty")
    limit = limit or float(np.quantile(np.abs(np.concatenate([m.ravel() for m in arrays])), 0.99)) or 1.0
    unit = _inches_per_entry(drawn)
    tallest = max(THINNEST, unit * max(m.shape[0] for m in arrays))
    fig = Figure(figsize=(WIDTH, tallest + 1.25))
    fig.text(0.012, 1 - 0.1 / (tallest + 1.25), title, weight="bold", size=11, va="top")
    slots = [_slot(label, m, unit) for label, m in drawn]
    left = max(0.15, (WIDTH - 0.95 - sum(slots) - 0.12 * len(slots)) / 2)
    for (label, matrix), slot in zip(drawn, slots, strict=True):
        _panel(fig, label, matrix, (left, slot, tallest), unit, limit)
        left += slot + 0.12
    _scale(fig, limit, tallest)
    return fig


def _slot(label: str, matrix: np.ndarray | None, unit: float) -> float:
    """Inches of width that a panel needs: its picture or its text, whichever is wider."""
    if matrix is None:
        return 0.25
    text = CHARACTER * max(len(label), len(_shape(matrix)))
    return max(THINNEST, unit * matrix.shape[1], text)


def _inches_per_entry(drawn: Sequence[tuple[str, np.ndarray | None]]) -> float:
    """The largest unit at which all slots fit side by side and none is taller than 3 inches."""
    room = WIDTH - 0.15 - 0.95 - 0.12 * len(drawn)  # margins, the colour scale, gaps
    unit = 3.0 / max(m.shape[0] for _, m in drawn if m is not None)
    while sum(_slot(label, m, unit) for label, m in drawn) > room and unit > 1e-4:
        unit *= 0.97
    return unit


def _shape(matrix: np.ndarray) -> str:
    return f"{matrix.shape[0]} × {matrix.shape[1]}"


def _panel(fig: Figure, label: str, matrix: np.ndarray | None, place: tuple, unit: float, limit: float) -> None:
    left, slot, tallest = place
    width, height = fig.get_size_inches()
    middle = (0.42 + tallest / 2) / height
    centre = (left + slot / 2) / width
    if matrix is None:
        fig.text(centre, middle, label, ha="center", va="center", size=15)
        return
    w, h = max(THINNEST, unit * matrix.shape[1]), max(THINNEST, unit * matrix.shape[0])
    ax = fig.add_axes((centre - w / 2 / width, middle - h / 2 / height, w / width, h / height))
    ax.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.6)
    fig.text(centre, middle + (h / 2 + 0.07) / height, label, ha="center", va="bottom")
    fig.text(centre, middle - (h / 2 + 0.07) / height, _shape(matrix), ha="center", va="top", size=9)


def _scale(fig: Figure, limit: float, tallest: float) -> None:
    width, height = fig.get_size_inches()
    bar = fig.add_axes(((width - 0.72) / width, 0.42 / height, 0.13 / width, max(tallest, 0.6) / height))
    picture = AxesImage(bar, cmap=DIVERGING, norm=Normalize(-limit, limit))
    fig.colorbar(picture, cax=bar, ticks=[-limit, 0, limit], format="%.2g", extend="both")
    bar.grid(False)
