"""The first step of one layer from B = 0, at every rank, as it follows the sliders: see `first_step`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator
from torch import Tensor

from lora_lab import plots
from lora_lab.plots.style import GREY, WIDTH
from lora_lab.widgets.explorer import LABELLED, Explorer
from lora_lab.widgets.first_step import Unit, first_steps

HEIGHT = 4.3  # inches
HIGHEST_RANK = 64
DEPTH = 0.02  # how far below the lowest first singular value the last graph reaches
RULES = {"α / r (LoRA)": "lora", "α / √r (rsLoRA)": "rslora"}
EXPONENT = {"lora": 1.0, "rslora": 0.5}  # of r
LOOKS: dict[str, dict[str, Any]] = {
    "this rank": {"color": plots.COLOURS[3], "linestyle": "", "marker": "o", "markersize": 7},
    "the rule that is set": {"color": plots.COLOURS[0], "linestyle": "-", "marker": ""},
    "the other rule": {"color": GREY, "linestyle": "--", "linewidth": 1.2, "marker": ""},
}


class Numbers(NamedTuple):
    """The first step at one setting."""

    scale: float
    gradient: float  # ‖∂L/∂B‖ / ‖∂L/∂W‖
    gain: float  # what the loss loses, to first order, nats per token
    norm: float  # ‖ΔW‖


class StepExplorer(Explorer):
    """Controls: `rank`, `alpha`, `rule`, `optimizer`, `rate`. `numbers` and `spectrum()` are what it shows.

    gradient: ∂L/∂W (out, in) of the layer, with its name. Raises ValueError when it is no matrix, is zero or not
    finite."""

    def __init__(self, gradient: Tensor, layer: str = "one layer", seed: int = 0) -> None:
        if gradient.ndim != 2:
            raise ValueError(f"the gradient has shape {tuple(gradient.shape)}; (out, in) is needed")
        self.G, self.layer = gradient.detach().to("cpu", torch.float64), layer
        highest, bound = min(HIGHEST_RANK, *self.G.shape), self.G.shape[1] ** -0.5
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(highest, self.G.shape[1], dtype=torch.float64, generator=generator)
        self.A = (2 * drawn - 1) * bound
        self._units = first_steps(self.G, self.A)
        self._ranks = np.arange(1, highest + 1)
        self._limits: list[tuple[float, float]] = []
        self._make_controls(highest)
        with plots.style():
            fig = self._figure()
        moving = [*self._chosen, *self._other, *self._points, self._values, *self._heads]
        settings = [self.rank, self.alpha, self.rule, self.optimizer, self.rate]
        self._assemble(fig, moving, settings)

    @property
    def scale(self) -> float:
        """s at the rank, alpha and rule that are set."""
        return float(self._scales(RULES[self.rule.value])[self.rank.value - 1])

    @property
    def numbers(self) -> Numbers:
        """For the present settings."""
        i = self.rank.value - 1
        chosen = self._curves(RULES[self.rule.value])
        return Numbers(*(float(curve[i]) for curve in chosen))

    def spectrum(self) -> np.ndarray:
        """Singular values of ΔW after the first step, (rank,), largest first."""
        unit = self._unit
        return self.rate.value * self.scale**unit.power * unit.spectra[self.rank.value - 1]

    @property
    def _unit(self) -> Unit:
        return self._units[self.optimizer.value]

    def _scales(self, rule: str) -> np.ndarray:
        return self.alpha.value / self._ranks ** EXPONENT[rule]

    def _curves(self, rule: str) -> tuple[np.ndarray, ...]:
        """Scale, gradient ratio, gain and norm at every rank."""
        s, unit, rate = self._scales(rule), self._unit, self.rate.value
        step = rate * s**unit.power
        return s, s * unit.gradient / float(self.G.norm()), step * unit.gain, step * unit.norm

    def readout(self) -> str:
        """The numbers for the present settings, as HTML."""
        n, values = self.numbers, self.spectrum()
        return (
            f"<b>s = {n.scale:.4g}</b>. The gradient of B is <b>{n.gradient:.3g}</b> times as large as that of W. "
            f"The first step is to lower the loss by <b>{n.gain:.3g}</b> nats, with ‖ΔW‖ = <b>{n.norm:.3g}</b>; "
            f"σ₁ = {values[0]:.3g}, σ<sub>{len(values)}</sub> = {values[-1]:.3g}.<br>"
            f"<small>One step from B = 0 of {html.escape(self.layer)}, {self.G.shape[0]} × {self.G.shape[1]}, with its "
            "real gradient. Solid: the rule that is set. Dashed: the other one.</small>"
        )

    def alt(self) -> str:
        """The text alternative for the present settings and runs."""
        n, rule = self.numbers, self.rule.value
        first, last = (float(self._curves(RULES[rule])[2][i]) for i in (0, -1))
        return (
            f"Five graphs over the rank, for alpha {self.alpha.value:g}, the rule {rule}, {self.optimizer.value} at a "
            f"rate of {self.rate.value:.3g}. At rank {self.rank.value} the scale is {n.scale:.3g}, B's gradient is "
            f"{n.gradient:.3g} times that of W, the first step gains {n.gain:.3g} and makes an update of norm "
            f"{n.norm:.3g}. From rank 1 to {len(self._ranks)} the gain changes by a factor of {last / first:.3g}."
        )

    def _make_controls(self, highest: int) -> None:
        wide = {"width": "320px"}
        self.rank = ipywidgets.IntSlider(min(8, highest), 1, highest, description="rank r", style=LABELLED, layout=wide)
        self.alpha = ipywidgets.FloatLogSlider(
            16, base=2, min=0, max=7, step=1, description="alpha α", readout_format=".0f", style=LABELLED, layout=wide
        )
        self.rate = ipywidgets.FloatLogSlider(
            1e-2,
            base=10,
            min=-4,
            max=1,
            step=0.25,
            description="rate η",
            readout_format=".2g",
            style=LABELLED,
            layout=wide,
        )
        self.rule = ipywidgets.ToggleButtons(options=list(RULES), style={"button_width": "130px"})
        self.optimizer = ipywidgets.ToggleButtons(
            options=[("Adam", "adam"), ("SGD", "sgd")], style={"button_width": "70px"}
        )

    def _figure(self) -> Figure:
        fig = Figure(figsize=(WIDTH, HEIGHT))
        columns, rows = (0.62, 3.2, 5.78), (2.6, 0.52)
        places = [(x, y) for y in rows for x in columns][:5]
        axes = [fig.add_axes((x / WIDTH, y / HEIGHT, 1.72 / WIDTH, 1.3 / HEIGHT)) for x, y in places]
        self._axes = axes
        self._heads = [ax.text(0, 1.06, "", transform=ax.transAxes, weight="bold", size=9.5) for ax in axes]
        panels = [self._over_ranks(ax) for ax in axes[:4]]
        self._chosen, self._other, self._points = zip(*panels, strict=True)
        (self._values,) = axes[4].plot([], [], color=plots.COLOURS[0], linestyle="-", marker="o", markersize=3)
        axes[4].set(xlim=(0, len(self._ranks) + 1), xlabel="index")
        for ax in axes:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(numticks=5))
            ax.yaxis.set_minor_formatter(NullFormatter())
        fig.legend(
            [Line2D([], [], **look) for look in LOOKS.values()],
            list(LOOKS),
            loc="center",
            bbox_to_anchor=(6.6 / WIDTH, 1.2 / HEIGHT),
        )
        return fig

    def _over_ranks(self, ax: Axes) -> tuple[Line2D, Line2D, Line2D]:
        ax.set_xscale("log", base=2)
        ax.set(xlim=(0.85, 1.2 * len(self._ranks)), xlabel="rank r")
        ax.xaxis.set_major_locator(FixedLocator([r for r in (1, 4, 16, 64) if r <= len(self._ranks)]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        point, chosen, other = (ax.plot([], [], **look)[0] for look in LOOKS.values())
        return chosen, other, point

    def _move(self) -> bool:
        rule = RULES[self.rule.value]
        chosen = self._curves(rule)
        other = self._curves(next(name for name in EXPONENT if name != rule))
        i = self.rank.value - 1
        for line, dashed, point, ours, theirs in zip(
            self._chosen, self._other, self._points, chosen, other, strict=True
        ):
            line.set_data(self._ranks, ours)
            dashed.set_data(self._ranks, theirs)
            point.set_data([i + 1], [ours[i]])
        values = self.spectrum()
        self._values.set_data(np.arange(1, len(values) + 1), values)
        n = self.numbers
        says = (
            f"scale s = {n.scale:.3g}",
            f"‖∂L/∂B‖ / ‖∂L/∂W‖ = {n.gradient:.2g}",
            f"gain of step 1 = {n.gain:.2g}",
            f"‖ΔW‖ of step 1 = {n.norm:.2g}",
            "singular values of ΔW",
        )
        for head, text in zip(self._heads, says, strict=True):
            head.set_text(text)
        return self._fit(chosen, other)

    def _fit(self, chosen: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
        """Axes in whole powers of ten, so that they move seldom. True if they just did."""
        unit, step = self._unit, [self.rate.value * s**self._unit.power for s in (chosen[0], other[0])]
        largest = np.array([values[0] for values in unit.spectra])
        tops = np.concatenate([largest * each for each in step])
        limits = [_decades(np.concatenate(pair)) for pair in zip(chosen, other, strict=True)]
        limits.append(_decades(np.append(tops, tops.min() * DEPTH)))
        moved, self._limits = limits != self._limits, limits
        for ax, pair in zip(self._axes, limits, strict=True):
            ax.set_ylim(*pair)
        return moved


def _decades(values: np.ndarray) -> tuple[float, float]:
    """The powers of ten around positive values."""
    low, high = np.log10([values.min(), values.max()])
    return float(10 ** np.floor(low)), float(10 ** (np.floor(high) + 1))
