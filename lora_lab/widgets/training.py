"""The training explorer: what rank, alpha, rule, optimizer and rate do to the first step, and what a real run does.

Above, the first step of one layer (`step_explorer`). Below, a short run of the course's model with the same settings,
in a process of its own (`live_run`): start it, watch it, cancel it, pin it and start another one beside it.
"""

from __future__ import annotations

import html
import io
import time
from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np
from PIL import Image
from torch import Tensor

from lora_lab.background import Settings
from lora_lab.plots.output import CSS_PER_INCH, bundle
from lora_lab.plots.style import WIDTH
from lora_lab.widgets.canvas import LIVE_DPI, BlitCanvas
from lora_lab.widgets.live_run import LiveRun
from lora_lab.widgets.step_explorer import RULES, StepExplorer
from lora_lab.widgets.training_figure import MOST_PINS, Run, RunFigure

STEPS = (20, 40, 80)
PAUSE = 0.25  # seconds between two pictures of a run
LATE = 5  # steps that the final loss is a mean of


def training_explorer(
    gradient: Tensor, layer: str = "one layer", seed: int = 0, pins: Sequence[Run] = ()
) -> TrainingExplorer:
    """Explore the first step of one layer, and train with the same settings. Display the result.

    gradient: ∂L/∂W (out, in) of the layer, with its name. pins: runs to compare with from the beginning, at most four.
    Raises ValueError when the gradient is no matrix, is zero or not finite, or there are too many pins."""
    return TrainingExplorer(gradient, layer, seed, pins)


class TrainingExplorer(StepExplorer):
    """See `training_explorer`. Controls: those of `StepExplorer`, `steps`, and the buttons `start`, `cancel`, `pin`,
    `clear`. `live` is the run in progress or the last one, `pins` the runs beside it."""

    def __init__(self, gradient: Tensor, layer: str = "one layer", seed: int = 0, pins: Sequence[Run] = ()) -> None:
        if len(pins) > MOST_PINS:
            raise ValueError(f"{len(pins)} pins; at most {MOST_PINS} can be told apart")
        self.live: Run | None = None
        self.pins: list[Run] = list(pins)
        self._drawn_at = 0.0
        super().__init__(gradient, layer, seed)
        self._add_training()

    def alt(self) -> str:
        """The text alternative for the present settings and runs."""
        runs = [run for run in self._shown() if run.loss]
        if not runs:
            return f"{super().alt()} Below, empty graphs for a training run."
        ends = "; ".join(f"{run.label} ends at {late_loss(run):.3g}" for run in runs)
        return f"{super().alt()} Below, the loss and the update's norm of training runs over their steps: {ends}."

    def _add_training(self) -> None:
        self.steps = ipywidgets.Dropdown(options=STEPS, value=40, description="steps", layout={"width": "150px"})
        self.start = ipywidgets.Button(description="Train", icon="play", button_style="primary")
        self.cancel = ipywidgets.Button(description="Cancel", icon="stop", disabled=True)
        self.pin = ipywidgets.Button(description="Pin this run", icon="thumb-tack", disabled=True)
        self.clear = ipywidgets.Button(description="Remove pins", icon="trash", disabled=not self.pins)
        self.progress = ipywidgets.IntProgress(0, 0, 40, layout={"width": "220px"})
        self.status = ipywidgets.HTML("No run yet.")
        self.table = ipywidgets.HTML(layout={"margin": "0 0 6px 8px"})
        self._runs = RunFigure()
        self._runs.span(max((run.settings.steps for run in self.pins), default=self.steps.value))
        self._runs.legend(self.pins)
        self._run_canvas = BlitCanvas(self._runs.figure, self._runs.moving)
        self.run = LiveRun(self._heard)
        for button, action in (
            (self.start, self._start),
            (self.cancel, lambda _: self.run.cancel()),
            (self.pin, self._pin),
            (self.clear, self._clear),
        ):
            button.on_click(action)
        wrap = {"flex_flow": "row wrap", "align_items": "center"}
        buttons = ipywidgets.HBox([self.steps, self.start, self.cancel, self.pin, self.clear], layout=wrap)
        state = ipywidgets.HBox([self.progress, self.status], layout=wrap)
        self.box.children = [*self.box.children, buttons, state, self._run_canvas.image, self.table]
        self._draw_runs(whole=True)

    @property
    def settings(self) -> Settings:
        """What a run started now would use."""
        return Settings(
            rank=self.rank.value,
            alpha=self.alpha.value,
            rule=RULES[self.rule.value],
            optimizer=self.optimizer.value,
            lr=self.rate.value,
            steps=self.steps.value,
        )

    def close(self) -> None:
        """End a run in progress and its process, and take the widgets out of the notebook."""
        self.run.close()
        self.box.close()

    def _start(self, _: Any = None) -> None:
        with self._lock:
            if self.run.running:  # a second click before the first was answered
                return
            self.live = Run(self.settings)
            self.progress.max, self.progress.value = self.live.settings.steps, 0
            self._buttons(running=True)
            self._say("Starting; the first time this takes some seconds.")
            self._runs.span(max(run.settings.steps for run in (self.live, *self.pins)))
            self._draw_runs(whole=True)
            try:
                self.run.start(self.live.settings)
            except (OSError, RuntimeError) as error:
                self._heard({"kind": "error", "says": f"The run could not be started: {error}"})

    def _pin(self, _: Any = None) -> None:
        if self.live is None or not self.live.loss or self._is_pinned():
            return
        self.pins = [*self.pins, self.live][-MOST_PINS:]  # the oldest makes room
        self._pinned()

    def _clear(self, _: Any = None) -> None:
        self.pins = []
        self._pinned()

    def _pinned(self) -> None:
        self._runs.legend(self.pins)
        self._buttons(self.run.running)
        self._draw_runs(whole=True)

    def _heard(self, event: dict) -> None:
        """An event of the run; comes from its thread."""
        run = self.live
        if run is None or run.ended:  # a step that was on its way when the run was cancelled
            return
        run.take(event)
        steps = run.settings.steps
        if event["kind"] == "step":
            self.progress.value = event["step"]
            self._say(f"step {event['step']} of {steps}, loss {event['loss']:.3f}")
            if time.monotonic() - self._drawn_at > PAUSE:
                self._draw_runs()
        elif event["kind"] == "done":
            self._say(f"Done: {steps} steps, loss on unseen requests {run.validation:.3f}.")
        elif event["kind"] == "cancelled":
            self._say(f"Cancelled after {len(run.loss)} of {steps} steps.")
        elif event["kind"] == "error":
            self._say(html.escape(event["says"]))
        if run.ended:
            self._buttons(running=False)
            self._draw_runs()

    def _say(self, text: str) -> None:
        self.status.value = text

    def _buttons(self, running: bool) -> None:
        self.start.disabled, self.cancel.disabled = running, not running
        self.pin.disabled = running or self.live is None or not self.live.loss or self._is_pinned()
        self.clear.disabled = not self.pins

    def _draw_runs(self, whole: bool = False) -> None:
        with self._lock:
            self._runs.show(self.live, self.pins, self._is_pinned())
            whole = self._runs.fit(self._shown()) or whole
            self._run_canvas.redraw() if whole else self._run_canvas.update()
            self._drawn_at = time.monotonic()
            self.table.value = _table(self._shown())

    def _shown(self) -> list[Run]:
        """The pinned runs, then the live one."""
        return [*self.pins, *([self.live] if self.live and not self._is_pinned() else [])]

    def _is_pinned(self) -> bool:
        return any(self.live is pin for pin in self.pins)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        with self._lock:
            pictures = [canvas.png() for canvas in (self.canvas, self._run_canvas)]
            data, metadata = bundle(_stacked(pictures), self.alt(), WIDTH * CSS_PER_INCH)
        return {**self.box._repr_mimebundle_(), **data}, metadata


