"""One run from an init: what can be set, how it starts, and what is recorded of it.

A run is a fresh copy of the base, started by a named init, trained on the support desk. Runs of the same seed see the
same batches, whatever their init. Targets, rank, alpha and batch are the same for all: `settings()`.
"""

import copy
import functools
import random
import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_lab.base import oriented_weight
from lora_lab.batches import collate
from lora_lab.budget.measure import Accountant
from lora_lab.experiments.sweep import digits, one_thread
from lora_lab.init import DATA_DRIVEN, named
from lora_lab.init.prepare import prepare
from lora_lab.inject import inject, lora_layers
from lora_lab.models import load_base
from lora_lab.tasks import encode, load, score
from lora_lab.train import Diverged, History, mean_loss, train
from lora_lab.world.corpus import render
from lora_lab.world.measure import HELD_OUT_SEED, reading
from lora_lab.world.stories import story_document

TASK, RANK, ALPHA, STEPS, BATCH = "support_desk", 8, 16, 60, 16
SAMPLES = 256  # training examples that a data-driven init looks at
WATCHED, EVERY = 40, 5  # examples of the validation split whose loss is taken every so many steps
VALIDATION, SCORED, ASKED = 100, 100, 100  # examples that choose the rate; requests answered; questions on stories


def settings() -> dict[str, Any]:
    """What all runs share, for the record."""
    shared = {"task": TASK, "rank": RANK, "alpha": ALPHA, "steps": STEPS, "batch_size": BATCH, "samples": SAMPLES}
    looks = {"watched": WATCHED, "every": EVERY, "validation": VALIDATION, "scored": SCORED, "asked": ASKED}
    return shared | looks


class World(NamedTuple):
    """What every run needs: the base, the encoded splits of the task, and stories that the base has not read.

    stories: what forgetting is measured on. knowledge: other ones, at which an init looks to keep what the base knows.
    """

    base: nn.Module
    tokenizer: Any
    data: dict[str, list[dict]]
    stories: list[dict]
    knowledge: list[dict]


@functools.cache
def world() -> World:
    """The course's base model, the support desk and 200 unread stories, loaded once."""
    base, tokenizer = load_base(device="cpu")
    data = {split: encode(load(TASK, split), tokenizer) for split in ("train", "validation", "test")}
    return World(base, tokenizer, data, stories(tokenizer), stories(tokenizer, SAMPLES, HELD_OUT_SEED + 1))


def stories(tokenizer, count: int = 200, seed: int = HELD_OUT_SEED) -> list[dict]:
    """Stories that the base has not read, to be predicted whole."""
    rng = random.Random(seed)
    ids = [tokenizer(render(story_document(rng)), add_special_tokens=False)["input_ids"] for _ in range(count)]
    return [{"input_ids": row, "labels": row} for row in ids]


def start_(model: nn.Module, name: str, world: World, seed: int, quantize: str | None = None) -> int:
    """Put adapters into `model`, started by `name`; returns the most bytes that a statistic of data held.

    name: as `lora_lab.init.named` takes it, or with an option behind it: "loftq 5" (iterations); "corda kpm", whose
    covariance comes from the knowledge to be kept, as its authors have it; "corda kpm on the task" takes the task's
    own data, which is easily done by mistake.
    """
    torch.manual_seed(seed)
    kind, _, option = name.partition(" ")
    if kind in DATA_DRIVEN:
        examples = (world.knowledge if option == "kpm" else world.data["train"])[:SAMPLES]
        rows = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
        options = {"method": option.split()[0]} if option else {}
        made = prepare(kind, model, "all-linear", [*map(collate, rows)], RANK, ALPHA, progress=False, **options)
        inject(model, **made, quantize=quantize)
        return made.peak_bytes
    init = named(kind, iterations=int(option)) if option else kind
    inject(model, "all-linear", RANK, ALPHA, init=init, quantize=quantize)
    return 0


def started(world: World, name: str, seed: int = 0, quantize: str | None = None) -> nn.Module:
    """A copy of the base with adapters that start by `name`."""
    model = copy.deepcopy(world.base)
    start_(model, name, world, seed, quantize)
    return model


def setup(world: World, name: str, quantize: str | None = None, repeats: int = 5) -> dict[str, float]:
    """What the start takes: processor seconds (the median), bytes of live tensors beside the model at the peak (forward
    and backward passes and the adapters included), and bytes of the statistic alone."""
    seconds = []
    for _ in range(repeats):
        model = copy.deepcopy(world.base)
        began = time.process_time()
        start_(model, name, world, 0, quantize)
        seconds.append(time.process_time() - began)
    model = copy.deepcopy(world.base)
    with Accountant(model.parameters()) as account:
        before = account.now
        held = start_(model, name, world, 0, quantize)
    return {
        "setup_seconds": digits(statistics.median(seconds), 3),
        "setup_peak_bytes": account.peak - before,
        "statistic_bytes": held,
    }


