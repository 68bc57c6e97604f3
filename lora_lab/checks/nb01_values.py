"""Checks 1.3, 1.4 and 1.5: what the singular values alone say about a matrix."""

import math
from typing import Any

import torch
from torch import Tensor

from lora_lab.spectrum import effective_rank as right_effective_rank
from lora_lab.spectrum import energy_rank as right_energy_rank
from lora_lab.spectrum import truncation_error as right_error

from .compare import Mistake, judge, number
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb01_matrix import falling

ERROR_MISTAKES = (
    Mistake(
        "forgot the square root: {got:.4g} is the squared error",
        lambda s, rank: s[rank:].square().sum(),
    ),
    Mistake("adds the singular values up without squaring them: Frobenius is √(Σ sᵢ²)", lambda s, rank: s[rank:].sum()),
    Mistake(
        "gave the first singular value that is cut: that is the error in the spectral norm, not the Frobenius norm",
        lambda s, rank: s[rank] if rank < len(s) else 0.0,
    ),
    Mistake(
        "measures the {rank} singular values that are kept: the error is what is left out",
        lambda s, rank: s[:rank].norm(),
    ),
    Mistake(
        "starts one singular value too late: the first one that is cut has index {rank}, counting from 0",
        lambda s, rank: s[rank + 1 :].norm(),
    ),
    Mistake(
        "starts one singular value too early: the last one that is kept has index {rank} - 1",
        lambda s, rank: s[rank - 1 :].norm(),
    ),
    Mistake("measures the whole matrix: leave out the {rank} kept singular values", lambda s, rank: s.norm()),
    Mistake(
        "divides by the size of W: the error itself is asked for, not the relative error",
        lambda s, rank: s[rank:].norm() / s.norm(),
    ),
    Mistake(
        "gave the share of the energy that is lost: the error itself is asked for",
        lambda s, rank: s[rank:].square().sum() / s.square().sum(),
    ),
    Mistake(
        "takes the mean of the squares: the Frobenius norm is the root of their sum",
        lambda s, rank: s[rank:].square().mean().sqrt() if rank < len(s) else 0.0,
    ),
    Mistake(
        "subtracts norms: ‖W‖ - ‖W_r‖ is not ‖W - W_r‖; subtract the squares, then take the root",
        lambda s, rank: s.norm() - s[:rank].norm(),
    ),
)


@exercise(
    "1.3",
    takes=("singular_values", "rank"),
    points=1,
    minutes=5,
    hints=(
        "The best rank-r approximation keeps the first r pieces of W. What remains of W when you take those away?",
        "A Frobenius norm is the root of the sum of the squared singular values; what is left has all but the first r.",
        "Take the singular values from index `rank` on; square, add up, take the root.",
    ),
)
def truncation_error(answer: Guard, cases: Cases) -> str:
    """Frobenius error of the best rank-r approximation, from the singular values."""
    lengths = [cases.integer(6, 12) for _ in range(4)]
    ranks = [cases.integer(2, length - 3) for length in lengths]
    inputs = [(falling(cases, n).float(), rank) for n, rank in zip(lengths, ranks, strict=True)]
    inputs[1] = (inputs[1][0].double(), inputs[1][1])
    inputs += [(falling(cases, 5).float(), rank) for rank in (1, 4, 5)]
    count = judge(
        answer,
        inputs,
        right_error,
        ERROR_MISTAKES,
        look="compute it for the singular values 3, 2, 1 by hand: at rank 1 it is √5",
        read=lambda got, _: number(got, "the result of your truncation_error"),
    )
    return f"the error of the cut on {count} spectra, from singular values alone"


def _shares(s: Tensor) -> Tensor:
    return s / s.sum()


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum()


