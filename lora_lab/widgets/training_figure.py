"""The picture of live and pinned runs: loss, gradient norms and ‖ΔW‖ over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lora_lab import plots
from lora_lab.background import Settings, events
from lora_lab.plots.style import LINES, MARKERS, WIDTH
from lora_lab.widgets.canvas import still

HEIGHT = 3.15  # inches
PANELS = {"loss": (0.62, 2.75), "gradient": (4.02, 1.35), "norm": (6.02, 1.45)}  # left, width in inches
# Wide enough for every run that can be started; the curves move, not the axes. The loss axis alone grows with the runs.
LIMITS = {"loss": (1.0, 10.0), "gradient": (1e-4, 100), "norm": (1e-3, 1e3)}
HEADS = {"loss": "training loss (nats per token)", "gradient": "gradients, last run", "norm": "‖ΔW‖, all layers"}
MOST_PINS = 4


@dataclass
class Run:
    """What is known of a run; the lists have one value per finished step."""

    settings: Settings
    loss: list[float] = field(default_factory=list)
    grad_A: list[float] = field(default_factory=list)
    grad_B: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    validation: float | None = None
    norm_W: float | None = None
    spectrum: list[float] = field(default_factory=list)
    ended: str = ""  # "", "done", "cancelled" or the sentence of an error

    @property
    def label(self) -> str:
        """'r 8, α 16, α/r, adam, rate 0.01'."""
        s = self.settings
        rule = "α/r" if s.rule == "lora" else "α/√r"
        return f"r {s.rank}, α {s.alpha:g}, {rule}, {s.optimizer}, rate {s.lr:.3g}"

    def take(self, event: dict) -> None:
        """An event of `lora_lab.background`."""
        if event["kind"] == "step":
            for name in ("loss", "grad_A", "grad_B", "norm"):
                getattr(self, name).append(event[name])
        elif event["kind"] == "done":
            self.validation, self.norm_W, self.spectrum = event["validation"], event["norm_W"], event["spectrum"]
            self.ended = "done"
        elif event["kind"] == "cancelled":
            self.ended = "cancelled"
        elif event["kind"] == "error":
            self.ended = event["says"]


class RunFigure:
    """`figure`, its `moving` artists, and `show(live, pins)`, which sets them."""

    def __init__(self) -> None:
        with plots.style():
            self.figure = Figure(figsize=(WIDTH, HEIGHT))
            self.axes = {name: self._panel(name, *place) for name, place in PANELS.items()}
        loss, gradient, norm = self.axes.values()
        self._pins = [[self._line(ax, i) for ax in (loss, norm)] for i in range(MOST_PINS)]
        black = {"color": "black", "linestyle": "-", "marker": "", "linewidth": 2.2}
        self._live = [ax.plot([], [], **black)[0] for ax in (loss, norm)]
        self._factors = [
            gradient.plot([], [], color=plots.COLOURS[i], linestyle=LINES[i], marker="", label=label)[0]
            for i, label in enumerate(("of A", "of B"))
        ]
        with plots.style():
            gradient.legend(loc="upper right", handlelength=1.6, borderaxespad=0.1)
        self.moving = [*self._live, *self._factors, *(line for pair in self._pins for line in pair)]

    @staticmethod
    def _line(ax: Axes, i: int) -> Line2D:
        colour, style = plots.COLOURS[i], LINES[i % len(LINES)]
        return ax.plot([], [], color=colour, linestyle=style, marker=MARKERS[i], markersize=4)[0]

    def _panel(self, name: str, left: float, width: float) -> Axes:
        ax = self.figure.add_axes((left / WIDTH, 0.55 / HEIGHT, width / WIDTH, 1.55 / HEIGHT))
        ax.set(yscale="log", ylim=LIMITS[name], xlabel="training step")
        ax.set_title(HEADS[name], size=10)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if name == "loss" else (1,), numticks=5))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        return ax

    def span(self, steps: int) -> None:
        """Room for so many steps. What stands still has to be drawn again then."""
        for ax in self.axes.values():
            ax.set_xlim(0, max(steps, 10) + 1)

    def fit(self, runs: Sequence[Run]) -> bool:
        """Widen the loss axis, by factors of two, until it holds these runs. True if what stands still has to be drawn
        again."""
        ax = self.axes["loss"]
        was = low, high = ax.get_ylim()
        losses = [loss for run in runs for loss in run.loss if 0 < loss < np.inf]
        for loss in (min(losses, default=low), max(losses, default=high)):
            low, high = (edge * 2.0**steps for edge, steps in ((low, _below(loss, low)), (high, _above(loss, high))))
        if (low, high) == was:
            return False
        ax.set_ylim(low, high)
        return True

    def legend(self, pins: Sequence[Run]) -> None:
        """The names of the pinned runs above the panels; drawn again with the background."""
        for old in list(self.figure.legends):
            old.remove()
        if pins:
            with plots.style():
                handles = [*(pair[0] for pair in self._pins[: len(pins)]), self._live[0]]
                names = [*(run.label for run in pins), "the run in progress, or the last one"]
                # Drawn from copies: the lines themselves move, and a full draw leaves them out.
                self.figure.legend(
                    [still(handle) for handle in handles], names, loc="upper left", ncols=2, fontsize=8.5
                )

    def show(self, live: Run | None, pins: Sequence[Run], pinned: bool = False) -> None:
        """Set every line to its run. pinned: the live run is one of the pins, and drawn once."""
        for pair, run in zip(self._pins, [*pins, *[None] * MOST_PINS], strict=False):
            _set(pair, run)
        _set(self._live, None if pinned else live)
        last = live or next(reversed(pins), None)
        for line, values in zip(self._factors, (last.grad_A, last.grad_B) if last else ([], []), strict=True):
            line.set_data(range(1, len(values) + 1), [value or np.nan for value in values])  # A's first is zero


def _below(loss: float, edge: float) -> int:
    return min(0, math.floor(math.log2(loss / edge)))


def _above(loss: float, edge: float) -> int:
    return max(0, math.ceil(math.log2(loss / edge)))


def _set(pair: Sequence, run: Run | None) -> None:
    for line, values in zip(pair, (run.loss, run.norm) if run else ([], []), strict=True):
        line.set_data(range(1, len(values) + 1), values)
        line.set_markevery(max(1, len(values) // 6))


def train_now(settings: Settings, model, tokenizer) -> Run:
    """The run of these settings, made here and now, in this thread: something to pin. The model is left as it was.

    Raises ValueError for a loss that is no number any more, and for what `inject` refuses."""
    run = Run(settings)
    for event in events(settings, model, tokenizer):
        run.take(event)
    return run
