"""Callbacks for transformers' `Trainer` and TRL's: what the course wants to see of a run, and when it should stop.

    GradientNorms()                        the norms of the gradients of A and of B, each step
    StopOnNaN()                            ends a run before a gradient that is no number reaches the weights
    Samples(tokenizer, examples)           what the model answers as it improves
    ExactMatch(tokenizer, task, examples)  share of right answers, by generation: to choose a checkpoint by, or to stop

The order (transformers 5): backward, clip, on_pre_optimizer_step, step, on_step_end, on_log, on_evaluate, on_save;
on_epoch_end after the last step, then on_log, on_evaluate and on_save again.
Gradients exist in on_pre_optimizer_step, clipped already; in on_step_end they are gone.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from lora_lab.models import answer
from lora_lab.tasks import TASKS, Example, score

log = logging.getLogger(__name__)
NEAR = 1e-3  # a total this close to max_grad_norm has been clipped


def factor_of(name: str) -> str:
    """ "A", "B" or "other": what the parameter of this name is, in PEFT's adapters and in the course's."""
    parts = name.split(".")
    for factor, ours in (("A", "lora_A"), ("B", "lora_B")):
        if ours in parts or parts[-1] == factor or f"lora_embedding_{factor}" in parts:
            return factor
    return "other"


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Frobenius norms of the present gradients: over all A, over all B, over what else trains, and over all.

    Parameters without a gradient count as zero. A norm that is no number stays one.
    """
    found: dict[str, list[Tensor]] = {"A": [], "B": [], "other": []}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[factor_of(name)].append(parameter.grad)
    norms = {kind: _norm(gradients) for kind, gradients in found.items()}
    return norms | {"total": math.hypot(*norms.values())}


