"""Measure every task: the base model's score, and the score after LoRA by one recipe.

LoRA of rank 8, alpha 16 on every linear layer, 200 steps of 16 examples, the learning rate tuned once for each task.
Scores are those of the test split; `seconds` are the clock's, `cpu_seconds` those of all cores together.
"""

import argparse
import time
from pathlib import Path

import torch

from lora_lab import eject, inject, train
from lora_lab.models import load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.tasks import TASKS, encode, load, score
from lora_lab.train import mean_loss
from lora_lab.world.measure import circumstances, write_json

RANK, ALPHA, STEPS, BATCH = 8, 16, 200, 16
# Each tuned once on the validation split, out of 2e-3 to 1e-2.
LR = {"support_desk": 1e-2, "voice_pirate": 1e-2, "voice_formal": 1e-2, "new_facts": 3e-3, "cipher": 3e-3}


def adapted(model, tokenizer, name: str, test: list, steps: int = STEPS) -> dict:
    """Adapt, score and eject again: `model` is left as it was."""
    torch.manual_seed(0)
    inject(model, "all-linear", rank=RANK, alpha=ALPHA)
    examples = encode(load(name, "train"), tokenizer)
    start, spent = time.time(), time.process_time()
    history = train(model, examples, steps=steps, batch_size=BATCH, lr=LR[name], progress=False)
    seconds = {"seconds": round(time.time() - start, 1), "cpu_seconds": round(time.process_time() - spent, 1)}
    result = {
        "steps": steps,
        **scored(model, tokenizer, name, test),
        "training_loss": round(sum(history.loss[-20:]) / 20, 4),
        **seconds,
    }
    eject(model)
    return result


def scored(model, tokenizer, name: str, test: list) -> dict:
    """Every metric of the task, and the loss (nats per token of the answer)."""
    scores = score(name, model, tokenizer, test)
    return {
        "scores": {metric: round(value, 4) for metric, value in scores.items()},
        "test_loss": round(mean_loss(model, encode(test, tokenizer)), 4),
    }


def one_task(model, tokenizer, name: str) -> dict:
    """Base and adapted score of a task on its test split."""
    test = load(name, "test")
    before = scored(model, tokenizer, name, test)
    return {"main": TASKS[name].main, "base": before, "lora": adapted(model, tokenizer, name, test)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure base and adapted scores of every task.")
    parser.add_argument("--base", type=Path, help="model folder (default: data/base)")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="only these tasks; prints, writes nothing")
    parser.add_argument("--out", type=Path, default=MEASUREMENTS / "tasks.json")
    args = parser.parse_args()
    model, tokenizer = load_base(args.base, device="cpu")
    settings = {"rank": RANK, "alpha": ALPHA, "targets": "all-linear", "steps": STEPS, "batch_size": BATCH, "lr": LR}
    result = {**circumstances(), "settings": settings, "tasks": {}}
    for name in args.task or TASKS:
        result["tasks"][name] = one_task(model, tokenizer, name)
        print(name, result["tasks"][name], flush=True)
    if not args.task:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
