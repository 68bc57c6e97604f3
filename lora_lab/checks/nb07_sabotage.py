"""Check 7.4: find the layers of a merged model that do not hold what they should."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .describe import kind, short
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb07_toy import ADAPTED, adapted, exact, plain

UNTOUCHED = "blocks.1.attn.k_proj"  # a linear layer without an adapter, and without a bias
LONELY = "blocks.0.seq_proj"


class Scene(NamedTuple):
    """A merged model with something done to it: `wrong` are the paths to be found, `says` why one misses them."""

    wrong: set[str]
    says: str
    dtype: torch.dtype
    size: float
    do: Callable[[nn.Module, nn.Module], Any]


def _times(path: str, times: float) -> Callable:
    return lambda before, after: after.get_submodule(path).weight.copy_(exact(before.get_submodule(path), times))


def _nudge(path: str, dtype: torch.dtype) -> Callable:
    """The largest entry of one weight, sixteen steps of its dtype away."""

    def do(before: nn.Module, after: nn.Module) -> None:
        weight = after.get_submodule(path).weight
        row, column = divmod(int(weight.abs().argmax()), weight.shape[1])
        weight[row, column] *= 1 + 16 * torch.finfo(dtype).eps

    return do


def _nan(path: str) -> Callable:
    def do(before: nn.Module, after: nn.Module) -> None:
        after.get_submodule(path).weight[1, 2] = float("nan")

    return do


def _nothing(before: nn.Module, after: nn.Module) -> None:
    pass


def _rows(path: str) -> Callable:
    def do(before: nn.Module, after: nn.Module) -> None:
        weight = after.get_submodule(path).weight
        weight.copy_(weight.roll(1, 0))

    return do


FULL, HALF, FP16 = torch.float32, torch.bfloat16, torch.float16
STRICT = "calls an honest {0} merge wrong: rounding to {0} moves every weight a little, and the bound has to follow it"
FIRST, SECOND, THIRD, LAST = ADAPTED
SCENES = (
    Scene(
        set(),
        "calls an honest merge wrong: float32 sums in another order differ in the last digits",
        FULL,
        1.0,
        _nothing,
    ),
    Scene({FIRST}, "a layer whose update was never added", FULL, 1.0, _times(FIRST, 0.0)),
    Scene({SECOND}, "a layer that was merged twice", FULL, 1.0, _times(SECOND, 2.0)),
    Scene({THIRD}, "a layer whose scale is a tenth too large", FULL, 1.0, _times(THIRD, 1.1)),
    Scene(set(), STRICT.format("bfloat16"), HALF, 1.0, _nothing),
    Scene(set(), STRICT.format("float16"), FP16, 1.0, _nothing),
    Scene({LAST}, "a layer whose rows were moved by one", HALF, 1.0, _rows(LAST)),
    Scene(
        {FIRST},
        "a layer that lost a small update: all of its entries are below 1e-3, and a fixed tolerance of that size "
        "sees nothing",
        FULL,
        1e-4,
        _times(FIRST, 0.0),
    ),
    Scene(
        {SECOND}, "a single wrong entry: compare entry by entry, not norms or means", FULL, 1.0, _nudge(SECOND, FULL)
    ),
    Scene(
        {THIRD}, "a layer that holds a NaN: NaN > bound is False, so ask what is not <= bound", FULL, 1.0, _nan(THIRD)
    ),
    Scene(
        {UNTOUCHED},
        "a changed layer that has no adapter: there the weight must be the same to the bit",
        FULL,
        1.0,
        _nudge(UNTOUCHED, FULL),
    ),
    Scene(
        {FIRST, LONELY},
        "the second of two wrong layers",
        HALF,
        1.0,
        lambda b, a: (_times(FIRST, 0.0)(b, a), _rows(LONELY)(b, a)),
    ),
)


def _read(got: Any, paths: set[str]) -> set[str]:
    if isinstance(got, str) or not isinstance(got, list | set | tuple | frozenset):
        raise Wrong(f"your wrong_layers should return a list of paths, empty if all is well, not {kind(got)}")
    for path in got:
        if path not in paths:
            near = ": the path without .weight or .base" if str(path).rpartition(".")[0] in paths else ""
            raise Wrong(f"your wrong_layers names {short(path)}, which is no linear layer of the merged model{near}")
    return set(got)


@exercise(
    "7.4",
    takes=("before", "after"),
    points=3,
    minutes=15,
    hints=(
        "You know what each weight should be, and how far from it rounding can take it. What is further away is wrong.",
        "Walk over the nn.Linear modules of after. Where before has a LoRA layer, compare with W + s·BA and "
        "error_bound; elsewhere the weights must be equal. NaN fails every comparison.",
        "ok = ((weight.double() - exact).abs() <= bound).all(); for a layer without an adapter, torch.equal. Collect "
        "the paths where it is not ok.",
    ),
)
def wrong_layers(answer: Guard, cases: Cases) -> str:
    """The paths whose weight is not what the merge should have put there."""
    for scene in SCENES:
        before = adapted(cases, scene.dtype, scene.size)
        after = plain(before)
        with torch.no_grad():
            scene.do(before, after)
        paths = {name for name, module in after.named_modules() if isinstance(module, nn.Linear)}
        finite = all(parameter.isfinite().all() for parameter in after.parameters())  # NaN never equals its own copy
        got = _read(answer(before, copy.deepcopy(after), untouched=bool(finite)), paths)
        if missed := scene.wrong - got:
            raise Wrong(f"your wrong_layers misses {min(missed)}: {scene.says}")
        if extra := got - scene.wrong:
            if not scene.wrong:
                raise Wrong(f"your wrong_layers {scene.says} ({len(extra)} layers named, {min(extra)}, ...)")
            raise Wrong(f"your wrong_layers names {min(extra)}, which is right; only {min(scene.wrong)} is not")
    sabotaged = sum(bool(scene.wrong) for scene in SCENES)
    return f"{sabotaged} sabotaged merges found, {len(SCENES) - sabotaged} honest ones let through"