@torch.no_grad()
def distance(base: nn.Module, model: nn.Module) -> float:
    """‖W - (base + s·BA)‖ / ‖W‖ over all adapted layers: 0 where the model computes what `base` does."""
    off = whole = 0.0
    for path, layer in lora_layers(model).items():
        W = base.get_submodule(path).weight
        off += (W - oriented_weight(layer.base, wide=True) - layer.delta_weight()).square().sum().item()
        whole += W.square().sum().item()
    return (off / whole) ** 0.5


def initial(world: World, name: str, quantize: str | None = None) -> dict[str, float]:
    """The model before the first step: distance from W, loss on stories and on the test split."""
    model = started(world, name, 0, quantize)
    return {
        "distance": digits(distance(world.base, model)),
        "stories_loss": digits(mean_loss(model, world.stories)),
        "test_loss": digits(mean_loss(model, world.data["test"])),
    }


class Trained(NamedTuple):
    """model: None where the loss ran away. watched: {step: validation loss}. seconds: of processor time, a step."""

    model: nn.Module | None
    history: History
    watched: dict[int, float]
    validation_loss: float
    seconds: float


def trained(world: World, name: str, lr: float, seed: int, steps: int = STEPS, quantize: str | None = None) -> Trained:
    """One run; what it costs to look at it is not in its seconds."""
    model, last, looking = started(world, name, seed, quantize), History(), 0.0
    watched = {0: mean_loss(model, world.data["validation"][:WATCHED])}

    def look(step: int, history: History) -> None:
        nonlocal last, looking
        last = history
        if step % EVERY == 0 or step == steps:
            began = time.process_time()
            watched[step] = mean_loss(model, world.data["validation"][:WATCHED])
            looking += time.process_time() - began

    began = time.process_time()
    try:
        train(
            model,
            world.data["train"],
            steps=steps,
            batch_size=BATCH,
            lr=lr,
            seed=seed,
            progress=False,
            on_step=look,
        )
    except Diverged:
        return Trained(None, last, watched, float("inf"), 0.0)
    seconds = (time.process_time() - began - looking) / steps
    model.eval()
    return Trained(model, last, watched, mean_loss(model, world.data["validation"][:VALIDATION]), seconds)


def results(world: World, run: Trained) -> dict[str, Any]:
    """What became of a run:

    watched          {step: validation loss}, nats per token of the answers
    training_loss    a mean over every `EVERY` steps
    validation_loss, test_loss
    exact, order     shares of `SCORED` test requests, answered greedily, that are right to the last character, and that
                     open with the right order number
    stories_loss     on the base's own stories, and `reading`, the share of `ASKED` questions on stories answered right:
                     what was forgotten
    moved            ‖W - (base + s·BA)‖ / ‖W‖ after training
    seconds_per_step of processor time, one core
    """
    model, losses = run.model, run.history.loss
    answers = score(TASK, model, world.tokenizer, load(TASK, "test", SCORED))
    return {
        "watched": {str(step): digits(loss) for step, loss in run.watched.items()},
        "training_loss": [
            digits(statistics.fmean(losses[i : i + EVERY])) for i in range(0, len(losses) - EVERY + 1, EVERY)
        ],
        "validation_loss": digits(run.validation_loss),
        "test_loss": digits(mean_loss(model, world.data["test"])),
        "exact": answers["exact"],
        "order": answers["order"],
        "stories_loss": digits(mean_loss(model, world.stories)),
        "reading": reading(model, world.tokenizer, ASKED)["all"],
        "moved": digits(distance(world.base, model)),
        "seconds_per_step": digits(run.seconds, 3),
    }


def measure(
    world: World, name: str, lr: float, seed: int = 0, steps: int = STEPS, quantize: str | None = None
) -> dict[str, Any]:
    """One run and its `results`, as one row. Raises ValueError where the loss runs away."""
    with one_thread():
        run = trained(world, name, lr, seed, steps, quantize)
        if run.model is None:
            raise ValueError(f"{name} at rate {lr:g}: the loss ran away after step {len(run.history.loss)}")
        row = {"name": name, "lr": lr, "seed": seed, "steps": steps, "quantize": quantize}
        return row | results(world, run)
