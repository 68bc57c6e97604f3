"""Check 7.6: two adapters as one, exactly.

ΔW = s₁B₁A₁ + s₂B₂A₂ = BA with A (r₁ + r₂, in) and B (out, r₁ + r₂).
"""

from typing import Any

from torch import Tensor

from .compare import Mistake, Trial, same
from .describe import kind, shape
from .guard import Guard, Wrong
from .harness import Cases, exercise


def _sum(A1: Tensor, B1: Tensor, s1: float, A2: Tensor, B2: Tensor, s2: float) -> Tensor:
    return s1 * (B1 @ A1) + s2 * (B2 @ A2)


MISTAKES = (
    Mistake("leaves the scales out", lambda A1, B1, s1, A2, B2, s2: _sum(A1, B1, 1.0, A2, B2, 1.0)),
    Mistake(
        "applies each scale twice, in A and in B", lambda A1, B1, s1, A2, B2, s2: _sum(A1, B1, s1**2, A2, B2, s2**2)
    ),
    Mistake("swaps the two scales", lambda A1, B1, s1, A2, B2, s2: _sum(A1, B1, s2, A2, B2, s1)),
    Mistake("holds the first adapter alone", lambda A1, B1, s1, A2, B2, s2: s1 * (B1 @ A1)),
    Mistake("holds the second adapter alone", lambda A1, B1, s1, A2, B2, s2: s2 * (B2 @ A2)),
    Mistake(
        "pairs B of one adapter with A of the other", lambda A1, B1, s1, A2, B2, s2: s1 * (B2 @ A1) + s2 * (B1 @ A2)
    ),
    Mistake(
        "pairs B of one adapter with A of the other", lambda A1, B1, s1, A2, B2, s2: s2 * (B2 @ A1) + s1 * (B1 @ A2)
    ),
    Mistake("is the mean of the two: they add up", lambda *args: _sum(*args) / 2),
    Mistake(
        "loses the sign of a negative scale", lambda A1, B1, s1, A2, B2, s2: _sum(A1, B1, abs(s1), A2, B2, abs(s2))
    ),
)
CROSS = (
    "adds the factors instead of stacking them: (B₁ + B₂)(A₁ + A₂) holds B₁A₂ and B₂A₁ too, which nobody trained, and "
    "it needs equal ranks"
)


def _summed(A1: Tensor, B1: Tensor, s1: float, A2: Tensor, B2: Tensor, s2: float) -> list[Tensor]:
    """What adding the factors gives, with the scales in the usual places."""
    root = [abs(s) ** 0.5 for s in (s1, s2)]
    return [
        (B1 + B2) @ (s1 * A1 + s2 * A2),
        (s1 * B1 + s2 * B2) @ (A1 + A2),
        (s1 * B1 + s2 * B2) @ (s1 * A1 + s2 * A2),
        (root[0] * B1 + root[1] * B2) @ (root[0] * A1 + root[1] * A2),
        (B1 + B2) @ (A1 + A2),
    ]


def _read(got: Any, args: tuple) -> Tensor:
    A1, B1, _, A2, _, _ = args
    if isinstance(got, Tensor) and got.shape == (len(B1), A1.shape[1]):
        raise Wrong("your merge_two returns the sum as one matrix: return the factors (A, B), which fit a file")
    if not isinstance(got, tuple | list) or len(got) != 2 or not all(isinstance(part, Tensor) for part in got):
        raise Wrong(f"your merge_two should return the tensors (A, B), not {kind(got)}")
    A, B = (part.detach() for part in got)
    if not (A.isfinite().all() and B.isfinite().all()):
        raise Wrong("your merge_two returns NaN or infinity: is there a square root of a negative scale?")
    ranks = len(A1) + len(A2)
    if A.shape == (len(B1), ranks) and B.shape == (ranks, A1.shape[1]) != A.shape:
        raise Wrong("your merge_two returns (B, A): return (A, B), in this order")
    one_rank = B.ndim == A.ndim == 2 and len(A) == B.shape[1] == len(A1) == len(A2)
    if one_rank and any(same(B @ A, product) for product in _summed(*args)):
        raise Wrong(f"your merge_two {CROSS}")
    sizes = (ranks, A1.shape[1]), (len(B1), ranks)
    if (tuple(A.shape), tuple(B.shape)) != sizes:
        given = f"A {shape(A)} and B {shape(B)}"
        raise Wrong(f"your merge_two returns {given}, but A {shape(sizes[0])} and B {shape(sizes[1])} are expected")
    return B @ A


@exercise(
    "7.6",
    takes=("A1", "B1", "s1", "A2", "B2", "s2"),
    points=2,
    minutes=10,
    hints=(
        "A sum of two products is one product of wider factors: [B₁ B₂] times A₁ above A₂.",
        "torch.cat along the rank: that is dim 0 of A and dim 1 of B. Each scale enters once, in one of the factors.",
        "A = cat of s1 · A1 and s2 · A2 along dim 0; B = cat of B1 and B2 along dim 1.",
    ),
)
def merge_two(answer: Guard, cases: Cases) -> str:
    """[B₁ B₂] [s₁A₁; s₂A₂]."""
    trial = Trial("your merge_two", answer.labels, MISTAKES, "compare B @ A with s₁·B₁A₁ + s₂·B₂A₂")
    count = 0
    for number in range(6):
        out, wide = cases.different(8, 20, 2)
        rank = cases.integer(2, 4)
        other = rank if number == 0 else rank + cases.integer(1, 3)
        s1, s2 = cases.pick((0.4, 1.7, 2.5)), cases.pick((0.3, 0.6, 3.0))
        s2 = -s2 if number == 3 else s2
        args = (
            cases.normal(rank, wide),
            cases.normal(out, rank),
            s1,
            cases.normal(other, wide),
            cases.normal(out, other),
            s2,
        )
        try:
            product = _read(answer(*args), args)
        except Wrong:
            if trial.failures:
                break
            raise
        trial.add(args, product, _sum(*args))
        count += 1
    trial.verdict()
    return f"the exact sum of two adapters on {count} random layers, of different ranks, one of them negative"
