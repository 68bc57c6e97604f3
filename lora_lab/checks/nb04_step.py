"""Checks 4.2 and 4.3: the first step from B = 0, and how what it gains depends on the rank.

∂L/∂B = s G Aᵀ with G = ∂L/∂W (out, in).   SGD: ΔB = -η s G Aᵀ.   Adam: ΔB = -η sign(G Aᵀ).   ΔW = s ΔB A.
Gain to first order, -⟨G, ΔW⟩: η s² ‖G Aᵀ‖² under SGD, η s Σ|G Aᵀ| under Adam; both sums have r columns.
"""

import torch
from torch import Tensor

from .compare import Mistake, judge, number, tensor
from .describe import shape
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb04_scale import OPTIMIZERS, right_scale


def right_update(G: Tensor, A: Tensor, scale: float, lr: float, optimizer: str) -> Tensor:
    """ΔW after one step."""
    grad_B = scale * G @ A.T
    step = grad_B if optimizer == "sgd" else grad_B.sign()
    return -lr * scale * step @ A


def _without_optimizer(one: str):
    return lambda G, A, scale, lr, optimizer: right_update(G, A, scale, lr, one)


def _power(exponents: dict[str, int]):
    """The right update with another power of the scale."""
    return lambda G, A, s, lr, optimizer: right_update(G, A, 1.0, lr, optimizer) * s ** exponents[optimizer]


UPDATE_MISTAKES = (
    Mistake("goes uphill: an optimizer steps against the gradient", lambda *args: -right_update(*args)),
    Mistake("is transposed: ΔW is (out, in), as G is", lambda *args: right_update(*args).T),
    *(
        Mistake(
            "stops at the step of B: that is ΔB; multiply it by the scale and A",
            lambda G, A, s, lr, optimizer, one=one: (
                -lr * (s * G @ A.T if "sgd" in (optimizer, one) else (G @ A.T).sign())
            ),
        )
        for one in ("", "sgd")
    ),
    Mistake(
        "counts the scale once under SGD: it multiplies the gradient of B, and then BA", _power({"sgd": 1, "adam": 1})
    ),
    Mistake(
        "counts the scale twice under Adam: the sign forgets how large the gradient of B is",
        _power({"sgd": 2, "adam": 2}),
    ),
    Mistake("leaves out the scale in front of BA", _power({"sgd": 1, "adam": 0})),
    Mistake("leaves out the scale", _power({"sgd": 0, "adam": 0})),
    Mistake("leaves out the learning rate", lambda G, A, s, lr, optimizer: right_update(G, A, s, 1.0, optimizer)),
    Mistake(
        "takes the SGD step in both cases: under Adam every entry of B moves by lr, whatever its gradient",
        _without_optimizer("sgd"),
    ),
    Mistake("takes Adam's step in both cases: under SGD the step is lr times the gradient", _without_optimizer("adam")),
    Mistake(
        "is the step of a full fine-tune: here B moves, and ΔW is what s · B A makes of it",
        lambda G, A, s, lr, optimizer: -lr * (G if optimizer == "sgd" else G.sign()),
    ),
    Mistake(
        "takes the sign of ΔW: Adam sees the gradient of B, not that of W",
        lambda G, A, s, lr, optimizer: (
            right_update(G, A, s, lr, "sgd") if optimizer == "sgd" else -lr * s * (G @ A.T @ A).sign()
        ),
    ),
    Mistake(
        "takes the sign of G before A: the gradient of B is s · G Aᵀ, and the sign comes last",
        lambda G, A, s, lr, optimizer: (
            right_update(G, A, s, lr, "sgd") if optimizer == "sgd" else -lr * s * G.sign() @ A.T @ A
        ),
    ),
)


def _step_cases(cases: Cases) -> list[tuple]:
    """G, A, scale, lr, optimizer. The first two have one size for everything."""
    inputs = []
    side = cases.integer(4, 6)
    sizes = [(side, side, side), *((*cases.different(5, 12, 2), cases.integer(2, 4)) for _ in range(3))]
    sizes.append((*cases.different(4, 9, 2), 1))
    for number_, (out, wide, rank) in enumerate(sizes):
        kept = torch.float64 if number_ == 2 else torch.float32
        for optimizer in OPTIMIZERS:
            G, A = cases.normal(out, wide, dtype=kept), cases.normal(rank, wide, dtype=kept)
            inputs.append((G, A, cases.pick((0.25, 0.4, 1.7, 2.5, 3.5)), cases.pick((0.03, 0.2, 0.5)), optimizer))
    return inputs


def _read_update(got: object, want: Tensor, cases_A: dict[tuple, int]) -> Tensor:
    if isinstance(got, Tensor) and got.ndim == 2 and tuple(got.shape) in cases_A:
        raise Wrong(
            f"your first_update returned {shape(got)}, the shape of B: that is ΔB; multiply it by the scale and A"
        )
    return tensor(got, tuple(want.shape), want.dtype, "the ΔW of your first_update")


