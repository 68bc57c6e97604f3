"""Check 6.6: what is wrong with a run, told from the log that Trainer keeps."""

import math
from collections.abc import Callable
from statistics import fmean

from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise

OVERFLOW, NOTHING, RISING, OVERFITTING, HEALTHY = WORDS = (
    "overflow",
    "nothing trains",
    "warm-up never ends",
    "overfitting",
    "healthy",
)
Log = list[dict[str, float]]


def _log(rates: list[float], losses: list[float], norms: list[float], evals: list[float], every: int) -> Log:
    """Entries as Trainer writes them: training and evaluation apart, a summary without a loss at the end."""
    log: Log = []
    for i, (rate, loss, norm) in enumerate(zip(rates, losses, norms, strict=True), start=1):
        log.append({"loss": loss, "grad_norm": norm, "learning_rate": rate, "epoch": i / 10, "step": i * 5})
        if i % every == 0 and i // every <= len(evals):
            log.append({"eval_loss": evals[i // every - 1], "eval_runtime": 1.5, "epoch": i / 10, "step": i * 5})
    log.append({"train_runtime": 60.0, "train_loss": fmean(losses), "epoch": len(losses) / 10, "step": len(losses) * 5})
    return log


def _parts(cases: Cases) -> tuple[list[float], list[float], list[float], list[float], int]:
    every = cases.integer(2, 3)
    count = every * cases.integer(6, 8)
    start = cases.real(3, 7)
    losses = [start * (0.08 + 0.92 * math.exp(-5 * i / count)) * cases.real(0.93, 1.07) for i in range(count)]
    norms = [cases.real(0.4, 1.6) for _ in range(count)]
    evals = [start * (0.1 + 0.85 * math.exp(-5 * (i + 1) * every / count)) for i in range(count // every)]
    rising = max(2, count // 8)
    rates = [1e-3 * min((i + 1) / rising, (count - i) / (count - rising + 1)) for i in range(count)]
    return rates, losses, norms, evals, every


def _rise(rates: list[float]) -> list[float]:
    return [1e-5 * (i + 1) for i in range(len(rates))]


def _healthy(cases: Cases, variant: int) -> Log:
    """0: plain.  1: a constant rate.  2: a spike of the gradient.  3: the validation loss wavers at its end.
    4: one gradient of exactly zero.  5: validation is far above training from the start.  6: never validated.
    7: a warm-up that ended, and a constant rate since.  8: validation ends 32 % above its lowest.  9: the last gradient
    is exactly zero.  10: all gradients are small."""
    rates, losses, norms, evals, every = _parts(cases)
    if variant == 1:
        rates = [2e-4] * len(rates)
    elif variant == 2:
        norms[len(norms) // 2] = 60.0
    elif variant == 3:
        evals[-1] = 1.08 * min(evals)
    elif variant == 4:
        norms[0] = 0.0
    elif variant == 5:
        evals = [2.5 * value for value in evals]
    elif variant == 6:
        evals = []
    elif variant == 7:
        rates = [max(rates) * min(1.0, (i + 1) / 3) for i in range(len(rates))]
    elif variant == 8:
        evals[-1] = 1.32 * min(evals[:-1])
    elif variant == 9:
        norms[-1] = 0.0
    elif variant == 10:
        norms = [norm * 1e-4 for norm in norms]
    return _log(rates, losses, norms, evals, every)


def _overflow(cases: Cases, variant: int) -> Log:
    """0: the loss is logged as 0.0 and the gradient as nan, as Trainer does by default.  1: one infinite gradient.
    2: nan in the validation loss only.  3: nan everywhere from one step on.  4: nan from the first step on.
    5: nan, with a rate that rises to the end and a validation loss that doubled.  6: nan, with gradients of 0."""
    rates, losses, norms, evals, every = _parts(cases)
    at = len(losses) // 2
    if variant == 0:
        losses[at:] = [0.0] * (len(losses) - at)
        norms[at:] = [math.nan] * (len(norms) - at)
    elif variant == 1:
        norms[at] = math.inf
    elif variant == 2:
        evals[-1] = math.nan
    elif variant in (5, 6):
        losses[-1] = math.nan
        rates, evals = _rise(rates), [*evals[:-1], 2 * min(evals)]
        norms = norms if variant == 5 else [0.0] * len(norms)
    else:
        at = 0 if variant == 4 else at
        losses[at:] = [math.nan] * (len(losses) - at)
        norms[at:] = [math.nan] * (len(norms) - at)
    return _log(rates, losses, norms, evals, every)


def _nothing(cases: Cases, variant: int) -> Log:
    """0: the loss wavers, as batches differ.  1: under a constant rate.  2: under a rate that rises to the end.
    3: the validation loss rose as well."""
    rates, losses, _, evals, every = _parts(cases)
    start = losses[0]
    losses = [start * cases.real(0.85, 1.1) for _ in losses]
    evals = [start] * len(evals)
    if variant == 3:
        evals[-1] = 1.6 * start
    rates = (rates, [1e-3] * len(rates), _rise(rates), rates)[variant]
    return _log(rates, losses, [0.0] * len(losses), evals, every)


def _rising(cases: Cases, variant: int) -> Log:
    """0: it learns slowly.  1: it learns well all the same; the schedule is wrong nevertheless.  2: it overfits."""
    rates, losses, norms, evals, every = _parts(cases)
    rates = _rise(rates)
    if variant == 2:
        evals[-1] = 1.8 * min(evals)
    if not variant:
        start = losses[0]
        losses = [start * (1 - 0.2 * i / len(losses)) for i in range(len(losses))]
        evals = [start * (1 - 0.2 * i / len(evals)) for i in range(len(evals))]
    return _log(rates, losses, norms, evals, every)


def _overfitting(cases: Cases, variant: int) -> Log:
    """0, 1: the validation loss rises by more than half, and ends below its start.  2: above its start.
    3: it rises by 36 %.  4: by half, of very little."""
    rates, losses, norms, evals, every = _parts(cases)
    low, count = evals[0] * (0.35 if variant < 4 else 0.02), len(evals)
    turn = count // 2
    top = (1.8, 2.2, 4.5, 1.36, 1.5)[variant]
    evals = [evals[0] + (low - evals[0]) * i / turn for i in range(turn)]
    rest = count - turn
    evals += [low * (1 + (top - 1) * (i + 1) / rest) for i in range(rest)]
    if variant in (3, 4):
        evals[-1] = top * min(evals)
    losses = [value * math.exp(-3 * i / len(losses)) for i, value in enumerate(losses)]
    return _log(rates, losses, norms, evals, every)


MAKE: dict[str, tuple[Callable[[Cases, int], Log], int]] = {
    HEALTHY: (_healthy, 11),
    OVERFLOW: (_overflow, 7),
    NOTHING: (_nothing, 4),
    RISING: (_rising, 3),
    OVERFITTING: (_overfitting, 5),
}
FIRST = "ask in the order of the table"
# What to look at when variant `v` of a word is taken for another word. None stands for any.
LOOK: dict[tuple[str, int | None, str | None], str] = {
    (HEALTHY, 1, RISING): "its rate is constant: it does not rise at the end",
    (HEALTHY, None, RISING): "its rate rises at first, as every warm-up does; ask whether it still rises at the end",
    (HEALTHY, 7, RISING): "its warm-up ended, and the rate has been constant since: compare the last two rates",
    (HEALTHY, 8, OVERFITTING): "its validation loss ends 32 % above its lowest, and a third is 33.3 %",
    (HEALTHY, 9, NOTHING): "only its last gradient norm is zero",
    (HEALTHY, 10, NOTHING): "its gradient norms are small, and none is exactly 0",
    (HEALTHY, 2, OVERFLOW): "a large gradient norm is still a number; clipping takes care of it",
    (HEALTHY, 3, OVERFITTING): "its validation loss ends a few percent above its lowest: that is noise",
    (HEALTHY, 4, NOTHING): "a single gradient norm is zero, the others are not",
    (HEALTHY, 5, OVERFITTING): "its validation loss is above the training loss from the start, and falls: a gap is not "
    "a rise",
    (HEALTHY, None, OVERFITTING): "its validation loss never rises by a third above its lowest",
    (OVERFLOW, 0, None): "its loss reads 0.0, and its grad_norm nan: Trainer filters nan out of the logged loss",
    (OVERFLOW, 1, None): "one of its gradient norms is infinite",
    (OVERFLOW, 2, None): "its last eval_loss is nan: look at all three numbers",
    (OVERFLOW, 5, None): f"two rows fit it, and the first counts: {FIRST}",
    (OVERFLOW, 6, None): f"two rows fit it, and the first counts: {FIRST}",
    (OVERFLOW, None, None): "it holds nan: ask for that first, with math.isfinite; every comparison with nan is False",
    (NOTHING, 2, RISING): f"two rows fit it, and the first counts: {FIRST}",
    (NOTHING, 3, OVERFITTING): f"two rows fit it, and the first counts: {FIRST}",
    (NOTHING, None, None): "each of its gradient norms is exactly 0: no parameter that trains is reached",
    (RISING, 2, OVERFITTING): f"two rows fit it, and the first counts: {FIRST}",
    (RISING, 1, HEALTHY): "it learns, but its rate still rises at the last step: the warm-up is longer than the run",
    (RISING, None, None): "its learning rate still rises at the last step",
    (OVERFITTING, 3, None): "its validation loss ends 36 % above its lowest, more than a third",
    (OVERFITTING, 4, None): "its validation loss ends half above its lowest, of very little: take the ratio",
    (OVERFITTING, 2, None): "its validation loss ends far above its lowest value",
    (OVERFITTING, None, HEALTHY): "compare the last eval_loss with the lowest one, not with the first",
    (OVERFITTING, None, None): "its validation loss ends far above its lowest value",
}


def _advice(truth: str, variant: int, got: str) -> str:
    for key in ((truth, variant, got), (truth, variant, None), (truth, None, got), (truth, None, None)):
        if key in LOOK:
            return LOOK[key]
    return "go through the table from its first row"


@exercise(
    "6.6",
    takes=("log",),
    points=3,
    minutes=15,
    hints=(
        "The table gives the order of the questions. Collect the numbers of each kind first: not every entry has each.",
        "norms = [entry['grad_norm'] for entry in log if 'grad_norm' in entry], and so on for loss, learning_rate and "
        "eval_loss. The list of evaluations may be empty.",
        "not all(map(math.isfinite, losses + norms + evals)); then not any(norms); then rates[-1] > rates[-2]; then "
        "evals and evals[-1] > 4/3 * min(evals).",
    ),
)
def read_log(answer: Guard, cases: Cases) -> str:
    """One of five words for a log_history."""
    plans = cases.shuffled([(word, variant) for word, (_, count) in MAKE.items() for variant in range(count)])
    wrong: list[tuple[str, int, str]] = []
    for truth, variant in plans:
        got = answer(MAKE[truth][0](cases, variant))
        if not isinstance(got, str):
            raise Wrong(f"your read_log should return one of {', '.join(map(repr, WORDS))}, not {kind(got)}")
        if got not in WORDS:
            raise Wrong(f"your read_log returned {got!r}, which is none of {', '.join(map(repr, WORDS))}")
        if got != truth:
            wrong.append((truth, variant, got))
    if not wrong:
        return f"{len(plans)} runs told apart by their logs"
    said = {got for _, _, got in wrong}
    if len(said) == 1 and len(wrong) == len(plans) - MAKE[min(said)][1]:
        raise Wrong(f"your read_log says {said.pop()!r} to every run: let it look at the numbers")
    # Sorted, so that the sentence does not depend on the order in which the logs came.
    truth, variant, got = max(sorted(wrong), key=lambda w: sum(w[0] == t and w[2] == g for t, _, g in wrong))
    raise Wrong(
        f"your read_log calls a run {got!r} that is {truth!r} ({len(wrong)} of {len(plans)} runs are wrong): "
        f"{_advice(truth, variant, got)}"
    )


def reference(log: Log) -> str:
    """The course's own answer."""
    losses, norms, rates, evals = (
        [entry[key] for entry in log if key in entry] for key in ("loss", "grad_norm", "learning_rate", "eval_loss")
    )
    if not all(map(math.isfinite, losses + norms + evals)):
        return OVERFLOW
    if not any(norms):
        return NOTHING
    if rates[-1] > rates[-2]:
        return RISING
    if evals and evals[-1] > 4 / 3 * min(evals):
        return OVERFITTING
    return HEALTHY
