"""Checks 4.1 and 4.4: the scale that a rule makes of alpha and rank, and the learning rate that makes up for it.

s = α / r (LoRA) or α / √r (rsLoRA).   First step: ΔW ~ s² η under SGD, s η under Adam.
"""

import math

from .compare import Mistake, judge, number
from .guard import Guard
from .harness import Cases, exercise

RULES = ("lora", "rslora")
OPTIMIZERS = ("sgd", "adam")


def right_scale(alpha: float, rank: int, rule: str) -> float:
    """The factor in front of BA."""
    return alpha / (rank if rule == "lora" else rank**0.5)


SCALE_MISTAKES = (
    Mistake(
        "mixes the rules up: 'lora' divides by the rank, 'rslora' by its square root",
        lambda alpha, rank, rule: right_scale(alpha, rank, "rslora" if rule == "lora" else "lora"),
    ),
    Mistake("ignores the rule: 'rslora' divides by the square root of the rank", lambda a, r, rule: a / r),
    Mistake("ignores the rule: 'lora' divides by the rank itself", lambda a, r, rule: a / math.sqrt(r)),
    Mistake("leaves out alpha: the numerator is {alpha:g}, not 1", lambda a, r, rule: right_scale(1.0, r, rule)),
    Mistake(
        "takes the root of alpha too: the root belongs to the rank alone",
        lambda a, r, rule: a / r if rule == "lora" else math.sqrt(a / r),
    ),
    Mistake("takes the root of alpha too: the root belongs to the rank alone", lambda a, r, rule: math.sqrt(a / r)),
    Mistake("is upside down: alpha is divided by the rank", lambda a, r, rule: 1 / right_scale(a, r, rule)),
    Mistake("rounds: use /, not //", lambda a, r, rule: math.floor(right_scale(a, r, rule))),
    Mistake("rounds: use /, not //", lambda a, r, rule: a // (r if rule == "lora" else r**0.5)),
    Mistake(
        "leaves the rank of 'rslora' out: there, alpha is divided by the square root of the rank",
        lambda a, r, rule: a / r if rule == "lora" else a,
    ),
)


@exercise(
    "4.1",
    takes=("alpha", "rank", "rule"),
    points=1,
    minutes=4,
    hints=(
        "Both rules divide alpha by something that grows with the rank. Only the something differs.",
        "For 'lora' it is the rank, for 'rslora' the square root of the rank: rank ** 0.5.",
        "Try it by hand: alpha 16 at rank 4 has the scale 4 under 'lora' and 8 under 'rslora'. What did you divide by?",
    ),
)
def effective_scale(answer: Guard, cases: Cases) -> str:
    """α / r or α / √r."""
    settings = [(2.5, 1), *zip((cases.real(1, 40) for _ in range(4)), cases.different(2, 130, 4), strict=True)]
    inputs = [(round(alpha, 2), rank, rule) for alpha, rank in settings for rule in RULES]
    count = judge(
        answer,
        cases.shuffled(inputs),
        right_scale,
        SCALE_MISTAKES,
        look="at rank 4, alpha 6 gives 1.5 with 'lora' and 3 with 'rslora'",
        read=lambda got, want: number(got, "the result of your effective_scale"),
    )
    return f"the scale of both rules at {count} settings"


def right_rate(lr: float, scale: float, new_scale: float, optimizer: str) -> float:
    """The rate at which the first ΔW stays what it was."""
    return lr * (scale / new_scale) ** (2 if optimizer == "sgd" else 1)


RATE_MISTAKES = (
    Mistake(
        "goes the wrong way: a larger scale makes a larger step, so the rate has to shrink",
        lambda lr, s, new, optimizer: right_rate(lr, new, s, optimizer),
    ),
    Mistake(
        "counts the scale once under SGD: there it multiplies the gradient of B and BA, so it counts twice",
        lambda lr, s, new, optimizer: lr * s / new,
    ),
    Mistake(
        "counts the scale twice under Adam: Adam divides the gradient by its own size, so only the factor in front of "
        "BA is left",
        lambda lr, s, new, optimizer: lr * (s / new) ** 2,
    ),
    Mistake(
        "mixes the optimizers up: the scale counts twice under SGD and once under Adam",
        lambda lr, s, new, optimizer: right_rate(lr, s, new, "adam" if optimizer == "sgd" else "sgd"),
    ),
    Mistake(
        "takes a square root under SGD: ΔW holds the square of the scale, and the rate only once",
        lambda lr, s, new, optimizer: lr * (s / new) ** (0.5 if optimizer == "sgd" else 1),
    ),
    Mistake("leaves the rate as it was", lambda lr, s, new, optimizer: lr),
    Mistake(
        "leaves out the old rate: it returns the factor alone",
        lambda lr, s, new, optimizer: right_rate(1.0, s, new, optimizer),
    ),
)


@exercise(
    "4.4",
    takes=("lr", "scale", "new_scale", "optimizer"),
    points=1,
    minutes=6,
    hints=(
        "Write down ΔW after one step for both optimizers, and look for the scale and the rate in it.",
        "SGD: ΔW holds s² · lr. Adam: s · lr. That product has to stay what it was.",
        "Write the product before and after, with an equals sign between them, and solve for the new rate. A larger "
        "new scale must give a smaller rate; ask by how much when the scale doubles.",
    ),
)
def matching_rate(answer: Guard, cases: Cases) -> str:
    """The rate that leaves the first ΔW unchanged."""
    inputs = []
    for optimizer in OPTIMIZERS:
        for scales in ((2.0, 0.25), (0.5, 2.0)):
            inputs.append((cases.pick((1e-3, 2e-3, 1e-2)), *scales, optimizer))
        for _ in range(2):
            inputs.append((cases.real(1e-2, 1e-1), cases.real(0.2, 1.5), cases.real(2, 9), optimizer))
    count = judge(
        answer,
        cases.shuffled(inputs),
        right_rate,
        RATE_MISTAKES,
        look="with the same scale before and after, the rate stays",
        read=lambda got, want: number(got, "the result of your matching_rate"),
    )
    return f"the rate that leaves the first step as it was, at {count} settings"
