"""Measure every task: the base model's score, the score after LoRA, and what rank has to do with it.

tasks        LoRA of rank 8, alpha 16 on every linear layer, 200 steps of 16: base score, adapted score, seconds
rank_sweep   the support desk and the cipher at several ranks, each step and rate the same
truncation   a full fine-tune of the support desk, its ΔW cut to rank r in every block matrix: test loss and score
"""

import argparse
import copy
import time
from pathlib import Path

import torch

from lora_lab import eject, inject, train
from lora_lab.models import load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.spectrum import truncate
from lora_lab.tasks import TASKS, encode, load, score
from lora_lab.train import mean_loss
from lora_lab.world.measure import circumstances, write_json

RANK, ALPHA, STEPS, BATCH, LR = 8, 16, 200, 16, 1e-2
FULL_LR = 1e-3
RANKS = (1, 2, 4, 8, 16, 32)


def adapted(model, tokenizer, name: str, rank: int, test: list, steps: int = STEPS, lr: float = LR) -> dict:
    """Adapt, score and eject again: `model` is left as it was. alpha is twice the rank, so every rank has scale 2."""
    torch.manual_seed(0)
    inject(model, "all-linear", rank=rank, alpha=ALPHA / RANK * rank)
    start = time.time()
    history = train(model, encode(load(name, "train"), tokenizer), steps=steps, batch_size=BATCH, lr=lr, progress=False)
    seconds = time.time() - start
    model.eval()
    result = {
        "scores": _rounded(score(name, model, tokenizer, test)),
        "test_loss": round(mean_loss(model, encode(test, tokenizer)), 4),
        "training_loss": round(sum(history.loss[-20:]) / 20, 4),
        "seconds": round(seconds, 1),
    }
    eject(model)
    return result


def one_task(model, tokenizer, name: str) -> dict:
    """Base and adapted score of a task on its test split."""
    test = load(name, "test")
    before = {
        "scores": _rounded(score(name, model, tokenizer, test)),
        "test_loss": round(mean_loss(model, encode(test, tokenizer)), 4),
    }
    return {"main": TASKS[name].main, "base": before, "lora": adapted(model, tokenizer, name, RANK, test)}


def rank_sweep(model, tokenizer, name: str, limit: int = 100) -> dict:
    """Adapted at each rank: {"1": {...}, "2": {...}, ...} on the first `limit` test examples."""
    return {str(rank): adapted(model, tokenizer, name, rank, load(name, "test", limit)) for rank in RANKS}


def truncation(model, tokenizer, name: str = "support_desk", limit: int = 100) -> dict:
    """Full fine-tune, then W + (ΔW cut to rank r) in each matrix of the blocks; embeddings and norms as trained."""
    test = load(name, "test", limit)
    encoded = encode(test, tokenizer)
    tuned = copy.deepcopy(model).requires_grad_(True)
    start = time.time()
    train(tuned, encode(load(name, "train"), tokenizer), steps=STEPS, batch_size=BATCH, lr=FULL_LR, progress=False)
    seconds = time.time() - start
    tuned.eval()
    before = dict(model.named_parameters())
    blocks = {n: p for n, p in tuned.named_parameters() if p.ndim == 2 and "layers." in n}
    deltas = {n: p.detach() - before[n].detach() for n, p in blocks.items()}
    result = {"seconds": round(seconds, 1), "uncut": _point(name, tuned, tokenizer, test, encoded), "rank": {}}
    for rank in (0, *RANKS):
        with torch.no_grad():
            for n, p in blocks.items():
                p.copy_(before[n] + (truncate(deltas[n], rank) if rank else 0))
        result["rank"][str(rank)] = _point(name, tuned, tokenizer, test, encoded)
    return result


def _point(name: str, model, tokenizer, test: list, encoded: list) -> dict:
    return {"test_loss": round(mean_loss(model, encoded), 4), "scores": _rounded(score(name, model, tokenizer, test))}


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {metric: round(value, 4) for metric, value in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure base and adapted scores of every task, and the role of rank.")
    parser.add_argument("--base", type=Path, help="model folder (default: data/base)")
    parser.add_argument("--task", action="append", help="only these tasks, and neither sweep nor truncation")
    parser.add_argument("--out", type=Path, default=MEASUREMENTS / "tasks.json")
    args = parser.parse_args()
    model, tokenizer = load_base(args.base, device="cpu")
    settings = {"rank": RANK, "alpha": ALPHA, "targets": "all-linear", "steps": STEPS, "batch_size": BATCH, "lr": LR}
    result = {**circumstances(), "settings": {**settings, "full_fine_tune_lr": FULL_LR}, "tasks": {}}
    for name in args.task or TASKS:
        result["tasks"][name] = one_task(model, tokenizer, name)
        print(name, result["tasks"][name], flush=True)
    if not args.task:
        result["rank_sweep"] = {name: rank_sweep(model, tokenizer, name) for name in ("support_desk", "cipher")}
        print(result["rank_sweep"], flush=True)
        result["truncation"] = truncation(model, tokenizer)
        print(result["truncation"], flush=True)
    write_json(args.out, result)


if __name__ == "__main__":
    main()
