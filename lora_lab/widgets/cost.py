"""The cost explorer: hours = FLOPs / (GPUs · peak · mfu), money = hours · GPUs · price; every assumption on a slider.

A claimed run stands beside it as a cross. Over hours and money, both logarithmic, a fleet at one price is a straight
line (dashed): the run moves along it when the work or the mfu changes, up and down with it when the price does, and
to the left and right with it when the number of GPUs does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import ipywidgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lora_lab import plots
from lora_lab.budget import GPUS, budget, skeleton
from lora_lab.plots.style import GREY, WIDTH
from lora_lab.widgets.explorer import LABELLED, Explorer, check_start, dropdown, slider

HEIGHT = 3.7  # inches
HOURS, MONEY = (0.02, 5e4), (0.5, 5e6)  # the ends of the axes
MODELS = ("Llama-3.2-1B", "Llama-3-8B", "Llama-2-13B", "Llama-2-70B")
CLAIM = (19 * 24.0, 47_000.0)
EXAMPLES, LENGTHS = (1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000), (128, 256, 512, 1024, 2048, 4096)
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)
METHODS = ("full", "lora")


class Cost(NamedTuple):
    """Of a whole run."""

    tokens: float
    flops: float
    hours: float  # wall clock
    gpu_hours: float
    money: float


def cost_explorer(
    model: str = "Llama-2-70B",
    method: str = "full",
    examples: int = 50_000,
    length: int = 512,
    claim: tuple[float, float] = CLAIM,
) -> CostExplorer:
    """Explore hours and money of a run. claim: (hours, money) of a run that somebody reports, drawn as a cross.

    Raises ValueError for a start that the controls cannot be set to, or a claim that is not positive."""
    return CostExplorer(model, method, examples, length, claim)


class CostExplorer(Explorer):
    """See `cost_explorer`. Every control is an attribute, `cost` is what follows from them."""

    def __init__(self, model: str, method: str, examples: int, length: int, claim: tuple[float, float]) -> None:
        sizes = {"examples": (examples, EXAMPLES), "length": (length, LENGTHS)}
        check_start(model=(model, MODELS), method=(method, METHODS), **sizes)
        if min(claim) <= 0:
            raise ValueError(f"claim must be positive hours and money, got {claim}")
        self.claim = tuple(map(float, claim))
        for name in MODELS:
            skeleton(name)
        self._make_controls(model, method, examples, length)
        with plots.style():
            fig = self._figure()
        controls = [self.model, self.method, self.checkpointing, self.examples, self.length, self.epochs]
        controls += [self.gpu, self.gpus, self.mfu, self.price]
        self._assemble(fig, [self._line, self._rate, self._point, self._says], controls)

    @property
    def cost(self) -> Cost:
        """For what is set."""
        run = budget(
            self.model.value, self.method.value, length=self.length.value, checkpointing=self.checkpointing.value
        )
        tokens = float(self.examples.value) * self.length.value * self.epochs.value
        gpu_hours = run.seconds(self.gpu.value, tokens, self.mfu.value) / 3600
        money = gpu_hours * self.price.value
        return Cost(tokens, run.flops_per_token * tokens, gpu_hours / self.gpus.value, gpu_hours, money)

    def readout(self) -> str:
        """The numbers for the present setting, as HTML."""
        c = self.cost
        hours, money = self.claim
        implied = self.mfu.value * c.hours / hours
        return (
            f"{c.tokens:,.0f} tokens, {c.flops:.2g} FLOPs: <b>{c.hours:,.1f} hours</b> ({c.hours / 24:,.2f} days) on "
            f"{self.gpus.value} × {self.gpu.value}, {c.gpu_hours:,.0f} GPU hours, <b>${c.money:,.0f}</b>.<br>"
            f"The claim: {hours / 24:,.0f} days and ${money:,.0f}, {hours / c.hours:,.1f} times the hours and "
            f"{money / c.money:,.1f} times the money. It would need an mfu of {implied:.2%} here, and "
            f"${money / (hours * self.gpus.value):,.2f} for a GPU and hour."
        )

    def alt(self) -> str:
        """The text alternative for the present setting."""
        c = self.cost
        return (
            f"Money against hours, both axes logarithmic. {self.method.value.capitalize()} fine-tuning of "
            f"{self.model.value} on {self.examples.value:,} examples of {self.length.value} tokens, epochs: "
            f"{self.epochs.value}, takes {c.hours:,.1f} hours and ${c.money:,.0f} on {self.gpus.value} GPUs at mfu "
            f"{self.mfu.value:.3f}. A cross "
            f"marks the claim, {self.claim[0] / 24:,.0f} days and ${self.claim[1]:,.0f}."
        )

    def _figure(self) -> Figure:
        fig = Figure(figsize=(WIDTH, HEIGHT))
        ax = fig.add_axes((0.14, 0.15, 0.83, 0.74))
        ax.set(xscale="log", yscale="log", xlim=HOURS, ylim=MONEY, xlabel="hours (wall clock)", ylabel="money ($)")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.7g}"))
        ax.set_title("How far is the run from the claim?")
        for place, word in ((1, "an hour"), (24, "a day"), (168, "a week"), (720, "a month")):
            ax.axvline(place, color=GREY, linewidth=0.8, linestyle=":", marker="")
            ax.text(place, MONEY[0] * 1.35, f" {word}", color=GREY, size=8.5)
        ax.plot(*([value] for value in self.claim), linestyle="", marker="x", markersize=11, mew=2.6, color="#D55E00")
        ax.annotate("the claim", self.claim, (-8, 3), textcoords="offset points", va="bottom", ha="right")
        (self._line,) = ax.plot([], [], color=GREY, linestyle="--", marker="", linewidth=1.2)
        (width, height), decades = ax.get_position().size * fig.get_size_inches(), np.log10([HOURS, MONEY]) @ (-1, 1)
        slope = np.degrees(np.arctan2(height / decades[1], width / decades[0]))
        look = {"rotation": slope, "rotation_mode": "anchor", "ha": "right", "va": "top"}
        self._rate = ax.text(1, 1, "", color=GREY, size=8.5, **look)
        (self._point,) = ax.plot([], [], color=plots.COLOURS[0], linestyle="", marker="o", markersize=10)
        self._says = ax.text(1, 1, "", va="bottom", ha="right", weight="bold")
        return fig

    def _move(self) -> None:
        c = self.cost
        ends = np.array(HOURS)
        self._line.set_data(ends, ends * self.gpus.value * self.price.value)
        rate = self.gpus.value * self.price.value
        end = min(0.6 * HOURS[1], 0.6 * MONEY[1] / rate)
        self._rate.set_position((end, 0.85 * end * rate))
        self._rate.set_text(f"{self.gpus.value} GPUs at ${self.price.value:.2f} an hour")
        x, y = np.clip(c.hours, *HOURS), np.clip(c.money, *MONEY)
        self._point.set_data([x], [y])
        free = x < 1000 and y > 4  # below the line, where the room on the right and at the foot allows it
        self._says.set_position((1.25 * x, y / 1.2) if free else (x / 1.15, 1.25 * y))
        self._says.set(va="top" if free else "bottom", ha="left" if free or x < 1 else "right")
        self._says.set_text(f"{c.hours:,.1f} h, ${c.money:,.0f}")

    def _make_controls(self, model: str, method: str, examples: int, length: int) -> None:
        self.model, self.method = dropdown("model", MODELS, model, 210), dropdown("method", METHODS, method, 150)
        self.checkpointing = ipywidgets.Checkbox(
            value=True, description="checkpointing", indent=False, layout={"width": "140px"}
        )
        self.examples = slider("examples", _written(EXAMPLES), examples)
        self.length = slider("tokens in an example", _written(LENGTHS), length)
        self.gpu, self.gpus = dropdown("GPU", GPUS, "A100 80GB", 210), slider("number of GPUs", GPU_COUNTS, 8)
        look = {"style": LABELLED, "layout": {"width": "300px"}}
        self.epochs = ipywidgets.IntSlider(1, 1, 120, description="epochs", **look)
        self.mfu = ipywidgets.FloatSlider(  # from idle nearly all the time, which a claim may imply
            0.3, min=0.001, max=0.6, step=0.001, readout_format=".3f", description="mfu", **look
        )
        self.price = ipywidgets.FloatSlider(
            2.0, min=0.5, max=15, step=0.1, description="price of a GPU hour ($)", **look
        )


def _written(numbers: Iterable[int]) -> list[tuple[str, int]]:
    return [(f"{number:,}", number) for number in numbers]
