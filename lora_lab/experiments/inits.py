"""Which init starts best? Every init of the table on the support desk, each at its own learning rate.

plain      for each init: the rate is chosen on the validation split with one seed (the grid grows while its edge is
           best), then other seeds repeat the run. Recorded: test loss after every run, loss on the base's own stories
           before and after (what was forgotten), peak bytes of the statistic of a data-driven init.
quantized  the same on an NF4 base; also how far base + s·BA is from W at the start, ‖W - (base + s·BA)‖ / ‖W‖, and the
           loss on stories before any training (what quantization cost).
Runs are short on purpose: an init is about the beginning. The file is written after every init, and a call that finds
one of the same settings goes on from there.
"""

import argparse
import copy
import random
from pathlib import Path

import torch

from lora_lab import inject, lora_layers, train
from lora_lab.base import oriented_weight
from lora_lab.batches import collate
from lora_lab.experiments.sweep import best_rate, found
from lora_lab.init import DATA_DRIVEN, named
from lora_lab.init.prepare import prepare
from lora_lab.models import load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.tasks import encode, load
from lora_lab.train import mean_loss
from lora_lab.world.corpus import render
from lora_lab.world.measure import HELD_OUT_SEED, circumstances, write_json
from lora_lab.world.stories import story_document

TASK, RANK, ALPHA, STEPS, BATCH = "support_desk", 8, 16, 60, 16
RATES, FACTOR = (3e-3, 1e-2), 3.0
SAMPLES = 256  # training examples that a data-driven init looks at
PLAIN = ("default", "gaussian", "orthogonal", "pissa", "olora", "mica", "corda", "eva", "lora_ga")
QUANTIZED = ("default", "pissa", "olora", "loftq", "loftq 5")


def stories(tokenizer, count: int = 200) -> list[dict]:
    """Stories that the base has not read, to be predicted whole."""
    rng = random.Random(HELD_OUT_SEED)
    ids = [tokenizer(render(story_document(rng)), add_special_tokens=False)["input_ids"] for _ in range(count)]
    return [{"input_ids": row, "labels": row} for row in ids]


def started(base, name: str, examples: list[dict], seed: int, quantize: str | None = None):
    """A copy of `base` with the init `name`, and the most bytes that its statistic held."""
    model = copy.deepcopy(base)
    torch.manual_seed(seed)
    name, _, iterations = name.partition(" ")
    peak = 0
    if name in DATA_DRIVEN:
        rows = [examples[i : i + BATCH] for i in range(0, SAMPLES, BATCH)]
        made = prepare(name, model, "all-linear", map(collate, rows), RANK, ALPHA, progress=False)
        peak = made.peak_bytes
        inject(model, **made, quantize=quantize)
    else:
        init = named(name, iterations=int(iterations)) if iterations else name
        inject(model, "all-linear", RANK, ALPHA, init=init, quantize=quantize)
    return model, peak


@torch.no_grad()
def distance(base, model) -> float:
    """‖W - (base + s·BA)‖ / ‖W‖ over all adapted layers."""
    off = whole = 0.0
    for path, layer in lora_layers(model).items():
        W = base.get_submodule(path).weight
        off += (W - oriented_weight(layer.base, wide=True) - layer.delta_weight()).square().sum().item()
        whole += W.square().sum().item()
    return (off / whole) ** 0.5


def measure_init(base, data: dict, held_out: list[dict], name: str, seeds: int, quantize: str | None) -> dict:
    models = {}

    def attempt(rate: float, seed: int = 0):
        model, _ = started(base, name, data["train"], seed, quantize)
        history = train(model, data["train"], steps=STEPS, batch_size=BATCH, lr=rate, seed=seed, progress=False)
        return model.eval(), history

    def validate(rate: float) -> float:
        try:
            models[rate] = attempt(rate)
            return mean_loss(models[rate][0], data["validation"])
        except ValueError:  # the loss ran away
            return float("inf")

    best, validation = best_rate(validate, RATES, FACTOR)
    model, peak = started(base, name, data["train"], 0, quantize)
    at_start = {
        "distance": round(distance(base, model), 6),
        "stories_loss": round(mean_loss(model, held_out), 4),
        "test_loss": round(mean_loss(model, data["test"]), 4),
    }
    runs = [models[best]] + [attempt(best, seed) for seed in range(1, seeds)]
    result = {
        "statistic_bytes": peak,
        "start": at_start,
        "lr": best,
        "validation": {f"{rate:g}": round(loss, 4) for rate, loss in validation.items()},
        "test_loss": [round(mean_loss(m, data["test"]), 4) for m, _ in runs],
        "stories_loss": [round(mean_loss(m, held_out), 4) for m, _ in runs],
        "training_loss_10_20_40": [[round(sum(h.loss[i - 5 : i]) / 5, 4) for i in (10, 20, 40)] for _, h in runs],
    }
    print(f"{quantize or 'plain'} {name}: {result}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Short runs from every init, on a plain and on an NF4 base.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=MEASUREMENTS / "inits.json")
    args = parser.parse_args()
    base, tokenizer = load_base(device="cpu")
    data = {split: encode(load(TASK, split), tokenizer) for split in ("train", "validation", "test")}
    held_out = stories(tokenizer)
    settings = {"task": TASK, "rank": RANK, "alpha": ALPHA, "steps": STEPS, "batch_size": BATCH, "samples": SAMPLES}
    result = {
        **circumstances(),
        "settings": {**settings, "seeds": args.seeds},
        "base": {"stories_loss": round(mean_loss(base, held_out), 4)},
        "plain": {},
        "nf4": {},
    }
    before = found(args.out, result, ("settings", "base", "versions", "hardware"))
    result |= {key: before[key] for key in ("plain", "nf4") if before}  # go on where an earlier call was stopped
    for part, names, quantize in (("plain", PLAIN, None), ("nf4", QUANTIZED, "nf4")):
        for name in names:
            if name not in result[part]:
                result[part][name] = measure_init(base, data, held_out, name, args.seeds, quantize)
                write_json(args.out, result)


if __name__ == "__main__":
    main()
