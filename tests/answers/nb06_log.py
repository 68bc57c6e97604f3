"""Answers to exercise 6.6 of notebook 06."""

import itertools
import math

import torch

from lora_lab.checks.nb06_log import HEALTHY, NOTHING, OVERFITTING, OVERFLOW, RISING, reference

from . import right, wrong


def values(log, key):
    return [entry[key] for entry in log if key in entry]


def by_tensor(log):
    numbers = {key: torch.tensor(values(log, key)) for key in ("loss", "grad_norm", "eval_loss", "learning_rate")}
    if any(not numbers[key].isfinite().all() for key in ("loss", "grad_norm", "eval_loss")):
        return "overflow"
    if (numbers["grad_norm"] == 0).all():
        return "nothing trains"
    if numbers["learning_rate"].diff()[-1] > 0:
        return "warm-up never ends"
    evals = numbers["eval_loss"]
    return "overfitting" if len(evals) and evals[-1] / evals.min() > 1.35 else "healthy"


def in_one_pass(log):
    lowest, last, rate, rising, moved = math.inf, None, 0.0, False, False
    for entry in log:
        for key in ("loss", "grad_norm", "eval_loss"):
            if key in entry and not math.isfinite(entry[key]):
                return "overflow"
        moved = moved or entry.get("grad_norm", 0.0) > 0
        if "learning_rate" in entry:
            rising, rate = entry["learning_rate"] > rate, entry["learning_rate"]
        if "eval_loss" in entry:
            last = entry["eval_loss"]
            lowest = min(lowest, last)
    if not moved:
        return "nothing trains"
    if rising:
        return "warm-up never ends"
    return "overfitting" if last is not None and 3 * last > 4 * lowest else "healthy"


def but(change):
    """The right answer, changed: change(log, right) -> word."""
    return lambda log: change(log, reference(log))


def finite(log, *keys):
    return all(math.isfinite(value) for key in keys for value in values(log, key))


def after(log, stop):
    """The rest of the table from below `stop`."""
    words = {OVERFLOW: 0, NOTHING: 1, RISING: 2, OVERFITTING: 3}
    rates, evals = values(log, "learning_rate"), values(log, "eval_loss")
    if words[stop] < 2 and rates[-1] > rates[-2]:
        return RISING
    return OVERFITTING if evals and evals[-1] > 4 / 3 * min(evals) else HEALTHY


def overflow_seen_in(*keys):
    return but(lambda log, word: after(log, NOTHING) if word == OVERFLOW and finite(log, *keys) else word)


def any_zero(log, word):
    return NOTHING if word == HEALTHY and 0.0 in values(log, "grad_norm") else word


def rises_anywhere(log, word):
    rates = values(log, "learning_rate")
    return RISING if word in (HEALTHY, OVERFITTING) and any(b > a for a, b in itertools.pairwise(rates)) else word


def not_below(log, word):
    rates = values(log, "learning_rate")
    return RISING if word in (HEALTHY, OVERFITTING) and rates[-1] >= rates[-2] else word


def any_rise(log, word):
    evals = values(log, "eval_loss")
    return OVERFITTING if word == HEALTHY and evals and evals[-1] > min(evals) else word


def against_training(log, word):
    evals, losses = values(log, "eval_loss"), values(log, "loss")
    return OVERFITTING if word == HEALTHY and evals and evals[-1] > 2 * losses[-1] else word


def against_the_start(log, word):
    evals = values(log, "eval_loss")
    return HEALTHY if word == OVERFITTING and evals[-1] < evals[0] else word


def large_is_overflow(log, word):
    return OVERFLOW if max(values(log, "grad_norm")) > 50 else word


def learning_is_enough(log, word):
    losses = values(log, "loss")
    return HEALTHY if word == RISING and losses[-1] < losses[0] / 2 else word


ROWS = {
    OVERFLOW: lambda log: not finite(log, "loss", "grad_norm", "eval_loss"),
    NOTHING: lambda log: not any(values(log, "grad_norm")),
    RISING: lambda log: values(log, "learning_rate")[-1] > values(log, "learning_rate")[-2],
    OVERFITTING: lambda log: bool(evals := values(log, "eval_loss")) and evals[-1] > 4 / 3 * min(evals),
}


