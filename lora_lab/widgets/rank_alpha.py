"""The rank/alpha explorer: ΔW = s·BA with s = α / r (LoRA) or α / √r (rsLoRA).   B (out, r), A (r, in).

A is drawn as LoRA draws it, uniform on ±1/√in. B is a stand-in for a trained one: independent entries of ±`STEP`,
the same at every rank, because that is what Adam leaves behind: k steps of learning rate η move each entry by about
k η, however small its gradient. Each of the r terms b aᵀ then has about the same norm and they are nearly
orthogonal, so ‖BA‖ grows like √r, and

    ‖s·BA‖ ~ α / √r with s = α / r: the update shrinks as the rank grows
    ‖s·BA‖ ~ α      with s = α / √r: it does not (Kalajdzievski, 2023, rsLoRA)

The norms and spectra shown are computed from these matrices, not from the rule of thumb.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from lora_lab import plots
from lora_lab.plots.style import GREY, WIDTH
from lora_lab.widgets.explorer import LABELLED, Explorer
from lora_lab.widgets.first_step import product_spectra

HEIGHT = 3.3  # inches
STEP = 0.01  # such as 100 steps of Adam at a learning rate of 1e-4, all in one direction
HIGHEST_RANK = 64
ALPHAS = (1, 128)  # the ends of the slider
RULES = {"s = α / r (LoRA)": 1.0, "s = α / √r (rsLoRA)": 0.5}  # label -> exponent of r


class Numbers(NamedTuple):
    """What the explorer says about one setting."""

    scale: float  # s
    norm: float  # ‖s·BA‖, Frobenius
    trainable: int  # r (in + out)
    full: int  # in · out


def rank_alpha_explorer(
    in_features: int = 512, out_features: int = 384, seed: int = 0, base_weight: Tensor | None = None
) -> RankAlphaExplorer:
    """Explore what rank, alpha and the rule for the scale do to the update of one layer.

    base_weight: (out, in), sets the sizes and draws its spectrum and its norm for comparison.
    Raises ValueError when a size is below 1, or base_weight has not two axes."""
    return RankAlphaExplorer(in_features, out_features, seed, base_weight)


class RankAlphaExplorer(Explorer):
    """See `rank_alpha_explorer`. Controls: `rank`, `alpha`, `rule`. `numbers` and `spectrum()` are what it shows."""

    def __init__(
        self, in_features: int = 512, out_features: int = 384, seed: int = 0, base_weight: Tensor | None = None
    ) -> None:
        if base_weight is not None and base_weight.ndim != 2:
            raise ValueError(f"base_weight has shape {tuple(base_weight.shape)}; (out, in) is needed")
        if base_weight is not None:
            out_features, in_features = base_weight.shape
        if min(in_features, out_features) < 1:
            raise ValueError(f"in_features {in_features} and out_features {out_features} must be at least 1")
        highest = min(HIGHEST_RANK, in_features, out_features)
        self.A, self.B = _factors(in_features, out_features, highest, seed)
        self._spectra = product_spectra(self.A, self.B)
        self._norms = np.array([np.linalg.norm(values) for values in self._spectra])  # ‖BA‖ at rank 1, 2, ...
        self._base = None
        if base_weight is not None:
            self._base = torch.linalg.svdvals(base_weight.detach().to("cpu", torch.float64)).numpy()
        self.rank, self.alpha, self.rule = _controls(highest)
        with plots.style():
            fig = self._figure()
        moving = [*self._chosen, *self._other, *self._points, self._values, *self._heads]
        self._assemble(fig, moving, [self.rank, self.alpha, self.rule])

    @property
    def numbers(self) -> Numbers:
        """For the rank, alpha and rule that are set."""
        r, (inside, outside) = self.rank.value, (self.A.shape[1], self.B.shape[0])
        scale = float(self._scales(self.rule.value)[r - 1])
        return Numbers(scale, scale * float(self._norms[r - 1]), r * (inside + outside), inside * outside)

    def spectrum(self) -> np.ndarray:
        """Singular values of s·BA, (rank,), largest first."""
        return self.numbers.scale * self._spectra[self.rank.value - 1]

    def readout(self) -> str:
        """The numbers for the present setting, as HTML."""
        n, against = self.numbers, ""
        if self._base is not None:
            against = f", {n.norm / np.linalg.norm(self._base):.2%} of ‖W‖"
        return (
            f"<b>s = {n.scale:.4g}</b>, norm of the update ‖s·BA‖ = <b>{n.norm:.4g}</b>{against}.<br>Trainable: "
            f"r (in + out) = {self.rank.value} × ({self.A.shape[1]} + {self.B.shape[0]}) = "
            f"<b>{n.trainable:,}</b> of {n.full:,} ({n.trainable / n.full:.1%}).<br>"
            f"<small>A is drawn as LoRA draws it. B stands for a trained one: every entry ±{STEP}, signs at random, "
            "the same size at every rank.</small>"
        )

    def alt(self) -> str:
        """The text alternative for the present setting."""
        n = self.numbers
        return (
            f"Three graphs for rank {self.rank.value}, alpha {self.alpha.value:g} and the rule {self.rule.value}. "
            f"The scale s falls with the rank and is {n.scale:.4g} here. The norm of s·BA is {n.norm:.4g} here; it "
            "falls with the rank under α / r and stays nearly level under α / √r. The "
            f"{self.rank.value} singular values of s·BA reach from {self.spectrum()[0]:.3g} to "
            f"{self.spectrum()[-1]:.3g}. {n.trainable:,} of {n.full:,} numbers are trained."
        )

    def _scales(self, rule: str) -> np.ndarray:
        """s at rank 1, 2, ... for the alpha that is set."""
        ranks = np.arange(1, len(self._norms) + 1)
        return self.alpha.value / ranks ** RULES[rule]

    def _figure(self) -> Figure:
        fig = Figure(figsize=(WIDTH, HEIGHT))
        places = ((0.6, 1.75), (3.05, 1.75), (5.55, 1.9))
        axes = [fig.add_axes((x / WIDTH, 0.52 / HEIGHT, w / WIDTH, 2.2 / HEIGHT)) for x, w in places]
        ranks = np.arange(1, len(self._norms) + 1)
        largest, smallest = (np.array([values[i] for values in self._spectra]) for i in (0, -1))
        smallest = np.maximum(smallest, 1e-4 * largest)  # a small matrix of signs may be singular
        # Wide enough for every setting, from α / r at the least α to α / √r at the greatest: the curves move, not
        # the axes.
        for ax, low, high in zip(axes, (1, self._norms, smallest), (1, self._norms, largest), strict=True):
            limits = ALPHAS[0] * np.min(low / ranks) / 2, ALPHAS[1] * np.max(high / ranks**0.5) * 2
            ax.set(yscale="log", ylim=limits)
        self._heads = [ax.text(0, 1.04, "", transform=ax.transAxes, weight="bold", size=10.5) for ax in axes]
        panels = [self._over_ranks(ax) for ax in axes[:2]]
        self._chosen, self._other, self._points = zip(*panels, strict=True)
        self._values = self._spectrum_panel(axes[2])
        handles = [*axes[0].get_legend_handles_labels()[0][:2], *axes[2].lines[1:]]
        fig.legend(
            handles, ["chosen rule", "the other rule", "base weight W"][: len(handles)], loc="upper left", ncols=3
        )
        return fig

    def _over_ranks(self, ax: Axes) -> tuple[Line2D, Line2D, Line2D]:
        """Curves of both rules over the ranks, and the point at the present one."""
        highest = len(self._norms)
        ax.set_xscale("log", base=2)
        ax.set(xlim=(0.85, 1.2 * highest), xlabel="rank r")
        ax.xaxis.set_major_locator(FixedLocator([r for r in (1, 4, 16, 64) if r <= highest]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        (chosen,) = ax.plot([], [], color=plots.COLOURS[0], linestyle="-", marker="", label="chosen")
        (other,) = ax.plot([], [], color=GREY, linestyle="--", linewidth=1.2, marker="", label="other")
        (point,) = ax.plot([], [], color=plots.COLOURS[3], linestyle="", marker="o", markersize=8)
        return chosen, other, point

    def _spectrum_panel(self, ax: Axes) -> Line2D:
        highest = len(self._norms)
        (line,) = ax.plot([], [], color=plots.COLOURS[0], linestyle="-", marker="o", markersize=3.5)
        ax.set(xlim=(0, highest + 1), xlabel="index of the singular value")
        if self._base is not None:
            shown = self._base[:highest]
            ax.plot(np.arange(1, len(shown) + 1), shown, color="black", linestyle=":", marker="")
            ax.set_ylim(min(ax.get_ylim()[0], shown[-1] / 2), max(ax.get_ylim()[1], 2 * shown[0]))
        return line

    def _move(self) -> None:
        n, r, values = self.numbers, self.rank.value, self.spectrum()
        other = next(rule for rule in RULES if rule != self.rule.value)
        ranks = np.arange(1, len(self._norms) + 1)
        for curve, rule in ((self._chosen, self.rule.value), (self._other, other)):
            curve[0].set_data(ranks, self._scales(rule))
            curve[1].set_data(ranks, self._scales(rule) * self._norms)
        self._points[0].set_data([r], [n.scale])
        self._points[1].set_data([r], [n.norm])
        self._values.set_data(np.arange(1, r + 1), values)
        says = f"scale s = {n.scale:.3g}", f"norm ‖s·BA‖ = {n.norm:.3g}", "singular values of s·BA"
        for head, text in zip(self._heads, says, strict=True):
            head.set_text(text)


def _controls(highest: int) -> tuple[ipywidgets.IntSlider, ipywidgets.FloatLogSlider, ipywidgets.ToggleButtons]:
    layout = {"width": "360px"}
    least, greatest = (math.log2(value) for value in ALPHAS)
    rank = ipywidgets.IntSlider(min(8, highest), 1, highest, description="rank r", style=LABELLED, layout=layout)
    alpha = ipywidgets.FloatLogSlider(
        16,
        base=2,
        min=least,
        max=greatest,
        step=1,
        description="alpha α",
        readout_format=".0f",
        style=LABELLED,
        layout=layout,
    )
    rule = ipywidgets.ToggleButtons(options=list(RULES), style={"button_width": "170px"})
    return rank, alpha, rule


def _factors(in_features: int, out_features: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) in double precision; a smaller rank takes the first rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    bound = in_features**-0.5
    A = torch.empty(rank, in_features, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
    B = STEP * torch.empty(out_features, rank, dtype=torch.float64).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    return A, B