def late_loss(run: Run) -> float:
    """Mean training loss of the last steps."""
    return float(np.mean(run.loss[-LATE:]))


def _table(runs: Sequence[Run]) -> str:
    """The runs in numbers, as HTML."""
    if not runs:
        return ""
    rows = ""
    for run in runs:
        known = run.norm_W is not None
        cells = (
            html.escape(run.label),
            f"{run.settings.scale:.3g}",
            f"{late_loss(run):.3f}" if run.loss else "",
            f"{run.validation:.3f}" if known else "",
            f"{run.norm[-1] / run.norm_W:.1%}" if known else "",
            f"{run.grad_A[-1]:.2g}, {run.grad_B[-1]:.2g}" if run.loss else "",
        )
        rows += "<tr>" + "".join(f'<td style="padding: 0 8px">{cell}</td>' for cell in cells) + "</tr>"
    heads = ("run", "s", f"loss, last {LATE}", "loss, unseen", "‖ΔW‖ / ‖W‖", "last gradients of A, B")
    head = "".join(f'<th style="padding: 0 8px; text-align: left">{text}</th>' for text in heads)
    return f'<table style="line-height: 1.5"><tr>{head}</tr>{rows}</table>'


def _stacked(pictures: Sequence[bytes]) -> bytes:
    """One PNG of several, from top to bottom, white between them."""
    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    gap = LIVE_DPI // 10
    size = max(each.width for each in opened), sum(each.height + gap for each in opened) - gap
    whole, top = Image.new("RGB", size, "white"), 0
    for each in opened:
        whole.paste(each, (0, top))
        top += each.height + gap
    out = io.BytesIO()
    whole.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
