"""The sweeps: rank and rule, targets, LoRA against full fine-tuning, batch size, LoRA+, overfitting.

Each function fills a `Record`. Every rate is chosen on the validation split, for each side by itself: by the mean of
all seeds, in the longest (`longer`, `against_full`, `batches`) by the first. All sides see as many examples.
"""

from dataclasses import replace

from lora_lab.experiments.rank_alpha.record import Record
from lora_lab.experiments.rank_alpha.runs import RULES, Setting

LORA_RATE, FULL_RATE = 1e-2, 1e-3  # where the grids begin
SEEDS = 3
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
# As many numbers to train as all linear layers at rank 8, as nearly as a whole rank comes (within 1.2 %).
EQUAL_BUDGET = {"all linear": 8, "attention": 21, "MLP": 13, "q and v": 42}
# Much data gets more steps: the small sets would only be repeated. task -> examples -> steps
SIZES = {"support_desk": {50: 20, 200: 30, 1600: 60}, "cipher": {50: 50, 200: 100, 1600: 200}}
BATCHES, SEEN = (4, 16, 64), 1600
RATIOS = (1.0, 4.0, 16.0)
# Rates beside the grids of seed 0, run with every seed: the near task's whole valley, and a rate that the far task's
# grid of rank 8 did not reach. (task, method, rates)
BESIDE = (
    ("support_desk", "lora", (0.0025, 0.005, 0.01, 0.02, 0.04)),
    ("support_desk", "full", (0.001, 0.002, 0.004, 0.008)),
    ("cipher", "lora", (0.0025,)),
)
SMALL = {"task": "cipher", "examples": 50, "steps": 160, "watch": 8}  # 40 epochs: four batches are one


def ranks(record: Record, seeds: int = SEEDS, all_ranks: tuple[int, ...] = RANKS, base: Setting | None = None) -> None:
    """Every rank under both rules, at the rate `LORA_RATE` for all and at a rate of its own.

    The grid of a rank begins at the best rate of the rank before it. At rank 1 both rules are the same scale.
    """
    for rule in RULES:
        near = LORA_RATE
        for rank in all_ranks:
            setting = replace(base or Setting(), rank=rank, rule=rule, lr=LORA_RATE)
            if rank == 1:
                setting = replace(setting, rule=next(iter(RULES)))
            near = record.tuned(setting, seeds, near)["lr"]
            record.fixed(setting, seeds)


def longer(record: Record, seeds: int = SEEDS) -> None:
    """Three times the steps: does a small rank run out of room? And five times on the far task: slow, or unable?"""
    for rank in (1, 64, 8):
        record.tuned(Setting(rank=rank, lr=LORA_RATE / 2, steps=300), seeds, choosing=1)
    for rank in (64, 8):
        far = Setting(task="cipher", examples=1600, rank=rank, lr=LORA_RATE / 2, steps=1000)
        record.tuned(far, seeds, choosing=1)


def targets(record: Record, seeds: int = SEEDS) -> None:
    """Which layers, with as many numbers to train."""
    for name, rank in EQUAL_BUDGET.items():
        record.tuned(Setting(targets=name, rank=rank, lr=LORA_RATE), seeds)


def against_full(record: Record, seeds: int = SEEDS, sizes: dict[str, dict[int, int]] | None = None) -> None:
    """LoRA and full fine-tuning on a near and on a far task, with little and much data.

    Where there is most of the far task, also the two halves of the step from one to the other: a larger rank, and the
    linear layers alone in full. At last the rates of `BESIDE`, where there is most of a task; they choose nothing.
    """
    for task, steps_of in (sizes or SIZES).items():
        near = {"lora": LORA_RATE, "full": FULL_RATE}
        for examples, steps in steps_of.items():
            for method in near:
                setting = Setting(task=task, examples=examples, steps=steps, method=method, lr=near[method])
                near[method] = record.tuned(setting, seeds, choosing=1)["lr"]
        if task == "cipher":
            record.tuned(replace(setting, method="full, linear layers"), seeds, choosing=1)
            larger = Setting(task=task, examples=examples, steps=steps, rank=64, lr=near["lora"])
            record.tuned(larger, seeds, choosing=1)
    for task, method, rates in BESIDE:
        examples, steps = max((sizes or SIZES)[task].items())
        for rate in rates:
            for seed in range(seeds):
                record.get(Setting(task=task, examples=examples, steps=steps, method=method, lr=rate, seed=seed))


def batches(record: Record, seeds: int = SEEDS) -> None:
    """Batches of several sizes, with as many examples seen, for LoRA and for full fine-tuning."""
    near = {"lora": LORA_RATE, "full": FULL_RATE}
    for size in BATCHES:
        for method in near:
            setting = Setting(method=method, batch_size=size, steps=SEEN // size, lr=near[method])
            near[method] = record.tuned(setting, seeds, choosing=1)["lr"]


def lora_plus(record: Record, seeds: int = SEEDS) -> None:
    """B learns `lr_ratio` times as fast as A; the rate of A is tuned for each ratio."""
    near = LORA_RATE
    for ratio in RATIOS:
        near = record.tuned(Setting(lr_ratio=ratio, lr=near), seeds)["lr"]


def overfitting(record: Record, seeds: int = SEEDS) -> None:
    """Fifty examples, forty times over: training and validation loss, at a small and a large rank, with dropout too."""
    for rank in (2, 64):
        for dropout in (0.0, 0.1):
            record.fixed(Setting(rank=rank, dropout=dropout, lr=LORA_RATE, **SMALL), seeds)
