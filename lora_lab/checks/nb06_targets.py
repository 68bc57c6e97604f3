"""Check 6.7: targets for an architecture that nobody has a table for."""

import re
from typing import Any

import torch
from torch import nn

from lora_lab.base import is_linear
from lora_lab.targets import matches

from .describe import kind, short
from .guard import Guard, Wrong
from .harness import Cases, exercise

WORDS = ("mix", "gaze", "lift", "fold", "pull", "sway", "turn", "pour", "knit", "weave")


class Unknown(nn.Module):
    """Blocks of layers with made-up names between an input and an output that are linear too."""

    def __init__(self, cases: Cases, head: str) -> None:
        """`head`: 'own' name for the output layer, or 'shared' with a layer of the blocks."""
        super().__init__()
        names = cases.shuffled(WORDS)
        self.embed = nn.Embedding(12, 8)
        self.add_module(names[6], nn.Linear(8, 8))
        blocks = []
        for _ in range(cases.integer(2, 3)):
            block, inner, wide = nn.Module(), nn.Module(), nn.Module()
            inner.add_module(names[0], nn.Linear(8, 24))
            inner.add_module(names[1], nn.Linear(8, 8, bias=False))
            wide.add_module(names[2], self._conv(8, 20))
            wide.add_module(names[3], nn.Linear(20, 8))
            block.add_module(names[4], inner)
            block.add_module(names[5], wide)
            block.norm = nn.LayerNorm(8)
            blocks.append(block)
        self.add_module(names[7], nn.ModuleList(blocks))
        self.add_module(names[8] if head == "own" else names[1], nn.Linear(8, 12, bias=False))

    @staticmethod
    def _conv(wide: int, out: int) -> nn.Module:
        from transformers.pytorch_utils import Conv1D

        return Conv1D(out, wide)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("this model is only looked at: it cannot be run")


def inside_blocks(model: nn.Module) -> set[str]:
    """Paths of the linear layers in the model's ModuleList."""
    roots = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return {
        name
        for name, module in model.named_modules()
        if is_linear(module) and any(name.startswith(f"{root}.") for root in roots)
    }


def _hits(got: Any, model: nn.Module) -> set[str]:
    if isinstance(got, str):
        if got.lower() == "all-linear":
            raise Wrong(
                "your pick_targets says all-linear: PEFT leaves out the output head only where the model declares one, "
                "and this one does not, so the layers before and after the blocks are hit"
            )
        try:
            re.compile(got)
        except re.error as error:
            raise Wrong(f"your pick_targets returned {short(got)}, which is no regular expression: {error}") from None
    elif not isinstance(got, list | tuple | set) or not all(isinstance(name, str) for name in got):
        raise Wrong(f"your pick_targets should return a list of names, not {kind(got)}")
    elif not got:
        raise Wrong("your pick_targets returned an empty list: the blocks have linear layers")
    paths = [name for name, _ in model.named_modules() if name]
    for target in [] if isinstance(got, str) else got:
        if not any(matches(path, [target]) for path in paths):
            raise Wrong(f"your pick_targets names {target!r}, which matches no module: a target is the end of a path")
    return {path for path in paths if matches(path, got)}


def _judge(model: nn.Module, hits: set[str]) -> None:
    want = inside_blocks(model)
    modules = dict(model.named_modules())
    for path in sorted(hits - want):
        what = type(modules[path]).__name__
        if not is_linear(modules[path]):
            raise Wrong(f"your pick_targets hits {path}, a {what}: LoRA goes to linear layers")
        leaf = path.rpartition(".")[2]
        if any(name.endswith(f".{leaf}") for name in want):
            raise Wrong(
                f"your pick_targets hits {path}, which is outside the blocks and has the name of a layer inside: "
                "use a longer end of the path, or whole paths"
            )
        raise Wrong(f"your pick_targets hits {path}, which is outside the blocks")
    if missed := sorted(want - hits):
        conv = [path for path in missed if not isinstance(modules[path], nn.Linear)]
        if len(conv) == len(missed):
            raise Wrong(f"your pick_targets misses {conv[0]}, a Conv1D: it is linear too, with its weight transposed")
        if (found := hits & want) and not {p.split(".")[1] for p in missed} & {p.split(".")[1] for p in found}:
            raise Wrong(f"your pick_targets misses {missed[0]}: look into every block")
        raise Wrong(f"your pick_targets misses {missed[0]}, and {len(missed) - 1} more of the {len(want)} layers")


@exercise(
    "6.7",
    takes=("model",),
    points=2,
    minutes=12,
    hints=(
        "Do not guess from names. Walk over named_modules() and ask for the type of each module.",
        "The blocks are in an nn.ModuleList; a layer is inside if its path begins with the list's path and a dot. "
        "Linear are nn.Linear and transformers' Conv1D. Whole paths are always safe targets.",
        "root: the path of the ModuleList. [path for path, m in model.named_modules() if path.startswith(root + '.') "
        "and isinstance(m, (torch.nn.Linear, Conv1D))]. Conv1D stands in transformers.pytorch_utils.",
    ),
)
def pick_targets(answer: Guard, cases: Cases) -> str:
    """Targets that match the linear layers of the blocks, and nothing else."""
    count = 0
    for head in ("own", "shared", "own", "shared"):
        model = Unknown(cases, head)
        _judge(model, _hits(answer(model), model))
        count += 1
    return f"every linear layer of the blocks, and no other, in {count} unknown architectures"
