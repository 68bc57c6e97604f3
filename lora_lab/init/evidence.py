"""What speaks for an init and against it, with the kind of evidence: for the advisor.

`measured` reads data/measurements/inits.json (`python -m lora_lab.experiments.inits`); a difference counts where the
seeds of one side do not overlap those of the other. Each init was trained at the rate that suits its loss on the task;
what it forgets depends on that rate more than on the init, so forgetting is compared where the rates are equal.
`published` is the papers' word, not ours.
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
    """What this course's own runs say, if they have been recorded: the short ones for a short run, else the longer."""
    path = MEASUREMENTS / "inits.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    runs = record.get("nf4" if case.quantized else "plain", {})
    if name == "default" or "default" not in runs:
        return []
    # CorDA keeps knowledge by its method kpm, and learns fast by ipm.
    row = "corda kpm" if name == "corda" and case.keep and "corda kpm" in runs else name
    method = f" (method {'kpm' if row != name else 'ipm'})" if name == "corda" else ""
    steps, found = record["settings"]["steps"], []
    if row in runs and case.short:
        found += _beyond_the_spread(runs[row], runs["default"], "test_loss", f"test loss{method} after {steps} steps")
    if row in runs and case.keep:
        text = f"loss on the base's own stories{method} after {steps} steps"
        if runs[row]["lr"] == runs["default"]["lr"]:
            found += _beyond_the_spread(runs[row], runs["default"], "stories_loss", text)
    longer = {} if case.quantized or case.short else record.get("longer", {})
    if row in longer and "default" in longer:
        text = f"test loss{method} after {record['settings']['longer_steps']} steps"
        found += _beyond_the_spread(longer[row], longer["default"], "test_loss", text)
    if row in runs and case.quantized:
        here, there = runs[row]["start"]["distance"], runs["default"]["start"]["distance"]
        if abs(here / there - 1) > 0.01:
            text = f"starts {here:.3f} of ‖W‖ away from W in NF4, the default {there:.3f}"
            found.append(Reason(text, 1 if here < there else -1, "measured"))
    return found


def apart(mine: list[float], others: list[float]) -> int:
    """-1 if every seed of `mine` lies below all of `others`, 1 if above, 0 where the two overlap."""
    return -1 if max(mine) < min(others) else 1 if min(mine) > max(others) else 0


def _beyond_the_spread(mine: dict, base: dict, key: str, what: str) -> list[Reason]:
    """A reason, if no seed of one side is among those of the other; less is better."""
    ours, theirs = mine[key], base[key]
    side = apart(ours, theirs)
    if not side:
        return []
    at = ["", ""]
    if mine.get("lr") != base.get("lr"):  # each was trained at a rate that suited its loss on the task
        at = [f" (rate {runs['lr']:g})" for runs in (mine, base)]
    text = f"{what} {sum(ours) / len(ours):.3g}{at[0]}, with the default {sum(theirs) / len(theirs):.3g}{at[1]}"
    return [Reason(text, -side, "measured")]


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
