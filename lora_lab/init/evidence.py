"""What speaks for an init and against it, with the kind of evidence: for the advisor.

`measured` reads data/measurements/inits.json (`python -m lora_lab.experiments.inits`); a difference counts where the
seeds of one side do not overlap those of the other. `published` is the papers' word, not ours.
"""

import json
from dataclasses import dataclass
from typing import Any

from lora_lab.paths import MEASUREMENTS


@dataclass(frozen=True)
class Reason:
    """One sentence for (+1) or against (-1) an init, or one that rules it out (0), with its evidence and source."""

    text: str
    sign: int
    evidence: str
    source: str = ""

    def __str__(self) -> str:
        mark = {1: "+", -1: "-", 0: "x"}[self.sign]
        return f"{mark} {self.text} [{self.evidence}{', ' + self.source if self.source else ''}]"


def measured(case: Any, name: str) -> list[Reason]:
    """What this course's own short runs say, if they have been recorded."""
    path = MEASUREMENTS / "inits.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"plain": {}, "nf4": {}}
    runs = record["nf4" if case.quantized else "plain"]
    if name == "default" or name not in runs or "default" not in runs:
        return []
    mine, base, found = runs[name], runs["default"], []
    method = " (method ipm)" if name == "corda" else ""
    if case.short:
        steps = record["settings"]["steps"]
        found += _beyond_the_spread(mine, base, "test_loss", f"test loss{method} after {steps} steps")
    if case.keep:
        found += _beyond_the_spread(mine, base, "stories_loss", f"loss on the base's own stories{method} afterwards")
    here, there = mine["start"]["distance"], base["start"]["distance"]
    if case.quantized and abs(here / there - 1) > 0.01:
        text = f"starts {here:.3f} of ‖W‖ away from W in NF4, the default {there:.3f}"
        found.append(Reason(text, 1 if here < there else -1, "measured"))
    return found


def _beyond_the_spread(mine: dict, base: dict, key: str, what: str) -> list[Reason]:
    """A reason, if no seed of one side is among those of the other; less is better."""
    ours, theirs = mine[key], base[key]
    if max(ours) >= min(theirs) and min(ours) <= max(theirs):
        return []
    text = f"{what} {sum(ours) / len(ours):.3g}, with the default {sum(theirs) / len(theirs):.3g}"
    return [Reason(text, 1 if max(ours) < min(theirs) else -1, "measured")]


def published(case: Any, name: str) -> list[Reason]:
    """Claims of the papers, and PEFT's comparison on MetaMathQA with Llama-3.2-3B (peft commit 5d602fd)."""
    peft = "PEFT's MetaMathQA comparison of Llama-3.2-3B, rank 32"
    corda = "its method kpm forgets less than" if case.keep else "its method ipm converges faster than"
    claims = {
        "pissa": ("lower loss than the default at equal steps", 1, "published", "arXiv:2404.02948"),
        "olora": ("faster convergence than the default", 1, "published", "arXiv:2406.01775"),
        "lora_ga": ("2 to 4 times faster than the default", 1, "published", "arXiv:2407.05000"),
        "eva": ("highest average score of the inits in its paper", 1, "published", "arXiv:2410.07170"),
        "mica": ("43.1 % right, the default 47.8 %, and more forgotten (0.079, 0.050)", -1, "published", peft),
        "corda": (f"{corda} the default", 1, "published", "arXiv:2406.05223"),
        "loftq": ("better than QLoRA at 4 bits and below", 1, "published", "arXiv:2310.08659"),
        "gaussian": ("as good as the default", 1, "folklore", ""),
        "orthogonal": ("both factors learn from the first step", 1, "folklore", ""),
    }
    return [Reason(*claims[name])] if name in claims else []
