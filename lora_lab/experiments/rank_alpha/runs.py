"""One training run: what can be set, and what is recorded of it.

`measure(world, setting)` trains a fresh copy of the base and returns the setting and the results as one flat dict: a
row of the files, and what `point` returns. The same setting gives the same row again on the same machine.
"""

import copy
import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_lab import inject, lora_layers
from lora_lab.experiments.sweep import digits, one_thread
from lora_lab.models import load_base
from lora_lab.spectrum import factor_norm
from lora_lab.targets import ALL_LINEAR, find_targets
from lora_lab.tasks import TASKS, encode, load, score
from lora_lab.train import Diverged, History, mean_loss, train

RULES = {"alpha/r": False, "alpha/sqrt(r)": True}  # the rule for s -> is it rsLoRA?
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
TARGETS: dict[str, str | list[str]] = {
    "all linear": ALL_LINEAR,
    "attention": ATTENTION,
    "MLP": MLP,
    "q and v": ["q_proj", "v_proj"],
}
METHODS = ("lora", "full", "full, linear layers")
ONLY_LORA = ("rank", "alpha", "rule", "targets", "dropout", "lr_ratio")
CURVE = 20  # points of the curve of the training loss
VALIDATION = 100  # examples that choose the rate
SCORED = {"support_desk": 60, "new_facts": 300, "cipher": 100}  # test examples that are answered, word for word


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that decides a run. Settings that only LoRA has are None in full fine-tuning.

    task: a name of `lora_lab.tasks.TASKS`.  examples: the first so many of the training split, None for all.
    method: "lora", "full" (every parameter of the model), "full, linear layers" (the matrices that LoRA may adapt).
    rank: where a layer is too small for it (k and v at rank 128 have 64 outputs), the layer gets its largest.
    rule: s = alpha/r or alpha/sqrt(r).  targets: a name of `TARGETS`.  lr: the peak; that of A, with an `lr_ratio`.
    watch: every so many steps the loss on the validation split is taken (0: never).
    """

    task: str = "new_facts"
    examples: int | None = None
    method: str = "lora"
    rank: int | None = 8
    alpha: float | None = 16
    rule: str | None = "alpha/r"
    targets: str | None = "all linear"
    dropout: float | None = 0.0
    lr_ratio: float | None = 1.0
    lr: float = 0.01
    steps: int = 100
    batch_size: int = 16
    dtype: str = "float32"
    watch: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r}: one of {', '.join(METHODS)}")
        if self.method != "lora":
            for name in ONLY_LORA:
                object.__setattr__(self, name, None)
        elif self.rule not in RULES or self.targets not in TARGETS:
            raise ValueError(f"rule {self.rule!r}, targets {self.targets!r}: one of {[*RULES]} and of {[*TARGETS]}")


class World(NamedTuple):
    """What a run starts from: the base model, and a task's encoded splits."""

    base: nn.Module
    data: dict[str, list[dict]]  # "train", "validation", "test"
    tokenizer: Any = None  # without one no answers are scored


class Trained(NamedTuple):
    """A run: the model, its history, validation losses by step, and why it stopped early ("" when it did not)."""

    model: nn.Module
    history: History
    watched: dict[int, float]
    stopped: str


@functools.cache
def _base() -> tuple[nn.Module, Any]:
    return load_base(device="cpu")


@functools.cache
def world(task: str) -> World:
    """The course's base model and a task, loaded once."""
    base, tokenizer = _base()
    return World(
        base, {split: encode(load(task, split), tokenizer) for split in ("train", "validation", "test")}, tokenizer
    )


def started(base: nn.Module, setting: Setting) -> nn.Module:
    """A copy of `base` in which only that trains which `setting` lets train."""
    model = copy.deepcopy(base).to(getattr(torch, setting.dtype))
    if setting.method == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            targets, rslora = TARGETS[setting.targets], RULES[setting.rule]
            paths = find_targets(model, targets)
            ranks = {path: min(setting.rank, *layer.weight.shape) for path, layer in paths.items()}
            return inject(model, targets, ranks, setting.alpha, setting.dropout, rslora)
    model.requires_grad_(setting.method == "full")
    for layer in find_targets(model, ALL_LINEAR).values():
        layer.weight.requires_grad_(True)
    return model


def trained(where: World, setting: Setting) -> Trained:
    """Train a fresh copy. A run whose loss is no number any more stops there; `stopped` then holds the reason."""
    model, watched, last = started(where.base, setting), {}, History()

    def look(step: int, history: History) -> None:
        nonlocal last
        last = history
        if setting.watch and step % setting.watch == 0:
            watched[step] = mean_loss(model, where.data["validation"][:VALIDATION])

    stopped, ratio = "", setting.lr_ratio or 1.0
    same = {name: getattr(setting, name) for name in ("steps", "lr", "batch_size", "seed")}
    examples = where.data["train"][: setting.examples]
    try:
        train(model, examples, **same, lr_ratio=ratio, progress=False, on_step=look)
    except Diverged as error:
        stopped = str(error)
    return Trained(model.eval(), last, watched, stopped)


@torch.no_grad()
def update_norm(base: nn.Module, model: nn.Module) -> float:
    """‖ΔW‖ (Frobenius) over all linear layers of the blocks together; `model` is `base` after training."""
    if layers := lora_layers(model):
        return math.hypot(*(factor_norm(layer.A, layer.B, layer.scale) for layer in layers.values()))
    before, after = find_targets(base, ALL_LINEAR), find_targets(model, ALL_LINEAR)
    return math.hypot(*((after[path].weight - W.weight).norm().item() for path, W in before.items()))


def measure(where: World, setting: Setting) -> dict:
    """The setting, flat, and of the run:

    loss            training loss, `CURVE` means over equal shares of the steps (nats per token)
    validation_loss on `VALIDATION` examples, by which a rate is chosen
    test_loss       on the whole test split
    score           the task's main metric on the first `SCORED` test examples (None without a tokenizer)
    update_norm     ‖ΔW‖ over all linear layers
    stopped         why the run ended early, "" as a rule; the results of such a run are None
    watched         {step: [training loss since the last look, validation loss]}, if `watch` is set
    """
    with one_thread():
        model, history, watched, stopped = trained(where, setting)
        row = dataclasses.asdict(setting) | {"loss": curve(history.loss)}
        names = ("validation_loss", "test_loss", "score", "update_norm")
        if stopped:
            return row | dict.fromkeys(names) | {"stopped": stopped}
        values = (
            mean_loss(model, where.data["validation"][:VALIDATION]),
            mean_loss(model, where.data["test"]),
            _score(where, setting.task, model),
            update_norm(where.base, model),
        )
    row |= {name: value if value is None else digits(value) for name, value in zip(names, values, strict=True)}
    looks = {
        str(step): [digits(_mean(history.loss[step - setting.watch : step])), digits(loss)]
        for step, loss in watched.items()
    }
    return row | {"stopped": ""} | ({"watched": looks} if looks else {})


def _score(where: World, task: str, model: nn.Module) -> float | None:
    if where.tokenizer is None:
        return None
    return score(task, model, where.tokenizer, load(task, "test", SCORED[task]))[TASKS[task].main]


def curve(losses: list[float], points: int = CURVE) -> list[float | None]:
    """Means over `points` equal shares of a history (or every entry, if it is shorter)."""
    edges = [round(i * len(losses) / points) for i in range(points + 1)]
    return [digits(_mean(losses[a:b])) for a, b in itertools.pairwise(edges) if b > a]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
