"""The house style: one palette, one set of rcParams, and the helpers that every figure function shares."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours (2008) without yellow, which vanishes on white; the order alternates dark and light.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"
WIDTH = 7.6  # inches: the column of a notebook at 100 CSS pixels per inch
# Blue, grey, yellow: a diverging map whose lightness only rises, so that it also reads in greyscale. In 33 steps,
# with zero in the middle of one: pictures of weights are mostly noise, and halve their size this way.
DIVERGING = matplotlib.colormaps["cividis"].resampled(33)

_RC: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.labelcolor": "black",
    "axes.labelsize": 10,
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=LINES) + cycler(marker=MARKERS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": "black",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",  # stays readable when the notebook around it is dark
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "image.cmap": "cividis",
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.facecolor": "white",
    "text.color": "black",
    "xtick.color": "#444444",
    "xtick.labelcolor": "black",
    "ytick.color": "#444444",
    "ytick.labelcolor": "black",
}

P = ParamSpec("P")
R = TypeVar("R")


def style():
    """Context manager with the house style: `with style(): fig, ax = figure()`.

    It starts from matplotlib's own defaults, so a reader's matplotlibrc or an earlier `rcParams` change makes no
    difference, nesting it changes nothing, and everything is put back on leaving."""
    return matplotlib.rc_context({**_defaults(), **_RC})


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a figure function in the house style."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with style():
            return draw(*args, **kwargs)

    return inside


def figure(width: float = WIDTH, height: float = 3.4, **subplots: Any) -> tuple[Figure, Any]:
    """A figure that pyplot knows nothing of, and its axes.

    width, height: inches (100 CSS pixels each). subplots: as for `Figure.subplots` (nrows, ncols, sharey, ...).
    Call it inside `with style():`, and show it with `show(fig, alt)`."""
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots(**subplots)


def label_axes(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Name the axes; the title is wrapped to the figure's width, the label of the y axis to its height."""
    width, height = ax.figure.get_size_inches()
    ax.set_title("\n".join(textwrap.wrap(title, int(width * 9.6))))
    ax.set_xlabel(xlabel)
    ax.set_ylabel("\n".join(textwrap.wrap(ylabel, int(height * 10))))


def legend_below(fig: Figure, ax: Axes) -> None:
    """A legend under the axes, where it can never cover data; the figure grows by the rows it needs.

    Nothing when there is nothing to tell apart."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) < 2:
        return
    width, height = fig.get_size_inches()
    entry = 0.75 + 0.072 * max(map(len, labels))  # inches: the sample of the line, and the text
    columns = max(1, min(len(labels), int(width / entry)))
    fig.legend(handles, labels, loc="outside lower center", ncols=columns)
    fig.set_size_inches(width, height + 0.2 * -(-len(labels) // columns))


def vector(values: Any, name: str) -> np.ndarray:
    """A tensor or a sequence as a one-dimensional float array.

    Raises ValueError when it is empty or has more than one axis."""
    array = to_array(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; one axis with at least one value is needed")
    return array


def to_array(values: Any) -> np.ndarray:
    """A tensor of any dtype and device, or a nested sequence, as a float64 array."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu()
    return np.asarray(values, dtype=np.float64)


def not_empty(values: Any, name: str) -> None:
    """Raises ValueError when there is nothing to draw."""
    if not values:
        raise ValueError(f"{name} is empty: nothing to draw")


@functools.cache
def _defaults() -> dict[str, Any]:
    # The backend is the caller's business, and "date.epoch" may not change once dates have been drawn.
    skip = {"backend", "backend_fallback", "date.epoch", "interactive", "toolbar"}
    return {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in skip}