class GradientNorms(TrainerCallback):
    """The norms of the gradients of A and of B, step by step, before clipping.

    `rows`: {"step", "A", "B", "other", "total", "clipped"}, one a step. Trainer clips before any callback may look. A
    clipped gradient is one factor smaller in all its parts, and Trainer logs the total before clipping: with
    `logging_steps=1` each row is put right when the total is known, and "clipped" says whether that was needed. A
    clipped step that is not logged keeps its norms as seen, which then make up max_grad_norm; its "clipped" is None.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @property
    def steps(self) -> list[int]:
        return [row["step"] for row in self.rows]

    @property
    def A(self) -> list[float]:
        return [row["A"] for row in self.rows]

    @property
    def B(self) -> list[float]:
        return [row["B"] for row in self.rows]

    @property
    def total(self) -> list[float]:
        return [row["total"] for row in self.rows]

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        step = state.global_step + 1  # it is counted after the optimizer
        self.rows = [row for row in self.rows if row["step"] < step]  # a resumed run sees some steps again
        norms = gradient_norms(model)
        limit = args.max_grad_norm or math.inf
        self.rows.append({"step": step, **norms, "clipped": None if norms["total"] > limit * (1 - NEAR) else False})

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        total = (logs or {}).get("grad_norm")
        row = next((row for row in reversed(self.rows) if row["step"] == state.global_step), None)
        if total is None or row is None or row["clipped"] is not None or not row["total"]:
            return
        factor = float(total) / row["total"]
        row |= {key: row[key] * factor for key in ("A", "B", "other", "total")}
        row["clipped"] = factor > 1 + NEAR


class StopOnNaN(TrainerCallback):
    """Ends a run at the first gradient or weight that is NaN or infinite, with the weights as they were before.

    A loss that is no number makes gradients that are none, so looking at them is enough; the log would not show it:
    by default (`logging_nan_inf_filter`) Trainer puts an average in the place of a loss that is no number. The
    gradients are dropped, so that the optimizer has nothing to do in the step that follows. A stopped run saves no more
    checkpoints, so that none can take the place of the last good one.

    allowed: so many failing steps in a row are let pass if a loss scaler guards the optimizer (fp16 on CUDA): it skips
        such a step by itself and lowers its scale, which is how it finds one that fits.

    `stopped`: "" or what happened, where, and from which checkpoint to go on. `last_good`: path of the last checkpoint
    that was written while all weights were finite, None without one.
    """

    def __init__(self, allowed: int = 0) -> None:
        if isinstance(allowed, bool) or not isinstance(allowed, int) or allowed < 0:
            raise ValueError(f"allowed must be a whole number from 0, got {allowed!r}")
        self.allowed = allowed
        self.stopped = ""
        self.last_good: str | None = None
        self._failed = 0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.stopped, self._failed = "", 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> Any:
        bad = not_finite((n, p.grad) for n, p in model.named_parameters() if p.grad is not None)
        self._failed = self._failed + 1 if bad else 0
        if not bad or (_has_scaler(args) and self._failed <= self.allowed):
            return control
        for parameter in model.parameters():
            parameter.grad = None
        return self._stop(control, state.global_step + 1, f"the gradient of {bad}")

    def on_step_end(self, args, state, control, model=None, **kwargs) -> Any:
        if self.stopped:
            return _no_checkpoint(args, control)
        bad = not_finite((n, p) for n, p in model.named_parameters() if p.requires_grad)
        return self._stop(control, state.global_step, f"after the optimizer's step {bad}") if bad else control

    def on_epoch_end(self, args, state, control, **kwargs) -> Any:
        """A run that stops ends its epoch too, in the middle or not, and `save_strategy="epoch"` saves there."""
        return _no_checkpoint(args, control) if self.stopped else control

    def on_save(self, args, state, control, model=None, **kwargs) -> None:
        if not self.stopped and not not_finite((n, p) for n, p in model.named_parameters() if p.requires_grad):
            self.last_good = str(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")

    def _stop(self, control: Any, step: int, what: str) -> Any:
        good = (
            f"Go on from {_short(self.last_good)}" if self.last_good else "There is no checkpoint to go on from: begin"
        )
        advice = "with a lower learning rate, or in bf16 or fp32"
        self.stopped = f"Stopped at step {step}: {what} is not finite. {good} {advice}."
        log.warning(self.stopped)
        control.should_training_stop = True
        control.should_save = False
        return control


class Samples(TrainerCallback):
    """What the model answers to a few prompts: before training, during it, and at the end.

    examples: `lora_lab.tasks.Example`s; keep them few, since each look generates. every: a look after so many steps;
    None: after each evaluation. `rows`: {"step", "answers": one string an example}. The model's mode is left as found.
    Raises ValueError without examples.
    """

    def __init__(self, tokenizer: Any, examples: Sequence[Example], every: int | None = None, length: int = 48) -> None:
        if not examples:
            raise ValueError("examples is empty: nothing to ask")
        if every is not None and every < 1:
            raise ValueError(f"every = {every}: at least 1, or None for each evaluation")
        self.tokenizer, self.examples, self.every, self.length = tokenizer, list(examples), every, length
        self.rows: list[dict[str, Any]] = []

    def look(self, model: nn.Module, step: int) -> None:
        """Ask now, and write down the answers as those of this step."""
        if self.rows and self.rows[-1]["step"] == step:
            return
        answers = answer(model, self.tokenizer, [e.prompt for e in self.examples], max_new_tokens=self.length)
        self.rows = [row for row in self.rows if row["step"] < step] + [{"step": step, "answers": answers}]

    def table(self, which: int = 0) -> str:
        """The answers to one prompt over the steps, in plain text, a star where the answer is the one wanted."""
        example = self.examples[which]
        lines = [f"prompt    {example.prompt}", f"wanted    {example.completion}"]
        for row in self.rows:
            given = row["answers"][which]
            lines.append(f"step {row['step']:>4} {'*' if given == example.completion else ' '}{given}")
        return "\n".join(lines)

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.look(model, state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if self.every and state.global_step % self.every == 0:
            self.look(model, state.global_step)

    def on_evaluate(self, args, state, control, model=None, **kwargs) -> None:
        if self.every is None:
            self.look(model, state.global_step)

    def on_train_end(self, args, state, control, model=None, **kwargs) -> None:
        self.look(model, state.global_step)


class ExactMatch(TrainerCallback):
    """After each evaluation, the task's metrics over generated answers, as "eval_exact" and so on.

    They are added to the metrics that Trainer chooses its best checkpoint by and that `EarlyStoppingCallback` reads:
    `metric_for_best_model="eval_exact", greater_is_better=True`, and this callback before that one in the list.

    examples: those whose answers are compared, as a rule of the validation split (never the test split: what chooses
    a checkpoint cannot judge it). `rows`: {"step", "eval_exact", ...}. Raises KeyError for an unknown task, ValueError
    without examples.
    """

    def __init__(self, tokenizer: Any, task: str, examples: Sequence[Example], prefix: str = "eval") -> None:
        if task not in TASKS:
            raise KeyError(f"unknown task {task!r}: one of {', '.join(TASKS)}")
        if not examples:
            raise ValueError("examples is empty: no answers to compare")
        self.tokenizer, self.task, self.examples, self.prefix = tokenizer, task, list(examples), prefix
        self.rows: list[dict[str, float]] = []

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs) -> None:
        found = score(self.task, model, self.tokenizer, self.examples)
        found = {f"{self.prefix}_{name}": value for name, value in found.items()}
        self.rows.append({"step": state.global_step, **found})
        if metrics is not None:
            metrics.update(found)
        # The entry of this evaluation has been written before callbacks are asked: complete it.
        if state.log_history and f"{self.prefix}_loss" in state.log_history[-1]:
            state.log_history[-1].update(found)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The name of the first tensor that holds NaN or infinity, "" if there is none."""
    names, sums = [], []
    for name, tensor in tensors:
        names.append(name)
        # One number a tensor, one look at the device for all: x·0 is NaN unless x is finite, and so is the sum.
        sums.append((tensor.detach() * 0).sum().float())
    if not sums:
        return ""
    bad = ~torch.isfinite(torch.stack([each.to(sums[0].device) for each in sums]))
    return next(itertools.compress(names, bad.tolist()), "")


def _norm(gradients: Sequence[Tensor]) -> float:
    return torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0


def _no_checkpoint(args: Any, control: Any) -> Any:
    """The trainer's own callbacks have asked for a checkpoint meanwhile: with `save_total_limit` it could push out the
    last good one. Under "best" it is the evaluation that asks."""
    control.should_save = False
    if args.save_strategy == SaveStrategy.BEST:
        control.should_evaluate = False
    return control


def _has_scaler(args: Any) -> bool:
    return bool(args.fp16) and torch.cuda.is_available() and not args.use_cpu


def _short(path: str) -> str:
    """Relative to the working directory if it lies below: a message is read on other machines too."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
