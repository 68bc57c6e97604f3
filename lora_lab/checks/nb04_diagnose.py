"""Check 4.8: tell five kinds of training runs apart by their curves."""

import math
from collections.abc import Callable
from statistics import fmean

from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise

HEALTHY, HIGH, LOW, OVERFITTING, OVERFLOW = KINDS = (
    "healthy",
    "rate too high",
    "rate too low",
    "overfitting",
    "overflow",
)
History = dict[str, list[float]]


def _noisy(cases: Cases, values: list[float], share: float) -> list[float]:
    return [value * (1 + cases.real(-share, share)) for value in values]


def _fall(start: float, end: float, steps: int, quick: float = 6) -> list[float]:
    """From start to end, exponentially, with most of the way done after 1/quick of the steps."""
    return [end + (start - end) * math.exp(-quick * i / steps) for i in range(steps)]


def _norms(cases: Cases, loss: list[float]) -> list[float]:
    return _noisy(cases, [0.5 * value + 0.05 for value in loss], 0.3)


def _looks(values: list[float], count: int = 12) -> list[float]:
    """The curve at `count` even distances, the last step among them."""
    return [values[(i + 1) * len(values) // count - 1] for i in range(count)]


def _healthy(cases: Cases, variant: int) -> History:
    """0: plain.  1: unseen examples are much harder from the beginning, and stay so.  2: one bad batch.
    3: the validation loss wavers, and ends a little above its lowest.  4: a task of much larger losses."""
    steps = cases.integer(8, 15) * 10
    start = cases.real(4, 8) * (10 if variant == 4 else 1)
    smooth = _fall(start, start * cases.real(0.02, 0.15), steps)
    loss = _noisy(cases, smooth, 0.12)
    gap = cases.real(1.8, 2.4) if variant == 1 else cases.real(1.0, 1.1)
    if variant == 2:
        loss[cases.integer(steps // 2, steps - 12)] = start * cases.real(2.3, 3.0)
    validation = _looks([gap * value for value in smooth])
    if variant == 3:
        validation = [*validation, *(validation[-1] * rise for rise in (1.0, 1.06, 0.97, cases.real(1.04, 1.1)))]
    return {"loss": loss, "grad_norm": _norms(cases, loss), "validation": validation}


def _low(cases: Cases, variant: int) -> History:
    steps = cases.integer(8, 15) * 10
    start = cases.real(4, 8)
    smooth = _fall(start, start * (0.7, 0.8, 0.9)[variant], steps, 1.2)
    loss = [smooth[0], *_noisy(cases, smooth[1:], 0.3)]  # batches differ, and it barely moves
    return {
        "loss": loss,
        "grad_norm": _noisy(cases, [3.0] * steps, 0.25),
        "validation": _looks([value * 1.02 for value in smooth]),
    }


def _high(cases: Cases, variant: int) -> History:
    steps = cases.integer(8, 15) * 10
    start = cases.real(4, 8)
    if variant == 0:  # leaps up within some steps, then lies on a plateau, below the start and above what is learned
        leap = [start, 0.75 * start, *(start * cases.real(2.3, 4.0) for _ in range(3))]
        loss = leap + _fall(1.3 * start, start * cases.real(0.66, 0.75), steps - len(leap), 10)
        norm = _noisy(cases, [3, 6, 70, 15, 9, *_fall(1.0, 0.06, steps - 5, 8)], 0.2)
    elif variant == 1:  # learns, then loses it all
        turn = cases.integer(steps // 3, steps // 2)
        loss = _fall(start, 0.3 * start, turn, 3) + [start * cases.real(2.3, 4.0) for _ in range(4)]
        loss += [start * cases.real(0.9, 1.05)] * (steps - len(loss))
        norm = _noisy(cases, [2.0] * turn + [60.0] * (steps - turn), 0.4)
    else:  # never comes to rest
        loss = [start, *(start * cases.real(0.6, 3.0) for _ in range(steps - 3)), start * 2.6, start * 0.9]
        norm = _noisy(cases, [20.0] * steps, 0.8)
    loss = _noisy(cases, loss, 0.03)
    return {"loss": loss, "grad_norm": norm, "validation": _looks([1.02 * value for value in loss])}


def _overfitting(cases: Cases, variant: int) -> History:
    steps = cases.integer(8, 15) * 10
    start = cases.real(4, 8)
    smooth = _fall(start, 0.002 * start, steps, 10)
    lowest, turn = start * cases.real(0.12, 0.2), (3, 4, 6)[variant]
    rise = cases.real(1.7, 2.2)  # its end is still far below its beginning
    down = [start * 0.7 + (lowest - start * 0.7) * i / turn for i in range(turn)]
    up = [lowest * (1 + (rise - 1) * i / (11 - turn)) for i in range(12 - turn)]
    loss = _noisy(cases, smooth, 0.15)
    return {"loss": loss, "grad_norm": _norms(cases, loss), "validation": down + up}


def _overflow(cases: Cases, variant: int) -> History:
    history = _healthy(cases, 0)
    at = cases.integer(12, len(history["loss"]) - 5)
    if variant == 0:  # the run stops at the step whose loss is no number
        history["loss"] = [*history["loss"][:at], math.nan]
        history["grad_norm"] = [*history["grad_norm"][:at], math.nan]
        history["validation"] = _looks(history["loss"][:at], 4)
    elif variant == 1:  # the loss is a number throughout: the gradients alone were infinite, and those steps skipped
        for i in (at, at + 1, at + 3):
            history["grad_norm"][i] = math.inf
    else:  # goes on with nan
        history["loss"][at:] = [math.nan] * (len(history["loss"]) - at)
        history["validation"][-3:] = [math.nan] * 3
    return history


MAKE: dict[str, Callable[[Cases, int], History]] = {
    HEALTHY: _healthy,
    HIGH: _high,
    LOW: _low,
    OVERFITTING: _overfitting,
    OVERFLOW: _overflow,
}
VARIANTS = {HEALTHY: 5, LOW: 3, HIGH: 3, OVERFITTING: 3, OVERFLOW: 3}
# What to look at when `kind` variant is taken for something else. None stands for any other answer.
LOOK = {
    (
        HEALTHY,
        1,
        OVERFITTING,
    ): "a validation loss above the training loss is a gap, not yet overfitting: ask whether it "
    "rises again from its lowest value",
    (
        HEALTHY,
        3,
        OVERFITTING,
    ): "its validation loss wavers by a few percent, and ends that much above its lowest value: "
    "overfitting is a rise of a third or more",
    (
        HEALTHY,
        4,
        None,
    ): "its losses are ten times as large as those of the others, from the first: compare with "
    "the run's own start, not with a fixed number",
    (HEALTHY, 2, HIGH): "one bad batch is no disease: the loss came back at once and ends far below its start",
    (HEALTHY, 2, OVERFLOW): "a single high value is still a number: overflow means nan or infinity",
    (LOW, None, HIGH): "both end high, but this one has never leapt up: it falls steadily, and still falls at the end",
    (LOW, None, HEALTHY): "it falls, but has done little of the way: compare its end with its start",
    (
        HIGH,
        0,
        LOW,
    ): "it ends on a plateau, as a rate that is too low might, but look at its beginning: it leapt far above "
    "its start first",
    (HIGH, 0, HEALTHY): "it ends not far below its first loss, and early on it leapt far above it (a mean of the first "
    "steps holds the leap already: take the first loss as the start)",
    (HIGH, 1, OVERFITTING): "the training loss itself went up, not only the validation loss",
    (HIGH, None, LOW): "its loss leaps far above its start: a rate that is too low never does that",
    (OVERFITTING, None, HEALTHY): "the training loss looks perfect; compare the last validation loss with the lowest "
    "one, not with the first",
    (OVERFITTING, None, HIGH): "only the validation loss rises; the training loss falls to the end",
    (OVERFLOW, 1, None): "its losses are all finite, its gradient norms are not: look at both lists",
    (
        OVERFLOW,
        None,
        None,
    ): "it holds nan or infinity. Ask for that first, with math.isfinite: every comparison with nan is False",
}


def _advice(truth: str, variant: int, got: str) -> str:
    for key in ((truth, variant, got), (truth, None, got), (truth, variant, None), (truth, None, None)):
        if key in LOOK:
            return LOOK[key]
    return "compare its start, its end, its highest value, and the validation loss with its lowest value"


@exercise(
    "4.8",
    takes=("history",),
    points=3,
    minutes=15,
    hints=(
        "Ask the questions in the order of the table: is every number finite? Does the loss end low? And only then, "
        "what spoiled it?",
        "The start is the first loss, the end a mean of the last few. Ends low: see the validation loss. Ends high: "
        "has the loss ever been far above its start?",
        "Three questions, each an if: math.isfinite for every value of the three lists; the end against half the "
        "start; then the last validation loss against its own lowest, or the highest loss against twice the start.",
    ),
)
def diagnose(answer: Guard, cases: Cases) -> str:
    """One of five words for a history."""
    plans = cases.shuffled([(truth, variant) for truth in KINDS for variant in range(VARIANTS[truth])])
    wrong: list[tuple[str, int, str]] = []
    for truth, variant in plans:
        got = answer(MAKE[truth](cases, variant))
        if not isinstance(got, str):
            raise Wrong(f"your diagnose should return one of {', '.join(map(repr, KINDS))}, not {kind(got)}")
        if got not in KINDS:
            raise Wrong(f"your diagnose returned {got!r}, which is none of {', '.join(map(repr, KINDS))}")
        if got != truth:
            wrong.append((truth, variant, got))
    if not wrong:
        return f"{len(plans)} runs told apart by their curves"
    said = {got for _, _, got in wrong}
    if len(said) == 1 and len(wrong) == len(plans) - VARIANTS[min(said)]:
        raise Wrong(f"your diagnose says {said.pop()!r} to every run: let it look at the curves")
    # The mistake that most of the wrong answers share is named.
    truth, variant, got = max(wrong, key=lambda each: sum(each[0] == t and each[2] == g for t, _, g in wrong))
    raise Wrong(
        f"your diagnose calls a run {got!r} that is {truth!r} ({len(wrong)} of {len(plans)} runs are wrong): "
        f"{_advice(truth, variant, got)}"
    )


def reference(history: History) -> str:
    """The course's own answer; the exercise's margins are wide enough for many others."""
    loss, validation = history["loss"], history["validation"]
    if not all(map(math.isfinite, [*loss, *history["grad_norm"], *validation])):
        return OVERFLOW
    few = max(1, len(loss) // 20)
    start, end = loss[0], fmean(loss[-few:])
    if end < start / 2:
        return OVERFITTING if validation[-1] > 1.3 * min(validation) else HEALTHY
    return HIGH if max(loss) > 2 * start else LOW
