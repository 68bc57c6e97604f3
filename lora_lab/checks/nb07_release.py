"""Check 7.5: a release check that compares two models, whatever the release does to the first."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_lab.inject import lora_layers

from .compare import number
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb07_toy import Speaking, adapted, plain

KEYS = ("max_error", "agreement", "passed")


class Counting:
    """A release that is counted, so that forgetting it, or doing it twice, is seen."""

    def __init__(self, release: Callable[[nn.Module], nn.Module]) -> None:
        self.release, self.calls = release, 0

    def __call__(self, model: nn.Module) -> nn.Module:
        self.calls += 1
        return self.release(model)

    def __repr__(self) -> str:
        return "release"


@torch.no_grad()
def _in_place(model: nn.Module, times: float = 1.0) -> nn.Module:
    """As PEFT's merge_and_unload: the model itself, its wrappers replaced."""
    new = plain(model, times)
    for path in lora_layers(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new.get_submodule(path))
    return model


def _broken(model: nn.Module) -> nn.Module:
    new = plain(model)
    with torch.no_grad():
        new.head.weight[0, 0] = float("nan")
    return new


def _unlike(model: nn.Module) -> nn.Module:
    """One output is lowered by a constant: the signed differences are all of one sign."""
    new = plain(model)
    with torch.no_grad():
        new.head.bias[1] -= 0.75
    return new


class Scene(NamedTuple):
    release: Callable[[nn.Module], nn.Module]
    passed: bool
    says: str
    training: bool = False


SCENES = (
    Scene(plain, True, "refuses an honest merge"),
    Scene(_in_place, True, "refuses an honest merge that works in place, as PEFT's merge_and_unload does"),
    Scene(
        lambda model: _in_place(model, 0.0),
        False,
        "lets a release through that threw the adapter away: release works in place here, so a reference taken after "
        "it compares the released model with itself",
    ),
    Scene(lambda model: plain(model, 2.0), False, "lets a double merge through"),
    Scene(
        plain,
        True,
        "refuses an honest merge because dropout is on: put both models into evaluation mode before you ask them",
        True,
    ),
    Scene(_broken, False, "lets a model through whose logits are NaN: NaN > tolerance is False, so ask for <="),
    Scene(_unlike, False, "lets a release through whose logits are too low: take the size of the difference"),
)


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(tokens).logits.double()


def _read(got: Any) -> dict[str, Any]:
    if not isinstance(got, dict) or set(got) != set(KEYS):
        held = f"{sorted(map(str, got))}" if isinstance(got, dict) else kind(got)
        raise Wrong(f"your release_check should return a dict of {', '.join(KEYS)}, not {held}")
    flag = got["passed"].item() if isinstance(got["passed"], Tensor) and got["passed"].ndim == 0 else got["passed"]
    if not isinstance(flag, bool):
        raise Wrong(f"passed should be True or False, not {kind(got['passed'])}")
    return got | {"passed": flag}


def _figures(got: dict[str, Any], old: Tensor, new: Tensor) -> None:
    """Wrong if the reported figures are not those of the two models."""
    gap, same = old - new, old.argmax(-1) == new.argmax(-1)
    error, agreement = number(got["max_error"], "max_error"), number(got["agreement"], "agreement")
    want = float(gap.abs().max())
    if abs(error - want) > 0.02 * want + 1e-5:
        known = {"the mean": gap.abs().mean(), "the signed maximum": gap.max(), "the signed maximum ": -gap.min()}
        near = [name for name, value in known.items() if abs(error - float(value)) <= 0.02 * abs(float(value)) + 1e-7]
        end = f": that is {near[0].strip()} of the differences" if near else ""
        raise Wrong(f"max_error is {error:.3g}, but the largest difference of the logits is {want:.3g}{end}")
    want = float(same.double().mean())
    if abs(agreement - want) > 1e-3:
        flips = abs(agreement - (1 - want)) <= 1e-3
        counted = abs(agreement - float(same.sum())) <= 1e-3
        end = ": that is the share that differs" if flips else ": that is a count" if counted else ""
        end = end or ": compare the argmax over the last dimension, one token for each position"
        raise Wrong(f"agreement is {agreement:.3g}, but {want:.3g} of the positions keep their most likely token{end}")


@exercise(
    "7.5",
    takes=("model", "release", "tokens", "tolerance"),
    points=3,
    minutes=15,
    hints=(
        "release may change the model that it is given. What must you therefore have in hand before you call it?",
        "eval(), then the reference logits under no_grad, then released = release(model), its eval(), its logits. A "
        "difference has a sign, and NaN is not larger than anything.",
        "reference = model.eval()(tokens).logits.clone(); other = release(model).eval()(tokens).logits; error = the "
        "largest |other - reference|; passed is error <= tolerance; agreement is the mean of equal argmax(-1).",
    ),
)
def release_check(answer: Guard, cases: Cases) -> str:
    """Reference first, evaluation mode, size of the difference, argmax, NaN."""
    reports = []
    for scene in SCENES:
        model = adapted(cases, dropout=0.5 if scene.training else 0.0, kind=Speaking).train(scene.training)
        tokens, release = model.tokens(cases), Counting(scene.release)
        old = _logits(model, tokens)
        given = copy.deepcopy(model)
        got = _read(answer(given, release, tokens, 1e-3, untouched=False))
        if release.calls != 1:
            times = "never" if not release.calls else f"{release.calls} times"
            raise Wrong(f"your release_check calls release {times}: call it once, it may change the model")
        if got["passed"] is not scene.passed:
            raise Wrong(f"your release_check {scene.says}")
        new = _logits(scene.release(copy.deepcopy(model)), tokens)
        if new.isfinite().all():
            reports.append((got, old, new))
    for got, old, new in reports:  # last: a wrong verdict says more about the mistake than a wrong figure
        _figures(got, old, new)
    wrong = sum(not scene.passed for scene in SCENES)
    return f"{wrong} wrong releases stopped, {len(SCENES) - wrong} right ones let through"
