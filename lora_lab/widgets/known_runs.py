"""Runs whose figures are known: the course's own tensor accounting, and what PEFT published."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from lora_lab.paths import MEASUREMENTS, PUBLISHED
from lora_lab.targets import ALL_LINEAR

QKVO, QV = ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


class Known(NamedTuple):
    """A run whose figures are known. setting: what to set the controls to. peak: bytes that were counted.

    parameters, file: what was published (trainable parameters, bytes)."""

    setting: dict[str, Any]
    peak: int | None = None
    parameters: int | None = None
    file: int | None = None


def known_runs(models: Iterable[str], ranks: Collection[int]) -> dict[str, Known]:
    """The recorded and the published runs of these models, the published ones of these ranks, by title."""
    models, found = set(models), {}
    recorded = json.loads((MEASUREMENTS / "memory_accounting.json").read_text(encoding="utf-8"))
    for row in recorded["results"]:
        setting = dict(row["setting"])
        if setting["model"] in models and not {"attention", "autocast", "fused"} & set(setting):
            setting["targets"] = tuple(setting.get("targets", ())) or ALL_LINEAR
            usual = {"rank": 16, "optimizer": "adamw", "checkpointing": False, "dtype": "bfloat16"}
            title = row["title"].replace(" · adamw", "").replace(" · bfloat16", "").replace(" on all-linear", "")
            found[f"accounted: {title}"] = Known(usual | setting, peak=row["measured"]["peak"])
    with (PUBLISHED / "peft_metamathqa_llama32_3b.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["peft_type"] == "LORA"]
    for row in rows if "Llama-3.2-3B" in models else ():
        special = ("mica", "lorafa", "bdlora")  # half frozen, or of another shape
        targets = set(row["target_modules"].split())
        names = next((names for names in (QV, QKVO, MLP) if set(names) == targets), None)
        if names and int(row["r"]) in ranks and not any(word in row["experiment"] for word in special):
            setting = {"model": "Llama-3.2-3B", "method": "dora" if row["use_dora"] == "True" else "lora"}
            setting |= {"rank": int(row["r"]), "targets": names, "optimizer": "adamw", "dtype": "bfloat16"}
            setting |= {"batch": int(row["batch_size"]), "length": int(row["max_seq_length"]), "checkpointing": False}
            numbers = {"parameters": int(row["num_trainable_params"]), "file": int(row["file_size_bytes"])}
            found[f"published: PEFT's {row['experiment']}"] = Known(setting, **numbers)
    return found