def in_order(*words):
    """The rows of the table asked in this order."""
    return lambda log: next((word for word in words if ROWS[word](log)), HEALTHY)


def warmed_at_all(log, word):
    rates = values(log, "learning_rate")
    return RISING if word in (HEALTHY, OVERFITTING) and rates[-1] > rates[0] else word


def last_norm(log, word):
    return NOTHING if word == HEALTHY and values(log, "grad_norm")[-1] == 0 else word


def tiny_norms(log, word):
    return NOTHING if word == HEALTHY and max(values(log, "grad_norm")) < 1e-3 else word


def more_than(share):
    def change(log, word):
        evals = values(log, "eval_loss")
        return word if word not in (HEALTHY, OVERFITTING) or not evals else judged(evals[-1] > share * min(evals))

    return but(change)


def judged(bad):
    return OVERFITTING if bad else HEALTHY


def a_third_of_a_nat(log, word):
    evals = values(log, "eval_loss")
    return word if word != OVERFITTING else judged(evals[-1] > min(evals) + 1 / 3)


LOGS = [
    wrong("6.6", "rising first", "in the order of the table", in_order(OVERFLOW, RISING, NOTHING, OVERFITTING)),
    wrong("6.6", "overfitting before", "in the order of the table", in_order(OVERFLOW, NOTHING, OVERFITTING, RISING)),
    wrong("6.6", "overflow after", "in the order of the table", in_order(NOTHING, RISING, OVERFLOW, OVERFITTING)),
    wrong("6.6", "warmed at all", "has been constant since", but(warmed_at_all)),
    wrong("6.6", "last norm", "only its last gradient norm", but(last_norm)),
    wrong("6.6", "tiny norms", "none is exactly 0", but(tiny_norms)),
    wrong("6.6", "1.3 times", "a third is 33.3", more_than(1.3)),
    wrong("6.6", "1.5 times", "36 % above", more_than(1.49)),
    wrong("6.6", "a third of a nat", "its validation loss ends", but(a_third_of_a_nat)),
    right("6.6", "lists", reference),
    right("6.6", "tensors", by_tensor),
    right("6.6", "one pass", in_one_pass),
    wrong("6.6", "loss only", "Trainer filters nan out of the logged loss", overflow_seen_in("loss")),
    wrong(
        "6.6",
        "nan only",
        "one of its gradient norms is infinite",
        but(
            lambda log, word: (
                after(log, NOTHING)
                if word == OVERFLOW
                and not any(math.isnan(v) for k in ("loss", "grad_norm", "eval_loss") for v in values(log, k))
                else word
            )
        ),
    ),
    wrong("6.6", "no evaluation", "look at all three numbers", overflow_seen_in("loss", "grad_norm")),
    wrong("6.6", "any zero", "a single gradient norm is zero", but(any_zero)),
    wrong("6.6", "rises anywhere", "as every warm-up does", but(rises_anywhere)),
    wrong("6.6", "constant rate", "its rate is constant", but(not_below)),
    wrong("6.6", "any rise", "that is noise", but(any_rise)),
    wrong("6.6", "gap", "a gap is not a rise", but(against_training)),
    wrong("6.6", "against the start", "not with the first", but(against_the_start)),
    wrong("6.6", "large is overflow", "is still a number", but(large_is_overflow)),
    wrong("6.6", "learning is enough", "longer than the run", but(learning_is_enough)),
    wrong(
        "6.6", "frozen overlooked", "exactly 0", but(lambda log, word: after(log, NOTHING) if word == NOTHING else word)
    ),
    wrong("6.6", "always well", "to every run", lambda log: HEALTHY),
    wrong("6.6", "another word", "none of", lambda log: "fine"),
    wrong("6.6", "a number", "should return one of", lambda log: 3),
    wrong("6.6", "every entry has it", "raised KeyError", lambda log: [entry["loss"] for entry in log] and HEALTHY),
    wrong("6.6", "never validated", "raised ValueError", lambda log: min(values(log, "eval_loss")) and reference(log)),
]
