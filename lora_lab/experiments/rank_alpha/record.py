"""A file of runs. Each is made once, and written at once; a call that is started again goes on from there.

{command, date, versions, hardware, settings, cpu_seconds,
 "runs": [one row of `measure` each],
 "cells": [{what the runs of a cell share, "tuned", "lr", "validation": {rate: loss}, "test_loss": [one a seed], ...}]}
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_lab.experiments.rank_alpha.runs import Setting, World, measure, world
from lora_lab.experiments.sweep import best_rate, digits, found
from lora_lab.world.measure import circumstances, write_json

COMMAND = "python -m lora_lab.experiments.rank_alpha"
FACTOR = 2.0  # between neighbouring rates
OF_EVERY_SEED = ("validation_loss", "test_loss", "score", "update_norm")
DIFFER = ("lr", "seed")  # what the runs of one cell do not share


class Record:
    """The runs of one experiment, in `path`. `settings`: what holds for all of them; other settings start anew.

    Only files of the same settings, versions and processor are gone on from. `where`: task -> `World`.
    """

    def __init__(self, path: Path, settings: dict, where: Callable[[str], World] = world):
        self.path, self.where = path, where
        self.content = {**circumstances(), "command": COMMAND, "settings": settings, "cpu_seconds": 0.0}
        self.content |= {"runs": [], "cells": []}
        self.content |= found(path, self.content, ("settings", "versions", "hardware"))

    @property
    def runs(self) -> list[dict]:
        return self.content["runs"]

    def get(self, setting: Setting) -> dict:
        """The row of this setting: from this file, taken over from another experiment's, or made and written."""
        wanted = dataclasses.asdict(setting)

        def is_it(row: dict) -> bool:
            return all(name in row and row[name] == value for name, value in wanted.items())

        row = next(filter(is_it, self.runs), None)
        if row is None and (row := next(filter(is_it, self._elsewhere()), None)):
            self.runs.append(row)
            write_json(self.path, self.content)
        if row is None:
            self.add(measure, self.where(setting.task), setting)
        return row or self.runs[-1]

    def _elsewhere(self) -> Iterator[dict]:
        """The sweeps' rows in the folder's other files, if the same machine and versions made them."""
        for path in sorted(self.path.parent.glob("*.json")):
            other = found(path, self.content, ("command", "versions", "hardware")) if path != self.path else {}
            if other.get("cells"):
                yield from other["runs"]

    def add(self, make: Callable[..., dict], *args) -> None:
        """Append the row `make(*args)`, count its time, write the file."""
        began = time.process_time()
        row = make(*args)
        self.content["cpu_seconds"] = round(self.content["cpu_seconds"] + time.process_time() - began, 1)
        self.runs.append(row)
        write_json(self.path, self.content)

    def tuned(self, setting: Setting, seeds: int, near: float | None = None, choosing: int | None = None) -> dict:
        """The cell of `setting`: all seeds at the rate whose validation loss is lowest.

        near: the grid begins with it and its two neighbours (default: the setting's own rate).
        choosing: so many seeds run at every rate, and their mean decides (default: all of them).
        """
        near = near or setting.lr
        at = dataclasses.replace
        choosing = choosing or seeds

        def validate(rate: float) -> float:
            losses = [self.get(at(setting, lr=rate, seed=seed))["validation_loss"] for seed in range(choosing)]
            return math.inf if None in losses else sum(losses) / choosing

        best, losses = best_rate(validate, (near / FACTOR, near, near * FACTOR), FACTOR)
        # JSON knows no infinity: None is a rate at which a run went astray.
        validation = {f"{rate:g}": digits(loss) for rate, loss in losses.items()}
        return self._cell(at(setting, lr=best), seeds, {"choosing": choosing, "validation": validation})

    def fixed(self, setting: Setting, seeds: int) -> dict:
        """The cell of `setting` at its own rate, which nobody chose for it."""
        return self._cell(setting, seeds, {})

    def _cell(self, setting: Setting, seeds: int, chosen: dict) -> dict:
        rows = [self.get(dataclasses.replace(setting, seed=seed)) for seed in range(seeds)]
        shared = {name: value for name, value in dataclasses.asdict(setting).items() if name not in DIFFER}
        cell = shared | {"tuned": bool(chosen), "lr": setting.lr} | chosen
        cell |= {name: [row[name] for row in rows] for name in OF_EVERY_SEED}
        if cell not in self.content["cells"]:
            self.content["cells"].append(cell)
            write_json(self.path, self.content)
            said = (
                "task",
                "examples",
                "method",
                "rank",
                "rule",
                "targets",
                "lr_ratio",
                "batch_size",
                "lr",
                "test_loss",
            )
            print(self.path.stem, *(f"{name} {cell[name]}" for name in said), flush=True)
        return cell
