"""Histories of runs: one healthy, each of the others spoiled in one way on purpose, to see what its curves are."""

import dataclasses

from lora_lab.experiments.rank_alpha.record import Record
from lora_lab.experiments.rank_alpha.runs import Setting, World, trained, update_norm
from lora_lab.experiments.sweep import digits, one_thread
from lora_lab.train import mean_loss

CASES = {
    "healthy": Setting(watch=10),
    "rate too high": Setting(watch=10, lr=0.3),
    "rate too low": Setting(watch=10, lr=1e-4),
    "overfitting": Setting(watch=10, task="cipher", examples=50, rank=64, steps=160),
    "fp16 overflow": Setting(watch=10, lr=0.3, dtype="float16"),  # nothing but the type differs from the second
    "bf16": Setting(watch=10, lr=0.3, dtype="bfloat16"),  # the range of float32 with fewer digits
}


def health(record: Record, cases: dict[str, Setting] | None = None) -> None:
    """One run a case, seed 0."""
    for name, setting in (cases or CASES).items():
        if name not in [row["name"] for row in record.runs]:
            record.add(measure_history, record.where(setting.task), name, setting)


def measure_history(where: World, name: str, setting: Setting) -> dict:
    """The setting, and loss, gradient norm before clipping and rate of every step; `watched` and `stopped` as ever."""
    with one_thread():
        model, history, watched, stopped = trained(where, setting)
        row = {"name": name} | dataclasses.asdict(setting) | {"stopped": stopped}
        row |= {key: [digits(value, 4) for value in values] for key, values in dataclasses.asdict(history).items()}
        row["watched"] = {str(step): digits(loss, 4) for step, loss in watched.items()}
        row["test_loss"] = None if stopped else digits(mean_loss(model, where.data["test"]))
        return row | {"update_norm": digits(update_norm(where.base, model))}