@exercise(
    "4.2",
    takes=("G", "A", "scale", "lr", "optimizer"),
    points=2,
    minutes=10,
    hints=(
        "Only B moves: with B = 0 the gradient of A is zero. Find the gradient of B, then the step, then ΔW.",
        "The gradient of B is scale · G Aᵀ, shape (out, rank). SGD steps by -lr times that, Adam by -lr times its "
        "sign. A has not moved, so ΔW = scale · ΔB A.",
        "step = the gradient of B (or its .sign() for 'adam'); return -lr · scale · step @ A.",
    ),
)
def first_update(answer: Guard, cases: Cases) -> str:
    """ΔW after the first step of SGD and of Adam."""
    inputs = _step_cases(cases)
    shapes_of_B = {(len(G), len(A)): 1 for G, A, *_ in inputs if len(A) != G.shape[1]}
    count = judge(
        answer,
        inputs,
        right_update,
        UPDATE_MISTAKES,
        look="write down the shapes: the gradient of B is (out, rank), ΔW is (out, in)",
        read=lambda got, want: _read_update(got, want, shapes_of_B if tuple(want.shape) not in shapes_of_B else {}),
    )
    return f"the first step of both optimizers on {count} random layers"


ALPHA_RULES = ("lora", "rslora", "alpha = 2r")


def _scale_by(rank: int, rule: str) -> float:
    """The scale at `rank`, up to a constant: alpha fixed, or 2 r with the rule α / r."""
    return 2.0 if rule == "alpha = 2r" else right_scale(1.0, rank, rule)


def right_growth(rank: int, new_rank: int, rule: str, optimizer: str) -> float:
    """How many times the gain of the first step changes: s² r under SGD, s r under Adam."""
    power = 2 if optimizer == "sgd" else 1
    scales = _scale_by(new_rank, rule) / _scale_by(rank, rule)
    return scales**power * new_rank / rank


def _exponent(of: dict[str, tuple[float, float]]):
    """(new s / s)^a · (new r / r)^b with (a, b) by optimizer."""

    def does(rank: int, new_rank: int, rule: str, optimizer: str) -> float:
        a, b = of[optimizer]
        return (_scale_by(new_rank, rule) / _scale_by(rank, rule)) ** a * (new_rank / rank) ** b

    return does


GROWTH_MISTAKES = (
    Mistake(
        "is upside down: it is asked what the new rank gains, divided by what the old one gains",
        lambda rank, new_rank, rule, optimizer: 1 / right_growth(rank, new_rank, rule, optimizer),
    ),
    Mistake(
        "leaves out the number of terms: G Aᵀ has one column for each of the r directions, and their gains add up",
        _exponent({"sgd": (2, 0), "adam": (1, 0)}),
    ),
    Mistake("counts the scale once under SGD: it is squared there", _exponent({"sgd": (1, 1), "adam": (1, 1)})),
    Mistake("squares the scale under Adam: it counts once there", _exponent({"sgd": (2, 1), "adam": (2, 1)})),
    Mistake(
        "is how the norm of ΔW grows: the r terms are nearly orthogonal, so their norm adds up like √r, but their "
        "gains add up like r",
        _exponent({"sgd": (2, 0.5), "adam": (1, 0.5)}),
    ),
    Mistake(
        "mixes the optimizers up: the scale counts twice under SGD and once under Adam",
        _exponent({"sgd": (1, 1), "adam": (2, 1)}),
    ),
    Mistake(
        "treats 'alpha = 2r' as if alpha were fixed: there the scale is 2 at every rank",
        lambda rank, new_rank, rule, optimizer: right_growth(
            rank, new_rank, "lora" if rule == "alpha = 2r" else rule, optimizer
        ),
    ),
    Mistake(
        "lets the scale of 'alpha = 2r' grow with the rank: alpha grows, but so does the rank that divides it",
        lambda rank, new_rank, rule, optimizer: (
            (new_rank / rank) ** (3 if optimizer == "sgd" else 2)
            if rule == "alpha = 2r"
            else right_growth(rank, new_rank, rule, optimizer)
        ),
    ),
    Mistake(
        "mixes 'lora' and 'rslora' up",
        lambda rank, new_rank, rule, optimizer: right_growth(
            rank, new_rank, {"lora": "rslora", "rslora": "lora"}.get(rule, rule), optimizer
        ),
    ),
)


@exercise(
    "4.3",
    takes=("rank", "new_rank", "rule", "optimizer"),
    points=2,
    minutes=10,
    hints=(
        "Start from the two gains of the table above. Two things in them depend on the rank: the scale, and the "
        "number of columns of G Aᵀ.",
        "The gain is s² r times a constant under SGD, and s r times a constant under Adam. Put in s for each rule: "
        "1/r, 1/√r, or 2.",
        "scale(r) = 1/r, r ** -0.5 or 2; gain(r) = scale(r) ** 2 * r for 'sgd', scale(r) * r for 'adam'; return "
        "gain(new_rank) / gain(rank).",
    ),
)
def growth(answer: Guard, cases: Cases) -> str:
    """The factor by which the gain of the first step changes with the rank."""
    inputs = []
    for rule in ALPHA_RULES:
        for optimizer in OPTIMIZERS:
            rank, new_rank = cases.different(1, 64, 2)
            inputs += [(4, 64, rule, optimizer), (rank, new_rank, rule, optimizer)]
    count = judge(
        answer,
        inputs,
        right_growth,
        GROWTH_MISTAKES,
        look="with the same rank twice the factor is 1",
        read=lambda got, want: number(got, "the result of your growth"),
    )
    return f"the growth of the first step's gain at {count} settings"
