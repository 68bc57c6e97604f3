"""Figures of initializations: a map of all of them, where a start lies in W, and what became of the runs.

`part` is a part of the record: init -> {"watched": {step: [one loss a seed]}, "test_loss": [...], ...}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lora_lab.init.table import INITS
from lora_lab.plots.style import COLOURS, GREY, WIDTH, figure, not_empty, styled, to_array
from lora_lab.plots.sweeps import _log_y

# What A and B are, in a few words. What each reads and does to W comes from the table of inits.
NOTES = {
    "default": "A uniform, B = 0",
    "gaussian": "A normal, B = 0",
    "orthogonal": "A, B random, BA = 0",
    "random": "A, B random, BA ≠ 0",
    "pissa": "largest singular\ntriplets of W",
    "olora": "first columns of\nW = QR",
    "mica": "B: smallest singular\nvectors, fixed; A = 0",
    "corda": "singular triplets of W·C,\nC covariance of inputs",
    "eva": "A: principal directions\nof inputs; B = 0",
    "lora_ga": "singular vectors of\nthe gradient of W",
    "loftq": "what 4 bits lost of W",
}
READS = {"nothing": "nothing", "weight": "the weight W", "inputs": "inputs, on data", "gradient": "gradient, on data"}
BASES = {"kept": "W, as it is", "residual": "W − s·BA", "quantized": "codes of\nW − s·B₀A₀"}


@styled
def init_map(title: str = "What an init reads, and what it does to the base weight") -> Figure:
    """Every init of the table in a grid: what it reads (columns), what becomes of the base (rows)."""
    grid = {(base, needs): [] for base in BASES for needs in READS}
    for name, recipe in INITS.items():
        grid[recipe.base, recipe.needs].append(name)
    heights = {base: max(sum(_rows(name) for name in grid[base, needs]) for needs in READS) for base in BASES}
    total = sum(heights.values()) + 0.35 * len(heights)
    fig = Figure(figsize=(WIDTH, 0.7 + 0.19 * (total + 3)))
    ax = fig.add_axes((0.005, 0.01, 0.99, 1 - 0.35 / fig.get_figheight()))
    ax.set(xlim=(0, 1), ylim=(total + 1.3, -1.7))
    ax.axis("off")
    fig.text(0.01, 1 - 0.08 / fig.get_figheight(), title, weight="bold", size=11, va="top")
    left, wide = 0.128, 0.218
    ax.text(0.005, -0.85, "base becomes", va="center", size=9)
    ax.text(
        left - 0.008, total + 0.75, "Dashed: before the first step the model does not compute W.", va="center", size=8.5
    )
    for column, words in enumerate(READS.values()):
        ax.text(left + wide * (column + 0.5), -0.85, f"reads {words}", ha="center", va="center", size=9)
    top = 0.0
    for base, words in BASES.items():
        ax.axhline(top - 0.02, color="#bbbbbb", lw=0.8, marker="", ls="-")
        ax.text(0.005, top + heights[base] / 2 + 0.17, words, va="center", size=9, weight="bold")
        for column, needs in enumerate(READS):
            y = top + 0.2
            for name in grid[base, needs]:
                y = _entry(ax, name, left + wide * column + 0.006, y, wide - 0.012)
        top += heights[base] + 0.35
    return fig


def _rows(name: str) -> float:
    return 1.55 + 0.95 * (1 + NOTES[name].count("\n"))


def _entry(ax: Axes, name: str, x: float, y: float, width: float) -> float:
    """One box; returns where the next may begin. A dashed edge: the first step starts from another function than W."""
    high = _rows(name) - 0.3
    line = "-" if INITS[name].no_op else "--"
    box = FancyBboxPatch((x, y), width, high, boxstyle="square,pad=0", fc="#f2f6fa", ec=COLOURS[0], ls=line, lw=1)
    ax.add_patch(box)
    ax.text(x + 0.008, y + 0.22, name, va="top", size=9, weight="bold")
    ax.text(x + 0.008, y + 1.2, NOTES[name], va="top", size=8, linespacing=1.1)
    return y + _rows(name)


class Shares(NamedTuple):
    """Of A's energy and of B's, the share in each group of singular directions of W, from the largest value down.

    A, B: (groups + 1,), the last is what lies outside W's k = min(out, in) directions. B None: B is zero; A likewise.
    """

    A: np.ndarray | None
    B: np.ndarray | None


def directions(weight: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (out, k), s (k,), Vᵀ (k, in) of a weight (out, in), in fp64."""
    return torch.linalg.svd(torch.as_tensor(weight).detach().double(), full_matrices=False)


