"""Compare ranks and targets fairly: equal steps and data, several seeds, each trial on the same untouched base.

    trials = [Trial(rank=r, alpha=16, lr=rate) for r in (2, 8, 32) for rate in (3e-3, 1e-2)]
    found = search(base, trials, examples, validation, steps=60, path="build/ranks.json")
    print(found.table())

The base is hashed before and after every trial: an adapter that is put on twice, or a merge that is not taken back,
would let one trial train on what another has left. Runs are written as soon as they are done, if there is a `path`:
Ctrl-C loses the run in progress, and the same call goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_lab.batches import fingerprint
from lora_lab.budget.sites import adapter_sites
from lora_lab.experiments.sweep import digits, found, one_thread
from lora_lab.init.check import check_positive
from lora_lab.inject import count, eject, inject
from lora_lab.modes import modes_kept
from lora_lab.targets import ALL_LINEAR
from lora_lab.train import Diverged, mean_loss, train
from lora_lab.world.measure import circumstances, write_json

BACKENDS = ("lora_lab", "peft")


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one cell of the search tries. targets: names, a regular expression or "all-linear". lr: the peak rate.

    name: what tables and plots call the set of targets, one name for each; "" for the targets themselves.
    """

    rank: int = 8
    alpha: float = 16
    targets: str | tuple[str, ...] = ALL_LINEAR
    lr: float = 1e-2
    rslora: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        check_positive(self.alpha, "alpha")
        check_positive(self.lr, "lr")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank must be a whole number from 1, got {self.rank!r}")
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def label(self) -> str:
        return self.name or (self.targets if isinstance(self.targets, str) else " ".join(self.targets))


