"""One small training loop: AdamW, linear warm-up and cosine decay, gradient clipping, fixed seeds, stop and resume.

Step t sees the batch `batch_at(examples, batch_size, seed, t)` and the dropout of seed (seed, t): both depend on t
alone. A run that is stopped and resumed therefore gives the same numbers as one that never stopped.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from lora_lab.base import is_quantized
from lora_lab.batches import IGNORE, batch_at, collate, fingerprint
from lora_lab.checkpoint import Fixed, resume, save_checkpoint
from lora_lab.init.check import check_positive
from lora_lab.inject import lora_layers
from lora_lab.modes import evaluating, modes_kept
from lora_lab.variants.experts import expert_layers
from lora_lab.variants.lora_plus import parameter_groups


class Diverged(ValueError):
    """A run's loss or gradient norm is NaN or infinite. The parameters are those before the failing step."""


@dataclasses.dataclass
class History:
    """One entry per finished step: loss (nats per token), gradient norm before clipping, learning rate."""

    loss: list[float] = dataclasses.field(default_factory=list)
    grad_norm: list[float] = dataclasses.field(default_factory=list)
    lr: list[float] = dataclasses.field(default_factory=list)

    @property
    def steps(self) -> list[int]:
        """1, 2, ..., number of finished steps."""
        return list(range(1, len(self.loss) + 1))


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Rate at `step` (0-based): linear from 0 over the first `warmup` share of `steps`, then half a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train(
    model: nn.Module,
    examples: Sequence[dict],
    *,
    steps: int,
    lr: float,
    lr_ratio: float = 1.0,
    batch_size: int = 16,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    seed: int = 0,
    pad_id: int = 0,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    save_every: int = 50,
    on_step: Callable[[int, History], bool | None] | None = None,
) -> History:
    """Train the parameters of `model` that require gradients, in place, and return what happened.

    Args:
        model: called as `model(input_ids=, attention_mask=, labels=)`, returns an object with `.loss`.
        examples: {"input_ids": [int], "labels": [int]}, labels -100 where the loss should not look.
        steps: optimizer steps in all (a resumed run counts those done before).
        lr: peak learning rate.  warmup: share of the steps.  clip: largest gradient norm.
        lr_ratio: LoRA+, how many times the rate of A that of B is.
        checkpoint: a file. If it exists the run goes on from it. It is written every `save_every` steps, at the end
            and when `on_step` stops the run: beside first, then replaced.
        on_step: called with (steps done, history) after each step; returning True stops the run.

    The mode (train or eval) of every module and the global random state are left as found.

    Raises:
        ValueError: before anything changes: nothing trainable, merged adapters, no examples or nothing to learn in
            one, a setting outside its limits, or a checkpoint that is unreadable or of another run.
        Diverged: during the run: a loss or a gradient norm that is NaN or infinite.
    """
    _check_settings(steps, lr, lr_ratio, batch_size, warmup, clip, seed, save_every)
    _check_data(model, examples)
    # Plain numbers, also where numpy's came in: a checkpoint with others could not be read again.
    lr, lr_ratio, warmup, weight_decay, clip = map(float, (lr, lr_ratio, warmup, weight_decay, clip))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [{"params": list(parameters.values()), "lr_ratio": 1.0}]
    if lr_ratio != 1:
        groups = parameter_groups(model, lr, lr_ratio, weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed, "pad_id": pad_id}
    settings |= {"lr": lr, "lr_ratio": lr_ratio, "warmup": warmup, "weight_decay": weight_decay, "clip": clip}
    settings |= {"examples": fingerprint(examples), "adapters": _adapters(model)}
    history = History()
    if checkpoint is not None and Path(checkpoint).exists():
        history = History(**resume(Path(checkpoint), settings, parameters, optimizer, _fixed(model)))
    device = next(iter(parameters.values())).device
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    silent = not progress or bool(os.environ.get("TQDM_DISABLE"))  # tqdm's notebook bar does not look at it itself
    bar = tqdm(total=steps, initial=len(history.loss), disable=silent, leave=False, unit="step")
    try:
        with modes_kept(model), torch.random.fork_rng(devices=gpus):
            for step in range(len(history.loss), steps):
                rate = learning_rate(step, steps, lr, warmup)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["lr_ratio"]
                model.train()  # every step: `on_step` may have evaluated
                _seed(seed * 1_000_003 + step, gpus)  # the dropout of this step
                batch = collate(batch_at(examples, batch_size, seed, step), pad_id, device)
                loss, norm = _step(model, batch, optimizer, list(parameters.values()), clip, step)
                history.loss.append(loss)
                history.grad_norm.append(norm)
                history.lr.append(rate)
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                stop = on_step is not None and bool(on_step(step + 1, history))
                if checkpoint is not None and (stop or step + 1 == steps or (step + 1) % save_every == 0):
                    save_checkpoint(Path(checkpoint), settings, parameters, optimizer, history, _fixed(model))
                if stop:
                    break
    finally:
        bar.close()
    return history


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[dict], batch_size: int = 64, pad_id: int = 0) -> float:
    """Mean loss (nats) per labelled token over all `examples`, in evaluation mode. The modes are left as found.

    Every token counts the same, however the examples are batched. Raises ValueError if `examples` is empty, or holds
    no label to predict.
    """
    if not len(examples):
        raise ValueError("examples is empty")
    device = next(model.parameters()).device
    total = tokens = 0
    with evaluating(model):
        # Sorted by length, so that a batch holds little padding.
        ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
        for start in range(0, len(ordered), batch_size):
            batch = collate(ordered[start : start + batch_size], pad_id, device)
            labelled = int((batch["labels"][:, 1:] != IGNORE).sum())  # the first token has nothing before it
            if labelled:  # the mean of no loss at all is NaN
                total += model(**batch).loss.item() * labelled
            tokens += labelled
    if not tokens:
        raise ValueError("the examples hold no label to predict: every one is -100, or stands first")
    return total / tokens