LOST_SIGN = "lost a sign: the entropy is minus the sum, so that it is positive"
EFFECTIVE_MISTAKES = (
    Mistake("gave the entropy itself: the effective rank is its exponential", lambda s: _entropy(_shares(s))),
    Mistake(
        "mixes two logarithms: an entropy in bits (log2) belongs with 2 to that power, exp with the natural logarithm",
        lambda s: (_entropy(_shares(s)) / math.log(2)).exp(),
    ),
    Mistake(
        "mixes two logarithms: an entropy in decimal digits (log10) does not go with exp, use the natural logarithm",
        lambda s: (_entropy(_shares(s)) / math.log(10)).exp(),
    ),
    Mistake(
        "mixes two logarithms: 2 to the power of an entropy needs log2, exp needs the natural logarithm",
        lambda s: 2 ** _entropy(_shares(s)),
    ),
    Mistake(
        "gave the entropy in bits: take the exponential of the entropy in natural logarithms",
        lambda s: _entropy(_shares(s)) / math.log(2),
    ),
    Mistake(LOST_SIGN, lambda s: (-_entropy(_shares(s))).exp()),
    Mistake(LOST_SIGN, lambda s: -_entropy(_shares(s))),
    Mistake(
        "normalises squared singular values: p is s / Σ s, not s² / Σ s²",
        lambda s: _entropy(_shares(s.square())).exp(),
    ),
    Mistake("does not normalise: divide the singular values by their sum first", lambda s: _entropy(s).exp()),
    Mistake(
        "divides by the largest singular value: divide by the sum, so that the shares add up to 1",
        lambda s: _entropy(s / s.max()).exp(),
    ),
    Mistake(
        "divides by the norm of the singular values: divide by their sum, so that the shares add up to 1",
        lambda s: _entropy(s / s.norm()).exp(),
    ),
    Mistake("counts the singular values that are not zero: that is the rank", lambda s: int((s > 0).sum())),
    Mistake("counts the singular values that are not zero: that is the rank", lambda s: float((s > 0).sum())),
    Mistake("gave the stable rank, Σ s² / s₁²", lambda s: s.square().sum() / s.max().square()),
    Mistake("gave the participation ratio, (Σ s)² / Σ s²", lambda s: s.sum().square() / s.square().sum()),
    Mistake("takes a softmax: the shares are s / Σ s, without exponentials", lambda s: _entropy(s.softmax(0)).exp()),
    Mistake(
        "takes the mean where the entropy is a sum",
        lambda s: torch.special.entr(_shares(s)).mean().exp(),
    ),
)


def _read_effective(got: Any, want: float) -> float:
    try:
        return number(got, "the result of your effective_rank")
    except Wrong:
        if isinstance(got, float | Tensor) and math.isnan(got):
            raise Wrong(
                f"your effective_rank is nan when a singular value is zero, where {want:.4g} is right: "
                "0 · log 0 is nan to the computer, and 0 to the entropy; leave the zeros out"
            ) from None
        raise


@exercise(
    "1.4",
    takes=("singular_values",),
    points=2,
    minutes=8,
    hints=(
        "Treat the singular values as shares of a whole. The more evenly it is spread, the higher its entropy.",
        "p = s / Σ s, then exp(-Σ p ln p). A share of zero adds nothing to the sum, but its logarithm is infinite.",
        "Keep s > 0 and divide by the sum; add up share · natural log of the share; change the sign; take exp.",
    ),
)
def effective_rank(answer: Guard, cases: Cases) -> str:
    """exp(entropy of s / Σ s), zeros allowed."""
    inputs = [falling(cases, cases.integer(5, 10)).float() for _ in range(3)]
    inputs.append(falling(cases, cases.integer(5, 10)))
    inputs.append(torch.cat((falling(cases, cases.integer(3, 6)).float(), torch.zeros(cases.integer(1, 4)))))
    inputs.append(torch.full((cases.integer(3, 8),), cases.real(0.5, 3.0)))
    inputs.append(torch.tensor([cases.real(1.5, 4.0), 0.0, 0.0]))
    count = judge(
        answer,
        [(s,) for s in inputs],
        right_effective_rank,
        EFFECTIVE_MISTAKES,
        look="four equal singular values must give 4, and one beside three zeros must give 1",
        read=_read_effective,
    )
    return f"the effective rank of {count} spectra, zeros included"


def _first(s: Tensor, share: float) -> int:
    """1 + the index of the first cumulative share of s that reaches `share`."""
    reached = s.cumsum(0) / s.sum() >= share
    return int(reached.int().argmax()) + 1


