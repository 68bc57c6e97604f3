"""A training run as it goes: loss, validation loss, gradient norms of A and B, tokens per second, time left, answers.

    view = live_view(samples=samples)
    trainer = SFTTrainer(..., callbacks=[samples, view.callback])
    display(view)
    trainer.train()

The picture of a finished run shows what the run decides, the same every time; speed and time left stand in the live
line alone.
"""

from __future__ import annotations

import html
import math
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from transformers import TrainerCallback

from lora_lab import plots
from lora_lab.plots.output import CSS_PER_INCH, bundle
from lora_lab.plots.style import COLOURS, LINES, WIDTH
from lora_lab.practice.callbacks import GradientNorms, Samples
from lora_lab.widgets.canvas import BlitCanvas, still

PAUSE = 0.5  # seconds between two pictures
SHOWN = 3  # answers in the picture: the first, one on the way, the last
LIMITS = {"loss": (0.1, 10.0), "gradient": (1e-2, 10.0)}
LETTERS = 92  # of a line of an answer


@dataclass
class Feed:
    """What is known of a run. loss: step -> training loss; validation: step -> loss; tokens: seen so far; seconds: of
    training, without what evaluation took; ended: "" while it runs, else "done" or the reason."""

    total: int = 0
    loss: dict[int, float] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    tokens: float = 0.0
    seconds: float = 0.0
    steps_timed: int = 0
    ended: str = ""

    @property
    def step(self) -> int:
        return max(self.loss, default=0)

    @property
    def tokens_per_second(self) -> float | None:
        """None until it is known."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds to go, at the mean pace so far; None until it is known."""
        if not self.steps_timed or not self.total:
            return None
        return max(0, self.total - self.step) * self.seconds / self.steps_timed


def live_view(
    total_steps: int | None = None, samples: Samples | None = None, clock: Callable[[], float] = time.monotonic
) -> LiveTraining:
    """A view of the next run. Give `.callback` to the trainer, display the view, train.

    total_steps: length of the time axis before the run says it itself. samples: a `Samples` callback whose answers are
    shown; it stands before `.callback` in the trainer's list. Raises ValueError for fewer than one step."""
    return LiveTraining(total_steps, samples, clock)


