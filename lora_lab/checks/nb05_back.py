"""Check 5.7: a trained residual adapter as a plain one, beside the original W.

W - s·B0 A0 + s·BA = W + s·[B, -B0][A; A0],   s = alpha/r = (2 alpha)/(2 r)
"""

from typing import Any

from torch import Tensor

from .compare import Mistake, Trial, number
from .describe import kind, shape
from .guard import Guard, Wrong
from .harness import Cases, exercise

TAKES = ("A", "B", "A0", "B0", "alpha")


def right_update(A: Tensor, B: Tensor, A0: Tensor, B0: Tensor, alpha: float) -> Tensor:
    """What the plain adapter must add to W: s·(BA - B0 A0)."""
    return alpha / len(A) * (B @ A - B0 @ A0)


def _times(factor: float, of: float = 1.0, less: float = 1.0):
    return lambda A, B, A0, B0, alpha: factor * alpha / len(A) * (of * B @ A - less * B0 @ A0)


MISTAKES = (
    Mistake(
        "is half as large as it should be: the rank has doubled, and with alpha = {alpha:g} the scale is halved. "
        "Double alpha too",
        _times(0.5),
    ),
    Mistake("is twice as large as it should be: alpha/r is kept by doubling alpha once", _times(2.0)),
    Mistake("adds B0 A0: the original W still holds it, so take it away, [B, -B0]", _times(1.0, less=-1.0)),
    Mistake("adds B0 A0, and halves the scale: take it away, [B, -B0], and double alpha", _times(0.5, less=-1.0)),
    Mistake("holds the trained factors alone: the start B0 A0 has to be taken away", _times(1.0, less=0.0)),
    Mistake("holds the trained factors alone: the start B0 A0 has to be taken away", _times(0.5, less=0.0)),
    Mistake("has the sign of both parts the wrong way round", _times(-1.0)),
    Mistake(
        "subtracts the factors: (B - B0)(A - A0) is not BA - B0 A0, which has rank 2r",
        lambda A, B, A0, B0, alpha: alpha / len(A) * (B - B0) @ (A - A0),
    ),
    Mistake(
        "subtracts the factors: (B - B0)(A - A0) is not BA - B0 A0, which has rank 2r",
        lambda A, B, A0, B0, alpha: 2 * alpha / len(A) * (B - B0) @ (A - A0),
    ),
    Mistake(
        "pairs B with A0 and B0 with A: stack both factors in the same order",
        lambda A, B, A0, B0, alpha: alpha / len(A) * (B @ A0 - B0 @ A),
    ),
    Mistake(
        "pairs B with A0 and B0 with A: stack both factors in the same order",
        lambda A, B, A0, B0, alpha: alpha / len(A) * (B0 @ A - B @ A0),
    ),
)


def _read(got: Any, args: tuple) -> Tensor:
    A, B, _, _, _ = args
    if not isinstance(got, tuple | list) or len(got) != 3:
        raise Wrong(f"your convert_back should return (A, B, alpha), not {kind(got)}")
    new_A, new_B, alpha = got
    if not all(isinstance(part, Tensor) and part.ndim == 2 for part in (new_A, new_B)):
        raise Wrong(f"your convert_back should return two matrices and a number, not {kind(new_A)} and {kind(new_B)}")
    new_A, new_B, alpha = new_A.detach(), new_B.detach(), number(alpha, "alpha of your convert_back")
    out, wide = len(B), A.shape[1]
    rank = len(new_A)
    if tuple(new_A.shape) == (out, 2 * len(A)) and tuple(new_B.shape) == (2 * len(A), wide):
        raise Wrong("your convert_back returns B first: return (A, B, alpha)")
    if new_A.shape[1] != wide or tuple(new_B.shape) != (out, rank):
        hint = ""
        if len(new_A) == len(A) and new_A.shape[1] == 2 * wide:
            hint = ": stack A above A0 (dim 0), they share the inputs"
        elif len(new_B) == 2 * out:
            hint = ": put B beside B0 (dim 1), they share the outputs"
        raise Wrong(
            f"your convert_back returns A {shape(new_A)} and B {shape(new_B)}, but (rank, {wide}) and ({out}, rank) of "
            f"one rank are expected{hint}"
        )
    return alpha / rank * new_B.double() @ new_A.double()


@exercise(
    "5.7",
    takes=TAKES,
    points=2,
    minutes=8,
    hints=(
        "The trained model holds W - s·B0 A0 + s·BA. What must be added to W itself? How large is its rank at most?",
        "A difference of two products is one product: [B, -B0] times A above A0. And s = alpha / rank must stay.",
        "torch.cat([A, A0]), torch.cat([B, -B0], dim=1), 2 * alpha.",
    ),
)
def convert_back(answer: Guard, cases: Cases) -> str:
    """[A; A0], [B, -B0], 2 alpha."""
    trial = Trial("the update of your convert_back", TAKES, MISTAKES, "alpha'/r' · B'A' must be s·(BA - B0 A0)")
    side = cases.integer(5, 7)
    sizes = [(side, side, side)] + [(*cases.different(6, 16, 2), cases.integer(1, 4)) for _ in range(4)]
    for out, wide, rank in sizes:
        A0, B0 = cases.normal(rank, wide), cases.normal(out, rank)
        A, B = A0 + 0.7 * cases.normal(rank, wide), B0 + 0.7 * cases.normal(out, rank)
        args = (A, B, A0, B0, rank * cases.pick((0.6, 1.5, 2.5, 3.2)))
        try:
            update = _read(answer(*args), args)
        except Wrong:
            if trial.failures:
                break
            raise
        trial.add(args, update, right_update(*(a.double() if isinstance(a, Tensor) else a for a in args)))
    trial.verdict()
    return f"the same function beside the original W on {len(sizes)} random layers, alpha other than the rank"