class Search:
    """The finished runs. `rows`: one dict a run: the trial's fields, "label", "seed", "parameters", "validation_loss"
    (nats per token; None where training went astray), "stopped". `complete`: is every run of the call among them?"""

    def __init__(self, rows: list[dict[str, Any]], wanted: int) -> None:
        self.rows, self.wanted = rows, wanted

    @property
    def complete(self) -> bool:
        return len(self.rows) >= self.wanted

    def cells(self) -> list[dict[str, Any]]:
        """The runs that differ in their seed alone, drawn together: + "losses", "mean" (None if a run went astray)."""
        groups: dict[tuple, list[dict]] = {}
        for row in self.rows:
            key = tuple(str(row[k]) for k in ("label", "targets", "rank", "alpha", "lr", "rslora"))
            groups.setdefault(key, []).append(row)
        cells = []
        for rows in groups.values():
            losses = [row["validation_loss"] for row in rows]
            mean = None if None in losses else statistics.fmean(losses)
            shared = {k: v for k, v in rows[0].items() if k not in ("seed", "validation_loss", "stopped")}
            cells.append(shared | {"losses": losses, "mean": mean})
        return cells

    def tuned(self) -> list[dict[str, Any]]:
        """For each set of targets and rank the cell of the best learning rate, + "edge": is that rate the lowest or the
        highest that was tried, so that a better one may lie beyond?"""
        groups: dict[tuple, list[dict]] = {}
        for cell in self.cells():
            groups.setdefault((cell["label"], cell["rank"], cell["alpha"], cell["rslora"]), []).append(cell)
        chosen = []
        for cells in groups.values():
            sound = [cell for cell in cells if cell["mean"] is not None]
            rates = sorted(cell["lr"] for cell in cells)
            for best in [min(sound, key=lambda cell: cell["mean"])] if sound else []:
                chosen.append(best | {"edge": len(rates) > 1 and best["lr"] in (rates[0], rates[-1])})
        return chosen

    def best(self) -> dict[str, Any]:
        """The cell of the lowest mean validation loss. Raises ValueError while there is none."""
        cells = self.tuned()
        if not cells:
            raise ValueError("no trial has finished with a loss that is a number")
        return min(cells, key=lambda cell: cell["mean"])

    def table(self) -> str:
        """One line for each set of targets and rank, at its best rate; a star where that is the edge of the grid."""
        rows = [("targets", "rank", "alpha", "rate", "parameters", "validation loss", "from", "to")]
        for c in self.tuned():
            rate = f"{c['lr']:g}" + "*" * c["edge"]
            ends = (f"{end(c['losses']):.4f}" for end in (min, max))
            rows.append(
                (c["label"], str(c["rank"]), f"{c['alpha']:g}", rate, f"{c['parameters']:,}", f"{c['mean']:.4f}", *ends)
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        missing = self.wanted - len(self.rows)
        return "\n".join(lines + [f"{missing} of {self.wanted} runs are missing"] * (missing > 0))


def search(
    base: nn.Module,
    trials: Sequence[Trial],
    examples: Sequence[dict],
    validation: Sequence[dict],
    *,
    steps: int = 60,
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 16,
    backend: str = "lora_lab",
    path: str | os.PathLike | None = None,
    on_run: Any = None,
) -> Search:
    """Train every trial with every seed for the same number of steps on the same batches, and take the loss on unseen
    examples. Adapters come off after each run, and the base is proved to be the same to the last bit.

    examples, validation: {"input_ids", "labels"} as from `tasks.encode`. backend: whose adapters, "lora_lab" or
    "peft". path: a JSON file to go on from; one of other settings is refused. on_run: called with each new row.

    Ctrl-C ends the search and returns what there is (`complete` is then False), the base as it was.
    Raises ValueError, before anything runs, for no trials, no seeds, a trial twice, one name for two sets of targets,
    an unknown backend, a base with adapters, or a file of another search; later if a trial has changed the base.
    """
    trials, seeds = list(trials), list(seeds)
    _check(base, trials, seeds, backend)
    path = None if path is None else Path(path)
    clean = base_hash(base)
    settings = {"steps": steps, "batch_size": batch_size, "backend": backend, "base": clean}
    settings |= {"examples": fingerprint(examples), "validation": fingerprint(validation)}
    content = {**circumstances(), "settings": settings, "runs": []}
    if path is not None and path.exists():
        content = found(path, content, ("settings",))
        if not content:
            raise ValueError(f"{path} is of another search (other data, base, steps or backend): name another file")
    keys = [_key(trial, seed) for trial in trials for seed in seeds]
    try:
        for trial in trials:
            for seed in seeds:
                if any(_of(row) == _key(trial, seed) for row in content["runs"]):
                    continue
                with one_thread():
                    row = _run(base, trial, seed, examples, validation, steps, batch_size, backend)
                if base_hash(base) != clean:
                    raise ValueError(f"the trial {trial} has changed the base: what came after it would be worthless")
                content["runs"].append(row)
                if path is not None:
                    write_json(path, content)
                if on_run is not None:
                    on_run(row)
    except KeyboardInterrupt:
        print("Stopped. What is done is kept.")
    return Search([row for row in content["runs"] if _of(row) in keys], len(keys))


def base_hash(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def equal_budget(base: Any, targets: Mapping[str, str | Sequence[str]], parameters: int) -> dict[str, int]:
    """For each set of targets the rank whose adapter comes nearest to `parameters` trainable numbers.

    base: a model, a config or a name, as in `lora_lab.budget`. Raises ValueError where even rank 1 has over twice as
    many, or where the largest rank that all layers can have is still 10 % short.
    """
    ranks = {}
    for label, names in targets.items():
        sites = adapter_sites(base, 1, names).values()
        each = sum(site.parameters for site in sites)
        most = min(min(site.out, site.in_) for site in sites)
        rank = max(1, round(parameters / each))
        if each * rank > 2 * parameters:
            raise ValueError(f"{label}: rank 1 has {each:,} parameters, more than twice the {parameters:,} wanted")
        if rank > most and each * most < 0.9 * parameters:
            raise ValueError(
                f"{label}: rank {most}, the largest there, has {each * most:,} of {parameters:,} parameters"
            )
        ranks[label] = min(rank, most)
    return ranks


@contextlib.contextmanager
def _adapters(base: nn.Module, trial: Trial, seed: int, backend: str) -> Iterator[nn.Module]:
    """`base` with the adapters of a trial inside; afterwards as it was, whatever happened."""
    trains = {name: p.requires_grad for name, p in base.named_parameters()}
    targets = trial.targets if isinstance(trial.targets, str) else list(trial.targets)
    with modes_kept(base), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if backend == "lora_lab":
            inject(base, targets, trial.rank, trial.alpha, rslora=trial.rslora)
            try:
                yield base
            finally:
                eject(base)
            return
        from peft import LoraConfig, get_peft_model

        known = set(vars(base))
        config = LoraConfig(
            r=trial.rank, lora_alpha=trial.alpha, target_modules=targets, use_rslora=trial.rslora, task_type="CAUSAL_LM"
        )
        wrapped = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wrapped = get_peft_model(base, config)
            yield wrapped
        finally:
            if wrapped is not None:
                wrapped.unload()  # without it the next call would wrap what is wrapped, with these targets
            for attribute in set(vars(base)) - known:
                delattr(base, attribute)
            for name, parameter in base.named_parameters():
                parameter.requires_grad_(trains[name])


def _run(base, trial, seed, examples, validation, steps, batch_size, backend) -> dict[str, Any]:
    row = {**_key(trial, seed), "label": trial.label}  # targets as a list, as in a file: cells compare them
    with _adapters(base, trial, seed, backend) as model:
        row["parameters"] = count(model).trainable
        try:
            train(model, examples, steps=steps, lr=trial.lr, batch_size=batch_size, seed=seed, progress=False)
        except Diverged as error:
            return row | {"validation_loss": None, "stopped": str(error)}
        return row | {"validation_loss": digits(mean_loss(model, validation)), "stopped": ""}


def _check(base: nn.Module, trials: list[Trial], seeds: list[int], backend: str) -> None:
    if not trials or not seeds:
        raise ValueError(f"{len(trials)} trials and {len(seeds)} seeds: at least one of each is needed")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    twice = next((t for i, t in enumerate(trials) if t in trials[:i]), None)
    if twice is not None or len(set(seeds)) < len(seeds):
        raise ValueError(f"a run would be made twice: {twice or f'seeds {seeds}'}")
    names: dict[str, Trial] = {}
    for trial in trials:
        other = names.setdefault(trial.label, trial)
        if trial.targets != other.targets:
            raise ValueError(
                f"{trial.label!r} is the name of two sets of targets, {other.targets!r} and {trial.targets!r}: "
                "tables compare by name, so give each its own"
            )
    leftover = [name for name, _ in base.named_parameters() if name.endswith((".A", ".B")) or ".lora_" in name]
    if leftover:
        raise ValueError(
            f"the base carries adapters already ({leftover[0]}): take them out first (eject, or .unload())"
        )


def _key(trial: Trial, seed: int) -> dict[str, Any]:
    fields = dataclasses.asdict(trial)
    targets = fields["targets"]
    return fields | {"targets": targets if isinstance(targets, str) else list(targets), "seed": seed}


def _of(row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {field.name: row[field.name] for field in dataclasses.fields(Trial)} | {"seed": row["seed"]}
    return fields | {"targets": row["targets"] if isinstance(row["targets"], str) else list(row["targets"])}
