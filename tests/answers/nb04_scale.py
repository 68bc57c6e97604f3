"""Answers to exercises 4.1 and 4.4 of notebook 04."""

import math

import torch

from . import right, wrong


def scale(alpha, rank, rule):
    return alpha / rank if rule == "lora" else alpha / math.sqrt(rank)


def by_power(alpha, rank, rule):
    return alpha * rank ** {"lora": -1.0, "rslora": -0.5}[rule]


def by_tensor(alpha, rank, rule):
    divisor = torch.tensor(float(rank), dtype=torch.float64)
    return alpha / (divisor if rule == "lora" else divisor.sqrt())


SCALE = [
    right("4.1", "a condition", scale),
    right("4.1", "powers from a table", by_power),
    right("4.1", "a tensor", by_tensor),
    wrong(
        "4.1", "rules swapped", "mixes the rules up", lambda a, r, rule: scale(a, r, "lora" if rule != "lora" else "")
    ),
    wrong("4.1", "always the rank", "'rslora' divides by the square root", lambda a, r, rule: a / r),
    wrong("4.1", "always the root", "'lora' divides by the rank itself", lambda a, r, rule: a / r**0.5),
    wrong("4.1", "no alpha", "leaves out alpha", lambda a, r, rule: scale(1, r, rule)),
    wrong(
        "4.1",
        "root of both",
        "the root belongs to the rank alone",
        lambda a, r, rule: scale(a, r, "lora") if rule == "lora" else (a / r) ** 0.5,
    ),
    wrong("4.1", "upside down", "upside down", lambda a, r, rule: 1 / scale(a, r, rule)),
    wrong("4.1", "whole numbers", "use /, not //", lambda a, r, rule: a // r if rule == "lora" else a // r**0.5),
    wrong("4.1", "alpha alone", "leaves the rank of 'rslora' out", lambda a, r, rule: a / r if rule == "lora" else a),
    wrong("4.1", "twice the rank", "at rank 4, alpha 6 gives", lambda a, r, rule: 2 * scale(a, r, rule)),
    wrong("4.1", "text", "should be one number", lambda a, r, rule: f"{scale(a, r, rule)}"),
    wrong("4.1", "no branch", "returned nothing", lambda a, r, rule: scale(a, r, rule) if rule == "lora" else None),
]


def rate(lr, scale, new_scale, optimizer):
    return lr * (scale / new_scale) ** (2 if optimizer == "sgd" else 1)


def by_product(lr, scale, new_scale, optimizer):
    size = {"sgd": lambda s: s * s, "adam": lambda s: s}[optimizer]
    return size(scale) * lr / size(new_scale)


def by_logarithms(lr, scale, new_scale, optimizer):
    step = math.log(scale) - math.log(new_scale)
    return math.exp(math.log(lr) + (2 * step if optimizer == "sgd" else step))


RATE = [
    right("4.4", "a power", rate),
    right("4.4", "the product stays", by_product),
    right("4.4", "logarithms", by_logarithms),
    wrong("4.4", "wrong way", "goes the wrong way", lambda lr, s, new, o: rate(lr, new, s, o)),
    wrong("4.4", "once", "counts the scale once under SGD", lambda lr, s, new, o: lr * s / new),
    wrong("4.4", "twice", "counts the scale twice under Adam", lambda lr, s, new, o: lr * (s / new) ** 2),
    wrong(
        "4.4",
        "swapped",
        "mixes the optimizers up",
        lambda lr, s, new, o: rate(lr, s, new, "adam" if o == "sgd" else "sgd"),
    ),
    wrong(
        "4.4",
        "root",
        "takes a square root under SGD",
        lambda lr, s, new, o: lr * (s / new) ** (0.5 if o == "sgd" else 1),
    ),
    wrong("4.4", "unchanged", "leaves the rate as it was", lambda lr, s, new, o: lr),
    wrong("4.4", "factor alone", "leaves out the old rate", lambda lr, s, new, o: rate(1, s, new, o)),
    wrong("4.4", "doubled", "with the same scale before and after", lambda lr, s, new, o: 2 * rate(lr, s, new, o)),
]