def shares(U: torch.Tensor, Vh: torch.Tensor, A: Any, B: Any, groups: int) -> Shares:
    """‖A v‖² / ‖A‖² and ‖Bᵀ u‖² / ‖B‖² summed over `groups` groups of neighbouring directions, and the rest."""
    found = []
    for factor, basis in ((torch.as_tensor(A), Vh), (torch.as_tensor(B).T, U.T)):
        factor = factor.detach().to(basis.dtype)
        whole = factor.square().sum()
        if not whole:
            found.append(None)
            continue
        each = (factor @ basis.T).square().sum(0) / whole  # (k,)
        parts = [part.sum() for part in torch.tensor_split(each, groups)]
        found.append(np.array([float(part) for part in parts] + [max(0.0, 1 - float(each.sum()))]))
    return Shares(*found)


@styled
def spectrum_map(
    weight: Any,
    starts: Mapping[str, Any],
    groups: int = 16,
    title: str = "Where each start lies among the singular directions of W",
) -> Figure:
    """A row for each start: the share of A's energy over W's right singular directions, and of B's over the left ones.

    weight: (out, in). starts: label -> (A (rank, in), B (out, rank)) or anything whose first two items these are.
    groups: the k = min(out, in) directions are taken together in so many groups, the largest singular values first; a
    bar behind a gap is what lies outside all of them, and a dotted line what a random direction would have. Heights
    stand on a square-root scale, so that small shares can be seen.
    Raises ValueError when there is no start, or more groups than directions."""
    not_empty(starts, "starts")
    U, _, Vh = directions(weight)
    k = Vh.shape[0]
    if not 1 <= groups <= k:
        raise ValueError(f"groups must be 1 to {k}, the directions of a weight {tuple(weight.shape)}, got {groups}")
    fig, axes = figure(height=1.15 + 0.5 * len(starts), nrows=len(starts), ncols=2, squeeze=False)
    widths = Vh.shape[1], U.shape[0]
    for row, (label, start) in zip(axes, starts.items(), strict=True):
        found = shares(U, Vh, start[0], start[1], groups)
        for ax, name, values, width in zip(row, "AB", found, widths, strict=True):
            share_axes(ax, groups, outside=width > k, labels=ax in axes[-1])
            if values is None:
                ax.text(0.5, 0.5, f"{name} = 0", transform=ax.transAxes, ha="center", va="center", size=9, color=GREY)
                continue
            x = np.append(np.arange(groups), groups + OUTSIDE)
            ax.bar(x, values, width=0.9, color=COLOURS[0 if name == "A" else 3])
            ax.plot([-0.5, groups - 0.5], [k / groups / width] * 2, color="black", ls=":", lw=1, marker="")
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
    for ax, words in zip(axes[0], ("A: right singular vectors", "B: left singular vectors"), strict=True):
        ax.set_title(words, size=10)
    notes = f"{k} directions in {groups} groups", "dotted: a random direction"
    for ax, words in zip(axes[-1], notes, strict=True):
        ax.set_xlabel(words, size=9, labelpad=14)
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
    return fig


OUTSIDE = 2.6  # groups between the last bar and that of what lies outside


