"""Answers to exercise 4.8 of notebook 04."""

import math
import statistics

import torch

from lora_lab.checks.nb04_diagnose import reference

from . import right, wrong


def by_tensor(history):
    loss, norm, validation = (torch.tensor(history[key]) for key in ("loss", "grad_norm", "validation"))
    if not torch.cat([loss, norm, validation]).isfinite().all():
        return "overflow"
    if loss[-5:].mean() > 0.55 * loss[0]:
        return "rate too low" if loss.max() < 2 * loss[0] else "rate too high"
    return "healthy" if validation[-1] < 1.25 * validation.min() else "overfitting"


def by_order(history):
    loss, validation = history["loss"], history["validation"]
    if not finite(history):
        return "overflow"
    if 2 * statistics.fmean(loss[-5:]) >= loss[0]:
        leap = sorted(loss)[-2] > 1.9 * loss[0]
        return "rate too high" if leap else "rate too low"
    return "overfitting" if validation[-1] >= 1.33 * min(validation) else "healthy"


def but(change):
    """The right answer, changed: change(history, right) -> word."""
    return lambda history: change(history, reference(history))


def finite(history):
    return all(map(math.isfinite, [*history["loss"], *history["grad_norm"], *history["validation"]]))


def high_if_it_ends_above(history, word):
    if word in ("rate too high", "rate too low"):
        return "rate too high" if history["loss"][-1] > 1.2 * history["loss"][0] else "rate too low"
    return word


def overfits_if_it_ends_above_its_start(history, word):
    if word == "overfitting" and history["validation"][-1] < history["validation"][0]:
        return "healthy"
    return word


def overfits_by_the_gap(history, word):
    gap = finite(history) and history["validation"][-1] > 1.5 * sum(history["loss"][-5:]) / 5
    return "overfitting" if word == "healthy" and gap else word


def overfits_by_any_rise(history, word):
    rises = finite(history) and history["validation"][-1] > min(history["validation"])
    return "overfitting" if word == "healthy" and rises else word


def by_a_fixed_number(history, word):
    return "rate too low" if word == "healthy" and sum(history["loss"][-5:]) / 5 > 2 else word


def high_by_one_spike(history, word):
    return "rate too high" if word == "healthy" and max(history["loss"]) > 1.8 * history["loss"][0] else word


def noise(history, word):
    """Takes the noise of small batches for a leap."""
    return "rate too high" if word == "rate too low" and max(history["loss"]) > 1.1 * history["loss"][0] else word


def never_finite(history):
    loss, validation = history["loss"], history["validation"]
    if loss[-1] > 0.5 * loss[0]:
        return "rate too high" if max(loss) > 1.8 * loss[0] else "rate too low"
    return "overfitting" if validation[-1] > 1.3 * min(validation) else "healthy"


def loss_only(history, word):
    if word == "overflow" and all(map(math.isfinite, history["loss"] + history["validation"])):
        return "healthy"
    return word


DIAGNOSE = [
    right("4.8", "the course's own", reference),
    right("4.8", "tensors", by_tensor),
    right("4.8", "in order", by_order),
    wrong("4.8", "optimist", "says 'healthy' to every run", lambda history: "healthy"),
    wrong("4.8", "noise", "never leapt up", but(noise)),
    wrong("4.8", "swapped", "never leapt up", but(lambda h, w: "rate too high" if w == "rate too low" else w)),
    wrong("4.8", "plateau", "leap", but(high_if_it_ends_above)),
    wrong("4.8", "no validation", "not with the first", but(lambda h, w: "healthy" if w == "overfitting" else w)),
    wrong("4.8", "first validation", "not with the first", but(overfits_if_it_ends_above_its_start)),
    wrong("4.8", "gap", "is a gap, not yet overfitting", but(overfits_by_the_gap)),
    wrong("4.8", "any rise", "wavers by a few percent", but(overfits_by_any_rise)),
    wrong("4.8", "fixed number", "not with a fixed number", but(by_a_fixed_number)),
    wrong("4.8", "spike", "one bad batch is no disease", but(high_by_one_spike)),
    wrong("4.8", "nan compared", "Ask for that first", never_finite),
    wrong("4.8", "loss only", "look at both lists", but(loss_only)),
    wrong(
        "4.8", "falls at all", "has done little of the way", but(lambda h, w: "healthy" if w == "rate too low" else w)
    ),
    wrong("4.8", "other words", "which is none of", lambda history: "fine"),
    wrong("4.8", "a flag", "should return one of", lambda history: True),
]