def _seed(seed: int, gpus: Iterable[torch.device]) -> None:
    # Not torch.manual_seed: that seeds every GPU of the machine, and only those of the model are put back.
    torch.default_generator.manual_seed(seed)
    for gpu in gpus:
        with torch.cuda.device(gpu):
            torch.cuda.manual_seed(seed)


def _step(model, batch, optimizer, parameters: list[nn.Parameter], clip: float, step: int) -> tuple[float, float]:
    optimizer.zero_grad(set_to_none=True)
    loss = model(**batch).loss
    value = loss.item()
    if not math.isfinite(value):
        raise Diverged(f"loss is {value} at step {step + 1}: lower the learning rate, or train in fp32 or bf16")
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, clip).item()
    if not math.isfinite(norm):
        raise Diverged(f"gradient norm is {norm} at step {step + 1}: lower the learning rate")
    optimizer.step()
    return value, norm


def _check_settings(steps, lr, lr_ratio, batch_size, warmup, clip, seed, save_every) -> None:
    whole = {"steps": (steps, 1), "batch_size": (batch_size, 1), "save_every": (save_every, 1), "seed": (seed, 0)}
    for name, (value, low) in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**40:
            raise ValueError(f"{name} must be a whole number from {low} to 2**40, got {value!r}")
    for name, value in (("lr", lr), ("lr_ratio", lr_ratio), ("clip", clip)):
        check_positive(value, name)
    if not isinstance(warmup, int | float) or not 0 <= warmup <= 1:
        raise ValueError(f"warmup is a share of the steps, 0 to 1, got {warmup!r}")


def _check_data(model: nn.Module, examples: Sequence[dict]) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("nothing to train: no parameter of the model requires a gradient (inject first)")
    if any(layer.merged for layer in (lora_layers(model) | expert_layers(model)).values()):
        raise ValueError("the adapters are merged into the base, where they cannot train: unmerge_ first")
    if not len(examples):
        raise ValueError("examples is empty")
    for index, example in enumerate(examples):
        if len(example["input_ids"]) != len(example["labels"]):
            raise ValueError(f"example {index}: {len(example['input_ids'])} input_ids, {len(example['labels'])} labels")
        if all(label == IGNORE for label in example["labels"][1:]):
            raise ValueError(f"example {index}: every label is {IGNORE}, so there is nothing to learn (cut too short?)")


def _adapters(model: nn.Module) -> dict[str, list]:
    """What a checkpoint's A and B mean: scale and dropout of every LoRA layer, and the codes of its base."""

    def codes(base: nn.Module) -> list:
        return [base.kind, base.block_size, base.double] if is_quantized(base) else []

    layers = {
        name: [layer.scale, float(getattr(layer.dropout, "p", 0.0)), *codes(layer.base)]
        for name, layer in lora_layers(model).items()
    }
    experts = expert_layers(model).items()
    return layers | {f"{name}.{t}": [update.scale] for name, layer in experts for t, update in layer.updates.items()}


def _fixed(model: nn.Module) -> Fixed:
    """What does not train, and without which A and B mean something else: frozen factors, and shifts of the base."""
    layers = lora_layers(model).items()
    frozen = {f"{n}.{f}": getattr(m, f).detach() for n, m in layers for f in "AB" if not getattr(m, f).requires_grad}
    return Fixed(frozen, {name: (m.A0, m.B0) for name, m in layers if m.A0 is not None})
