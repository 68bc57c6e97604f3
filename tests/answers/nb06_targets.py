"""Answers to exercise 6.7 of notebook 06."""

import re

from torch import nn

from lora_lab.base import is_linear
from lora_lab.checks.nb06_targets import inside_blocks

from . import right, wrong


def whole_paths(model):
    return sorted(inside_blocks(model))


def longer_ends(model):
    """Two parts of each path are enough to tell inside from outside."""
    return {".".join(path.split(".")[-2:]) for path in inside_blocks(model)}


def as_pattern(model):
    return "|".join(re.escape(path) for path in whole_paths(model))


def by_modules(model):
    found = []
    for root, blocks in model.named_modules():
        if isinstance(blocks, nn.ModuleList):
            for path, module in blocks.named_modules():
                if type(module).__name__ in ("Linear", "Conv1D"):
                    found.append(f"{root}.{path}")
    return found


def linear_paths(model):
    return [path for path, module in model.named_modules() if is_linear(module)]


TARGETS = [
    right("6.7", "whole paths", whole_paths),
    right("6.7", "two parts", longer_ends),
    right("6.7", "a pattern", as_pattern),
    right("6.7", "from the list", by_modules),
    wrong("6.7", "every linear layer", "which is outside the blocks", linear_paths),
    wrong(
        "6.7",
        "no Conv1D",
        "a Conv1D: it is linear too",
        lambda model: [p for p in whole_paths(model) if isinstance(model.get_submodule(p), nn.Linear)],
    ),
    wrong(
        "6.7",
        "last names",
        "has the name of a layer inside",
        lambda model: sorted({path.rpartition(".")[2] for path in inside_blocks(model)}),
    ),
    wrong("6.7", "all-linear", "only where the model declares one", lambda model: "all-linear"),
    wrong(
        "6.7",
        "first block only",
        "look into every block",
        lambda model: [path for path in whole_paths(model) if path.split(".")[1] == "0"],
    ),
    wrong("6.7", "norms too", "a LayerNorm", lambda model: [*whole_paths(model), "norm"]),
    wrong("6.7", "embedding too", "a Embedding", lambda model: [*whole_paths(model), "embed"]),
    wrong("6.7", "Llama's names", "which matches no module", lambda model: ["q_proj", "v_proj"]),
    wrong("6.7", "nothing", "an empty list", lambda model: []),
    wrong("6.7", "one layer", "more of the", lambda model: [sorted(longer_ends(model), key=len)[0]]),
    wrong("6.7", "modules", "a list of names", lambda model: [model.get_submodule(p) for p in whole_paths(model)]),
    wrong(
        "6.7",
        "with .weight",
        "which matches no module",
        lambda model: [f"{path}.weight" for path in whole_paths(model)],
    ),
    wrong("6.7", "no pattern", "which is no regular expression", lambda model: "*_proj"),
]