def share_axes(ax: Axes, groups: int, outside: bool, labels: bool = True) -> None:
    """Axes for shares, 0 to 100 % on a square-root scale, over groups of singular directions and what is `outside`."""
    ax.grid(False)
    ax.set_yscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set_ylim(0, 1.1)
    ax.set_xlim(-0.9, groups + OUTSIDE + 0.9)
    ax.set_yticks([0, 0.25, 1], ["0", "25 %", "100 %"], size=7.5)
    ticks = {-0.5: ("largest", "left"), groups - 0.5: ("smallest", "right")}
    if outside:
        ticks[groups + OUTSIDE + 0.5] = ("outside", "right")
        ticks[groups - 2.5] = ticks.pop(groups - 0.5)
    ax.set_xticks([])
    for x, (words, side) in ticks.items() if labels else ():
        ax.annotate(
            words,
            (x, 0),
            (0, -3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha=side,
            va="top",
            size=8,
        )


@styled
def convergence(
    part: Mapping[str, Mapping],
    names: Sequence[str] | None = None,
    target: float | None = None,
    title: str = "Validation loss while training, each init beside the default",
    ylabel: str = "validation loss\n(nats, log)",
) -> Figure:
    """A panel for each init but the default: its loss over the steps, with the default's in grey dashes behind it.

    Lines are means of the seeds, bands reach from the least to the greatest. names: which inits (None: all). target: a
    dotted line across. Raises ValueError for a name that `part` does not hold, and without anything but the default."""
    names = [name for name in (part if names is None else names) if name != "default"]
    not_empty(names, "names")
    if missing := [name for name in [*names, "default"] if name not in part]:
        raise ValueError(f"not recorded: {', '.join(missing)}; known: {', '.join(part)}")
    columns = min(len(names), 5 if len(names) > 8 else 4)
    rows = -(-len(names) // columns)
    fig, axes = figure(height=0.75 + 1.55 * rows, nrows=rows, ncols=columns, sharex=True, sharey=True, squeeze=False)
    for i, ax in enumerate(axes.flat):
        if i >= len(names):
            ax.axis("off")
            continue
        for name, colour, line in (("default", GREY, "--"), (names[i], COLOURS[0], "-")):
            steps = [int(step) for step in part[name]["watched"]]
            losses = to_array(list(part[name]["watched"].values()))
            ax.plot(steps, losses.mean(1), color=colour, ls=line, marker="", lw=1.5, label=name)
            ax.fill_between(steps, losses.min(1), losses.max(1), color=colour, alpha=0.25, lw=0)
        if target is not None:
            ax.axhline(target, color="black", ls=":", lw=1, marker="")
        ax.set_title(names[i], size=10)
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        if i + columns >= len(names):
            ax.set_xlabel("step")
            ax.tick_params(labelbottom=True)
    _log_y(axes[0, 0])
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel, size=9)
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
    handles = axes[0, 0].lines[:2]
    fig.legend(handles[::-1], ["the init named above", "default"], loc="outside lower center", ncols=2)
    return fig


@styled
def outcome(
    part: Mapping[str, Mapping],
    base: Mapping[str, float] | None = None,
    title: str = "After training: what was learned, and what was forgotten",
) -> Figure:
    """A row for each init, the best mean test loss on top: test loss, exact match, and loss on the base's own stories.

    A dot is a seed, a bar their mean; the default's range runs through as a grey band. base: {"stories_loss": ...} of
    the base before training, a dotted line. Raises ValueError when nothing was recorded."""
    not_empty(part, "part")
    panels = [
        ("test_loss", "test loss\n(nats, log)", True, 1.0),
        ("exact", "exact answers\n(% of test requests)", False, 100.0),
        ("stories_loss", "loss on the base's stories\n(nats)", False, 1.0),
    ]
    order = sorted(part, key=lambda name: np.mean(part[name]["test_loss"]))
    return _dots(part, order, panels, title, {"stories_loss": (base or {}).get("stories_loss")})


@styled
def setup_costs(
    part: Mapping[str, Mapping], title: str = "What setting an init up takes, before the first step"
) -> Figure:
    """A row for each init, the slowest on top: processor seconds and megabytes beside the model, both on log axes.

    Raises ValueError when nothing was recorded."""
    not_empty(part, "part")
    panels = [
        ("setup_seconds", "seconds of one core (log)", True, 1.0),
        ("setup_peak_bytes", "peak memory beside the model\n(MB, log)", True, 1e-6),
    ]
    order = sorted(part, key=lambda name: -part[name]["setup_seconds"])
    return _dots(part, order, panels, title, {})


def _dots(part: Mapping, order: Sequence[str], panels: Sequence[tuple], title: str, lines: Mapping) -> Figure:
    fig, axes = figure(height=1.35 + 0.25 * len(order), ncols=len(panels), sharey=True, squeeze=False)
    for ax, (key, xlabel, log, factor) in zip(axes[0], panels, strict=True):
        rows = [factor * np.atleast_1d(to_array(part[name][key])) for name in order]
        if "default" in order and len(reference := rows[order.index("default")]) > 1:
            ax.axvspan(reference.min(), reference.max(), color=GREY, alpha=0.18, lw=0)
        for y, row in enumerate(rows):
            ax.plot(row, [y] * len(row), ls="", marker="o", ms=5, mfc="none", color=COLOURS[0])
            ax.plot([row.mean()] * 2, [y - 0.32, y + 0.32], color=COLOURS[3], ls="-", lw=2, marker="")
        if lines.get(key) is not None:
            ax.axvline(lines[key], color="black", ls=":", lw=1.2, marker="")
        if log:
            _log_x(ax)
        ax.set_xlabel(xlabel, size=9)
        ax.grid(True, axis="x")
        ax.grid(False, axis="y")
    axes[0, 0].set_yticks(range(len(order)), order)
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    fig.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
    return fig


def _log_x(ax: Axes) -> None:
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    span = high / low
    subs = (1.0,) if span > 30 else (1, 2, 5) if span > 8 else (1, 1.5, 2, 3, 5, 7)
    ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