ENERGY_MISTAKES = (
    Mistake("does not square the singular values: energy is s²", lambda s, share: _first(s, share)),
    Mistake(
        "asks for more than the share: at least means >=, so reaching it exactly is enough",
        lambda s, share: min(len(s), int((s.square().cumsum(0) / s.square().sum() <= share).sum()) + 1),
    ),
    Mistake(
        "asks for more than the share: at least means >=, so reaching it exactly is enough",
        lambda s, share: int((s.square().cumsum(0) / s.square().sum() <= share).sum()) + 1,
    ),
    Mistake(
        "is one too small: index {got} is the place of that singular value, counting from 0; how many is one more",
        lambda s, share: right_energy_rank(s, share) - 1,
    ),
    Mistake("is one too large", lambda s, share: right_energy_rank(s, share) + 1),
    Mistake(
        "compares norms: the share is of squared singular values, so take no root",
        lambda s, share: _first(s.square(), share**2),
    ),
    Mistake("returned all of them: stop at the first rank that holds the share", lambda s, share: len(s)),
    Mistake(
        "adds up from the smallest singular value: the top ones come first",
        lambda s, share: _first(s.square().flip(0), share),
    ),
    Mistake("takes a share of their number, not of their energy", lambda s, share: math.ceil(share * len(s))),
    Mistake(
        "counts single values above a threshold: the top values are added up",
        lambda s, share: int((s >= share * s[0]).sum()),
    ),
    Mistake(
        "counts single squared values above a threshold: the top values are added up",
        lambda s, share: int((s.square() >= share * s[0].square()).sum()),
    ),
    Mistake(
        "compares with a share of 1: divide by the sum of the squares",
        lambda s, share: int((s.square().cumsum(0) >= share).int().argmax()) + 1,
    ),
)

# First values and norms are powers of two, so every cumulative share is exact, whichever of them one divides by first:
# "at least" can be told from "more than".
EXACT = ((2, 2, 2, 2), (2, 2, 2, 1, 1, 1, 1), (4, 4, 4, 2, 2, 2, 2), (4, 4, 3, 3, 3, 2, 1), (8, 8, 8, 6, 4, 2, 2, 2))


def _between(cases: Cases) -> tuple[Tensor, float]:
    """A spectrum, and a share well inside the step at which some rank first holds it."""
    s = falling(cases, cases.integer(5, 10))
    held = torch.cat((torch.zeros(1, dtype=s.dtype), s.square().cumsum(0) / s.square().sum()))
    rank = cases.integer(1, 4)
    low, high = float(held[rank - 1]), float(held[rank])
    return s.float(), low + cases.real(0.2, 0.8) * (high - low)


def _read_rank(got: Any, _: int) -> int:
    value = number(got, "the result of your energy_rank")
    if not isinstance(value, int):
        raise Wrong(f"your energy_rank returned the float {value!r}: a rank is an int, as in U[:, :rank]")
    return value


@exercise(
    "1.5",
    takes=("singular_values", "share"),
    points=1,
    minutes=6,
    hints=(
        "Add up the energy, the largest singular value first. When may you stop?",
        "Energy is s². Its torch.cumsum, divided by its sum, is the share that the first 1, 2, 3, ... directions hold.",
        "Count the cumulative shares that are still below `share`: the answer is one more than that, as an int.",
    ),
)
def energy_rank(answer: Guard, cases: Cases) -> str:
    """The smallest rank whose squared singular values hold at least `share`."""
    inputs = [_between(cases) for _ in range(9)]
    for _ in range(2):
        whole = torch.tensor(cases.pick(EXACT), dtype=torch.float32)
        held = whole.square().cumsum(0) / whole.square().sum()
        inputs.append((whole * cases.pick((0.5, 1.0, 2.0)), float(held[cases.integer(0, len(whole) - 2)])))
    inputs.append((torch.tensor((*cases.pick(EXACT), 0, 0), dtype=torch.float32), 1.0))
    count = judge(
        answer,
        inputs,
        right_energy_rank,
        ENERGY_MISTAKES,
        look="the singular values 3, 2, 1, 1, 1 hold 9, 13, 14, 15, 16 sixteenths of the energy at ranks 1 to 5",
        read=_read_rank,
    )
    return f"the rank that holds a given share of the energy on {count} spectra"
