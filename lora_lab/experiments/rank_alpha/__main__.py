"""Make the files of these experiments, or go on where an earlier call was stopped."""

import argparse
from pathlib import Path

from lora_lab.experiments.rank_alpha import EXPERIMENTS, path_of, sweeps
from lora_lab.experiments.rank_alpha import health as of_health
from lora_lab.experiments.rank_alpha import steps as of_steps
from lora_lab.experiments.rank_alpha.record import Record
from lora_lab.experiments.rank_alpha.runs import SCORED, VALIDATION
from lora_lab.paths import MEASUREMENTS

COMMON = {"validation_examples": VALIDATION, "scored_examples": SCORED, "seeds": sweeps.SEEDS}
# What holds for a whole file; another value makes it anew.
SETTINGS = {
    "ranks": {"fixed_rate": sweeps.LORA_RATE},
    "targets": {"ranks": sweeps.EQUAL_BUDGET},
    "against_full": {"steps": {t: {str(n): k for n, k in of.items()} for t, of in sweeps.SIZES.items()}},
    "batches": {"examples_seen": sweeps.SEEN},
    "lora_plus": {},
    "overfitting": sweeps.SMALL,
    "steps": {"rates": of_steps.RATES, "later": of_steps.LATER},
    "health": {},
    "longer": {},
}
MAKE = {name: getattr(sweeps, name, None) for name in EXPERIMENTS} | {
    "steps": of_steps.steps,
    "health": of_health.health,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Rank, alpha and learning rates: sweeps on the course's base model.")
    parser.add_argument("experiments", nargs="*", help=f"which of {', '.join(EXPERIMENTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=MEASUREMENTS, help="folder of the files")
    args = parser.parse_args()
    if unknown := set(args.experiments) - set(EXPERIMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(EXPERIMENTS)}")
    for name in args.experiments or EXPERIMENTS:
        record = Record(path_of(name, args.out), COMMON | SETTINGS[name])
        MAKE[name](record)
        print(
            f"{name}: {len(record.runs)} runs, {record.content['cpu_seconds'] / 60:.1f} minutes of one core", flush=True
        )


if __name__ == "__main__":
    main()