class LiveTraining:
    """See `live_view`. `feed`: the numbers; `norms`: a `GradientNorms`; `box`: the widget."""

    def __init__(self, total_steps: int | None, samples: Samples | None, clock: Callable[[], float]) -> None:
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps = {total_steps}: at least 1, or None")
        self.feed, self.norms, self.samples = Feed(total_steps or 0), GradientNorms(), samples
        self.callback = _Listener(self, clock)
        self._picture = _Picture(samples is not None)
        self._canvas = BlitCanvas(self._picture.figure, self._picture.moving)
        self.progress = ipywidgets.IntProgress(0, 0, total_steps or 1, layout={"width": "220px"})
        self.status = ipywidgets.HTML("No run yet.")
        state = ipywidgets.HBox([self.progress, self.status], layout={"align_items": "center", "flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([state, self._canvas.image])
        self.draw(whole=True)

    def status_text(self) -> str:
        """The live line: step, loss, tokens per second, time left."""
        feed = self.feed
        parts = [f"step {feed.step} of {feed.total}"]
        if feed.loss:
            parts.append(f"loss {feed.loss[feed.step]:.3f}")
        if feed.tokens_per_second is not None:
            parts.append(f"{feed.tokens_per_second:,.0f} tokens/s")
        if feed.left is not None and not feed.ended:
            parts.append(f"{_duration(feed.left)} left")
        return ", ".join(parts) + (f". {feed.ended}" if feed.ended else "")

    def alt(self) -> str:
        """The text alternative: what the run decides, no speeds."""
        feed = self.feed
        if not feed.loss:
            return "An empty picture of a training run: nothing has been trained yet."
        losses = [feed.loss[step] for step in sorted(feed.loss)]
        parts = [f"Training loss from {losses[0]:.3g} to {losses[-1]:.3g} over {feed.step} steps"]
        if feed.validation:
            parts.append(f"validation loss {feed.validation[max(feed.validation)]:.3g} at the end")
        if self.norms.rows:
            last = self.norms.rows[-1]
            parts.append(f"last gradient norms {last['A']:.2g} of A and {last['B']:.2g} of B")
        text = "; ".join(parts) + "."
        rows = self.samples.rows if self.samples else []
        return text + (f" Its last answer: {rows[-1]['answers'][0]}" if rows else "")

    def draw(self, whole: bool = False) -> None:
        """Show what is known. whole: also what stands still."""
        rows = self.samples.rows if self.samples else []
        whole = self._picture.show(self.feed, self.norms.rows, rows) or whole
        self._canvas.redraw() if whole else self._canvas.update()
        self.progress.max, self.progress.value = max(self.feed.total, 1), self.feed.step
        self.status.value = html.escape(self.status_text()) if self.feed.total else "No run yet."

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = bundle(self._canvas.png(), self.alt(), WIDTH * CSS_PER_INCH)
        return {**self.box._repr_mimebundle_(), **data}, metadata


class _Listener(TrainerCallback):
    """Hands on to a view what Trainer tells."""

    def __init__(self, view: LiveTraining, clock: Callable[[], float]) -> None:
        self.view, self.clock = view, clock
        self._began = self._drawn = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.view.feed = Feed(state.max_steps)
        self.view.norms.rows.clear()
        self.view.draw(whole=True)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._began = self.clock()

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.view.norms.on_pre_optimizer_step(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        feed = self.view.feed
        feed.seconds += self.clock() - self._began
        feed.steps_timed += 1

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        feed, logs = self.view.feed, logs or {}
        self.view.norms.on_log(args, state, control, logs=logs)
        if "loss" in logs:
            feed.loss[state.global_step] = float(logs["loss"])
            feed.tokens = float(logs.get("num_tokens", state.num_input_tokens_seen) or 0)
        if "eval_loss" in logs:
            feed.validation[state.global_step] = float(logs["eval_loss"])
        if self.clock() - self._drawn > PAUSE:
            self.view.draw()
            self._drawn = self.clock()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        done = state.global_step >= state.max_steps
        self.view.feed.ended = "Done." if done else f"Ended early, after {state.global_step} steps."
        self.view.draw(whole=True)


class _Picture:
    """`figure` and its `moving` artists."""

    def __init__(self, answers: bool) -> None:
        below = 1.05 if answers else 0.0
        self.height = 2.75 + below
        with plots.style():
            self.figure = Figure(figsize=(WIDTH, self.height))
            self.loss = self._panel(0.62, 3.6, below, "Loss (nats per token)", "loss")
            self.gradient = self._panel(5.0, 2.45, below, "Gradient norms before clipping", "gradient")
            self._train = self.loss.plot([], [], color=COLOURS[0], ls="-", marker="", label="training")[0]
            look = {"color": "black", "ls": "", "marker": "D", "ms": 4.5}
            self._valid = self.loss.plot([], [], **look, label="validation")[0]
            self._factors = [
                self.gradient.plot([], [], color=COLOURS[i + 2], ls=LINES[i], marker="", label=f"of {name}")[0]
                for i, name in enumerate("AB")
            ]
            for ax in (self.loss, self.gradient):
                # From copies: the lines move, and a full draw leaves what moves out.
                handles = [still(line) for line in ax.lines]
                names = [line.get_label() for line in ax.lines]
                ax.legend(handles, names, loc="upper right", handlelength=1.8, borderaxespad=0.1)
            look = {"size": 8.5, "family": "DejaVu Sans Mono", "va": "top", "color": "black"}
            tops = [(below - 0.08 - 0.31 * i) / self.height for i in range(SHOWN)]
            self._answers = [self.figure.text(0.012, top, "", **look) for top in tops] if answers else []
        self.moving = [self._train, self._valid, *self._factors, *self._answers]
        self._total = 0

    def _panel(self, left: float, width: float, below: float, title: str, name: str) -> Axes:
        place = (left / WIDTH, (below + 0.5) / self.height, width / WIDTH, 1.85 / self.height)
        ax = self.figure.add_axes(place)
        ax.set(yscale="log", ylim=LIMITS[name], xlabel="training step", xlim=(0, 11))
        ax.set_title(title, size=10)
        ax.yaxis.set_major_locator(LogLocator(numticks=6))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return ax

    def show(self, feed: Feed, norms: Sequence[dict], rows: Sequence[dict]) -> bool:
        """Set every artist. True if an axis has changed, so that all has to be drawn."""
        moved = self._total != feed.total
        self._total = feed.total
        if moved and feed.total:
            for ax in (self.loss, self.gradient):
                ax.set_xlim(0, max(10, feed.total) + 1)
        for line, points in ((self._train, feed.loss), (self._valid, feed.validation)):
            line.set_data(sorted(points), [points[step] for step in sorted(points)])
        for line, name in zip(self._factors, "AB", strict=True):
            line.set_data([row["step"] for row in norms], [row[name] or np.nan for row in norms])  # A begins with zero
        moved |= _grow(self.loss, [*feed.loss.values(), *feed.validation.values()])
        moved |= _grow(self.gradient, [row[name] for row in norms for name in "AB"])
        chosen = [rows[0], *rows[1:-1][-(SHOWN - 2) :], rows[-1]] if len(rows) > 1 else list(rows)
        for text, row in zip(self._answers, [*chosen, *[None] * SHOWN], strict=False):
            text.set_text("" if row is None else _answer(row))
        return moved


def _answer(row: dict) -> str:
    said = " ".join(row["answers"][0].split()).replace("$", r"\$")
    head = f"after step {row['step']:>3}: "
    return head + textwrap.shorten(said, LETTERS - len(head), placeholder=" ...")


def _grow(ax: Axes, values: Sequence[float]) -> bool:
    """Widen a log axis by factors of ten until it holds the values. True if it has moved."""
    was = low, high = ax.get_ylim()
    known = [value for value in values if 0 < value < math.inf]
    while known and min(known) < low:
        low /= 10
    while known and max(known) > high:
        high *= 10
    ax.set_ylim(low, high)
    return (low, high) != was


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
