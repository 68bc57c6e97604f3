"""The merge explorer: how far merged weights are from W* = W + s·BA, beside what that does to answers.

    error   |W' - W*|, W' the sum in fp32 rounded once to the dtype, W* in fp64, for each entry of the chosen layer
    update  |s·BA|, for comparison: where the errors reach it, rounding has eaten the update

ΔW is cut to its best approximation of the chosen rank and multiplied; the shares of answers that flip were measured
before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import nn

from lora_lab import plots
from lora_lab.base import is_quantized, oriented_weight
from lora_lab.inject import lora_layers
from lora_lab.plots.style import LINES, MARKERS, WIDTH
from lora_lab.spectrum import factor_svd
from lora_lab.widgets.explorer import Explorer, dropdown, slider

HEIGHT, WIDE = 3.5, 330  # inches; CSS pixels of a control
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EDGES = np.linspace(-10, 0, 41)  # log10 of an error or of an entry of ΔW
SMALL = 0.1  # percent of the answer tokens
EXACT = EDGES[0]  # where entries without any error are counted
Flips = Mapping[tuple[str, int, float], float]


class Numbers(NamedTuple):
    """What the explorer says about one merged weight."""

    largest: float  # max |W' - W*|
    typical: float  # median |W' - W*|
    update: float  # median |s·BA|
    drowned: float  # share of entries whose error is more than half of their update
    flipped: float | None  # share of answer tokens that change, all layers merged; None where it was not measured


class _Layer(NamedTuple):
    weight: torch.Tensor  # (out, in), fp64
    A: torch.Tensor  # (rank, in) and B (out, rank) of scale 1, the leading terms first
    B: torch.Tensor


def merge_explorer(model: nn.Module, flips: Flips | None = None) -> MergeExplorer:
    """Explore the error of merging the adapters of `model`, which is left as it is.

    flips: (dtype, rank, times) -> share of answer tokens that merging changes. Without it that panel stays empty.
    Raises ValueError where there is no unmerged LoRA layer over plain weights.
    """
    return MergeExplorer(model, flips or {})


class MergeExplorer(Explorer):
    """See `merge_explorer`. `layer`, `dtype` (Dropdowns), `rank` and `times` (SelectionSliders) are its controls."""

    def __init__(self, model: nn.Module, flips: Flips) -> None:
        found = lora_layers(model).items()
        layers = {name: layer for name, layer in found if not layer.merged and not is_quantized(layer.base)}
        if not layers:
            raise ValueError(
                f"{type(model).__name__} has no unmerged LoRA layer over plain weights: nothing to explore"
            )
        self._layers = {name: _decomposed(layer) for name, layer in layers.items()}
        self._flips = dict(flips)
        largest = min(len(layer.A) for layer in self._layers.values())
        ranks = sorted({rank for _, rank, _ in flips if rank <= largest}) or _halved(largest)
        self._times = sorted({times for _, _, times in flips}) or [0.25, 0.5, 1.0, 2.0, 4.0]
        first = next((name for name in self._layers if name.endswith("1.mlp.down_proj")), next(iter(self._layers)))
        self.layer = dropdown("layer", self._layers, first, WIDE)
        self.dtype = dropdown("dtype", DTYPES, "bfloat16", WIDE)
        self.rank = slider("rank r", ranks, ranks[-1], WIDE)
        times = [(f"{each:g}", each) for each in self._times]
        self.times = slider("scale, times that of training", times, _nearest(self._times, 1.0), WIDE)
        with plots.style():
            fig = self._figure(ranks)
        moving = [self._errors, self._updates, self._limit, self._share, *self._lines, self._here]
        self._assemble(fig, moving, [self.layer, self.dtype, self.rank, self.times])

    @property
    def numbers(self) -> Numbers:
        """For the settings as they are."""
        return self._computed()[0]

    def readout(self) -> str:
        n = self.numbers
        flipped = "not measured here" if n.flipped is None else f"<b>{n.flipped:.2%}</b>"
        return (
            f"|W' − W*|: largest <b>{n.largest:.1e}</b>, typical (median) <b>{n.typical:.1e}</b>. A typical entry of "
            f"s·BA is {n.update:.1e}.<br>Entries whose error exceeds half their update: <b>{n.drowned:.1%}</b>. "
            f"Answer tokens that change when all layers are merged: {flipped}."
        )

    def alt(self) -> str:
        n = self.numbers
        flipped = "the answers were not measured" if n.flipped is None else f"{n.flipped:.2%} of the tokens change"
        return (
            f"Two panels. Left: how often each size of error occurs in {self.layer.value} merged in {self.dtype.value} "
            f"at rank {self.rank.value} and {self.times.value:g} times the trained scale, beside the sizes of the "
            f"update's entries; typical error {n.typical:.1e}, typical update {n.update:.1e}, {n.drowned:.1%} of the "
            f"entries lose more than half of their update. Right: the share of answer tokens that merging changes over "
            f"the scale, a line for each dtype; here {flipped}."
        )

    def _computed(self) -> tuple[Numbers, np.ndarray, np.ndarray]:
        """The numbers, and the logarithms (entries,) of errors and of updates. Kept until a control moves."""
        key = self.layer.value, self.dtype.value, self.rank.value, self.times.value
        if getattr(self, "_key", None) != key:
            layer, rank = self._layers[key[0]], key[2]
            A, B, times = layer.A[:rank], layer.B[:, :rank], key[3]
            update = times * (B @ A)
            merged = (layer.weight.float() + times * (B.float() @ A.float())).to(DTYPES[key[1]])
            error = (merged.double() - (layer.weight + update)).abs()
            size = update.abs()
            drowned = float((error > size / 2).double().mean())
            middle = float(error.median()), float(size.median())
            self._known = (
                Numbers(float(error.max()), *middle, drowned, self._flips.get(key[1:])),
                _logarithm(error),
                _logarithm(size),
            )
            self._key = key
        return self._known

    def _figure(self, ranks: Sequence[int]) -> Figure:
        fig = Figure(figsize=(WIDTH, HEIGHT))
        left = fig.add_axes((0.085, 0.155, 0.42, 0.66))
        right = fig.add_axes((0.62, 0.155, 0.365, 0.66))
        centres = (EDGES[:-1] + EDGES[1:]) / 2
        (self._errors,) = left.plot(centres, 0 * centres, marker="", label="error |W' − W*|")
        (self._updates,) = left.plot(centres, 0 * centres, marker="", label="update |s·BA|")
        self._limit = left.axvline(0, color="black", linestyle=":", linewidth=1.2, marker="", label="largest error")
        left.set(xlim=(EDGES[0], EDGES[-1]), ylim=(0, 0.3), xlabel="size of an entry", ylabel="share of the entries")
        left.xaxis.set_major_locator(FixedLocator(range(-10, 1, 2)))
        left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x <= EXACT else f"$10^{{{x:.0f}}}$"))
        left.set_title("Does rounding reach the update?", size=10)
        left.legend(loc="upper left", fontsize=8.5, handlelength=2)
        self._share = left.text(0.03, 0.42, "", transform=left.transAxes, fontsize=9.5, linespacing=1.35)
        self._lines = [
            right.plot([], [], label=name, linestyle=LINES[i], marker=MARKERS[i])[0] for i, name in enumerate(DTYPES)
        ]
        (self._here,) = right.plot([], [], linestyle="", marker="o", markersize=14, mfc="none", mec="black", mew=1.4)
        right.set_xscale("log", base=2)
        right.set_xlim(min(self._times) / 1.3, max(self._times) * 1.3)
        right.xaxis.set_major_locator(FixedLocator(self._times))
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        top = 100 * max(self._flips.values(), default=0.01)
        # Linear below a tenth of a percent, where 0 and single tokens stand; logarithmic above.
        right.set_yscale("symlog", linthresh=SMALL, linscale=0.6)
        right.yaxis.set_major_locator(FixedLocator([0, SMALL, 1, 10, 100]))
        right.yaxis.set_minor_locator(NullLocator())
        right.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        right.set(
            ylim=(-0.2 * SMALL, 3 * max(top, 1)),
            xlabel="scale, times that of training",
            ylabel="changed answer tokens, %",
        )
        right.set_title("What becomes of the answers?", size=10)
        right.legend(loc="upper left", fontsize=8.5, handlelength=2.4)
        return fig

    def _move(self) -> None:
        numbers, errors, updates = self._computed()
        for line, values in ((self._errors, errors), (self._updates, updates)):
            counts, _ = np.histogram(values, EDGES)
            line.set_ydata(counts / len(values))
        self._share.set_text(f"{100 * numbers.drowned:.1f} % of the entries\nlose more than half\nof their update")
        self._limit.set_xdata([np.log10(max(numbers.largest, 10.0**EXACT))] * 2)
        for line, name in zip(self._lines, DTYPES, strict=True):
            points = [
                (t, 100 * self._flips[key]) for t in self._times if (key := (name, self.rank.value, t)) in self._flips
            ]
            line.set_data(*(zip(*points, strict=True) if points else ([], [])))
        known = numbers.flipped is not None
        self._here.set_data(*(([self.times.value], [100 * numbers.flipped]) if known else ([], [])))


def _decomposed(layer: Any) -> _Layer:
    A, B = (factor.detach().double() for factor in layer.factors())
    U, s, Vh = factor_svd(A, B)
    return _Layer(oriented_weight(layer.base).detach().double(), layer.scale * s[:, None] * Vh, U)


def _logarithm(sizes: torch.Tensor) -> np.ndarray:
    """log10, with everything outside the edges in the first or last bin. fp32: the histogram takes half the time."""
    return sizes.float().clamp(1.001 * 10.0**EXACT, 0.999).log10().flatten().numpy()


def _nearest(options: Sequence[float], value: float) -> float:
    return min(options, key=lambda each: abs(each - value))


def _halved(rank: int) -> list[int]:
    """rank, rank // 2, ..., 1, ascending."""
    ranks = [rank]
    while ranks[-1] > 1:
        ranks.append(ranks[-1] // 2)
    return ranks[::-1]


class LiveRatios:
    """Times of this machine for the reader alone: numbers in the live view, and in a saved notebook a line about them.

    measure() -> {what: ratio of the slower to the faster}."""

    def __init__(self, measure: Callable[[], Mapping[str, float]]) -> None:
        self.ratios = dict(measure())

    def html(self) -> str:
        rows = "".join(f"<tr><td>{what}</td><td>{ratio:.2f}</td></tr>" for what, ratio in self.ratios.items())
        return f"<table><tr><th>on this machine, now</th><th>unmerged / merged</th></tr>{rows}</table>"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        saved = (
            "Run this cell: the ratios of your machine appear here. They are not saved, since they change every time."
        )
        return {**ipywidgets.HTML(self.html())._repr_mimebundle_(), "text/html": f"<p>{saved}</p>", "text/plain": saved}
