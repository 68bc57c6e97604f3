"""What do rank and alpha control? Sweeps on the course's base model, and the functions that give their numbers again.

python -m lora_lab.experiments.rank_alpha                every experiment; each writes its file as it goes
python -m lora_lab.experiments.rank_alpha ranks targets  only these

recorded("ranks")                        the file's content, see `record`
point(rank=8, rule="alpha/r", lr=1e-2)   one run made again now, the row that the file holds (see `runs.measure`)
"""

import json
from pathlib import Path

from lora_lab.experiments.rank_alpha.runs import Setting, measure, world
from lora_lab.paths import MEASUREMENTS

EXPERIMENTS = ("ranks", "steps", "health", "lora_plus", "targets", "against_full", "batches", "overfitting", "longer")


def path_of(experiment: str, folder: Path = MEASUREMENTS) -> Path:
    """The file of an experiment. Raises ValueError for a name that is not in `EXPERIMENTS`."""
    if experiment not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {experiment!r}: one of {', '.join(EXPERIMENTS)}")
    return folder / f"rank_alpha_{experiment}.json"


def recorded(experiment: str) -> dict:
    """What was measured: circumstances, "runs" and "cells". Raises FileNotFoundError if it has not been recorded."""
    return json.loads(path_of(experiment).read_text(encoding="utf-8"))


def point(**settings) -> dict:
    """Train once with these settings (see `runs.Setting`; what is not named has its default) and return the row.

    On the machine that made the files, and with the same versions, the row agrees with the recorded one to the digit.
    """
    setting = Setting(**settings)
    return measure(world(setting.task), setting)
