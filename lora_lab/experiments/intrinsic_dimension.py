"""How many random directions does the support desk need?   θ = θ0 + P z, d = number of entries of z.

For each d, and for full training of the same matrices: the learning rate is chosen on the validation split with one
seed, then other seeds repeat the run. Recorded: the test loss of every run. Source of the idea: Li et al. 2018
(arXiv:1804.08838); Aghajanyan et al. 2020 (arXiv:2012.13255).
"""

import argparse
import copy
from pathlib import Path

import torch

from lora_lab.models import load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.subspace_training import default_lr, train_in_subspace
from lora_lab.targets import find_targets
from lora_lab.tasks import encode, load
from lora_lab.train import mean_loss, train
from lora_lab.world.measure import circumstances, write_json

TASK, STEPS, BATCH = "support_desk", 100, 16
DIMENSIONS = (16, 64, 256, 1024, 4096, 16384)
# Step of each weight under Adam, the same candidates for every d and for full training; the rate of z follows from it
# (see `default_lr`). If the largest candidate is the best, larger ones are tried until one is not.
STEPS_PER_WEIGHT, FACTOR = (1e-3, 3e-3, 1e-2), 3.0


def train_all(model, examples: list[dict], steps: int, lr: float, seed: int = 0, progress: bool = False):
    """Train every linear layer of the blocks in full, in place: the reference that d = D would reach."""
    model.requires_grad_(False)
    for layer in find_targets(model, "all-linear").values():
        layer.weight.requires_grad_(True)
    return train(model, examples, steps=steps, batch_size=BATCH, lr=lr, seed=seed, progress=progress)


def run(base, examples: list[dict], dimension: int | None, step: float, seed: int, steps: int = STEPS):
    """A trained copy of `base`: in a random subspace of `dimension`, or in full if that is None."""
    model = copy.deepcopy(base)
    if dimension is None:
        train_all(model, examples, steps, lr=step, seed=seed)
    else:
        size = sum(layer.weight.numel() for layer in find_targets(model, "all-linear").values())
        rate = default_lr(size, dimension, step)
        train_in_subspace(
            model,
            examples,
            dimension,
            steps=steps,
            lr=rate,
            seed=seed,
            targets="all-linear",
            batch_size=BATCH,
            progress=False,
        )
    return model.eval()


def measure(base, tokenizer, seeds: int) -> dict:
    """{"base": loss, "full": {...}, "subspace": {d: {...}}}; each {...} has the chosen step and one loss a seed."""
    data = {split: encode(load(TASK, split), tokenizer) for split in ("train", "validation", "test")}

    def point(dimension: int | None) -> dict:
        models, validation = {}, {}

        def attempt(step: float) -> None:
            models[step] = run(base, data["train"], dimension, step, seed=0)
            validation[step] = mean_loss(models[step], data["validation"])

        for step in STEPS_PER_WEIGHT:
            attempt(step)
        while (best := min(validation, key=validation.get)) == max(validation):
            attempt(FACTOR * best)
        repeats = [models[best]] + [run(base, data["train"], dimension, best, seed) for seed in range(1, seeds)]
        losses = [round(mean_loss(model, data["test"]), 4) for model in repeats]
        print(f"d = {dimension or 'all'}: step {best:g}, test loss {losses}", flush=True)
        return {
            "step": best,
            "validation": {f"{step:g}": round(loss, 4) for step, loss in validation.items()},
            "test_loss": losses,
        }

    return {
        "base": round(mean_loss(base, data["test"]), 4),
        "full": point(None),
        "subspace": {str(d): point(d) for d in DIMENSIONS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Loss after training in random subspaces of growing dimension.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=MEASUREMENTS / "intrinsic_dimension.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    base, tokenizer = load_base(device="cpu")
    weights = sum(layer.weight.numel() for layer in find_targets(base, "all-linear").values())
    settings = {"task": TASK, "steps": STEPS, "batch_size": BATCH, "seeds": args.seeds, "weights": weights}
    write_json(args.out, {**circumstances(), "settings": settings, **measure(base, tokenizer, args.seeds)})


if __name__ == "__main__":
    main()
