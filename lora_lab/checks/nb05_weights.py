"""Checks 5.3 and 5.4: the starts that are cut out of W, and the residual that the base keeps.

pissa  W = U diag(S) Vᵀ   A = diag(√(S_r/s)) V_rᵀ   B = U_r diag(√(S_r/s))   base = W - s·BA
olora  W = Q R            A = R[:r]                 B = Q[:, :r]             base = W - s·BA

Signs and the order of the r directions are free: only what does not depend on them is compared.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .compare import Mistake, Trial, same, tensor
from .describe import in_words, kind
from .guard import Guard, Wrong
from .harness import Cases, exercise

TAKES = ("W", "rank", "scale")


def right_pissa(W: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and the residual."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    A, B = root[:, None] * Vh[:rank], U[:, :rank] * root
    return A, B, W - scale * B @ A


def right_olora(W: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and the residual."""
    Q, R = torch.linalg.qr(W)
    A, B = R[:rank], Q[:, :rank]
    return A, B, W - scale * B @ A


def _read(got: Any, args: tuple, name: str) -> tuple[Tensor, Tensor, Tensor]:
    W, rank, _ = args
    out, wide = W.shape
    if not isinstance(got, tuple | list) or len(got) != 3:
        raise Wrong(f"your {name} should return (A, B, residual), not {kind(got)}")
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else None for part in got]
    if shapes[:2] == [(out, rank), (rank, wide)] and (out, rank) != (rank, wide):
        raise Wrong(f"your {name} returns B first: return (A, B, residual), with A (rank, in) and B (out, rank)")
    sizes = (
        ("A, (rank, in),", (rank, wide)),
        ("B, (out, rank),", (out, rank)),
        ("the residual, (out, in),", (out, wide)),
    )
    return tuple(
        tensor(part, size, W.dtype, f"{label} of your {name}", wider=True)
        for part, (label, size) in zip(got, sizes, strict=True)
    )


def _gram(A: Tensor) -> Tensor:
    """A Aᵀ (rank, rank), in float64."""
    return A.double() @ A.double().T


def _judge(answer: Guard, cases: list[tuple], right: Callable, products: tuple, residuals: tuple) -> list[tuple]:
    """Compare s·BA and the residual of every case with the right ones. Returns (args, A, B) of each."""
    adapter = Trial(f"s·BA of your {answer.name}", TAKES, products, "compare scale * B @ A with what it should hold")
    base = Trial(f"the residual of your {answer.name}", TAKES, residuals, "residual + s·BA must be W")
    found = []
    for args in cases:
        scale = args[2]
        want_A, want_B, want = right(*args)
        try:
            A, B, residual = _read(answer(*args), args, answer.name)
        except Wrong:
            if adapter.failures or base.failures:
                break
            raise
        adapter.add(args, scale * B @ A, scale * want_B @ want_A)
        base.add(args, residual, want)
        found.append((args, A, B))
    adapter.verdict()
    base.verdict()
    return found


def _cases(cases: Cases) -> list[tuple]:
    side = cases.integer(6, 9)
    sizes = [(side, side, cases.integer(2, 3))]
    sizes += [(*cases.different(6, 20, 2), cases.integer(2, 5)) for _ in range(2)]
    sizes += [(cases.integer(16, 20), cases.integer(6, 9), 3), (cases.integer(6, 9), cases.integer(16, 20), 1)]
    return [(cases.normal(out, wide), rank, cases.pick((0.4, 1.7, 2.5))) for out, wide, rank in sizes]


def _svd(W: Tensor, rank: int, scale: float, *, last: bool = False) -> Tensor:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    part = slice(len(S) - rank, None) if last else slice(rank)
    return U[:, part] * S[part] @ Vh[part]


def _whole_S(W: Tensor, rank: int, scale: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * S[:rank].square() @ Vh[:rank]


def _no_S(W: Tensor, rank: int, scale: float) -> Tensor:
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank] @ Vh[:rank]


PISSA_PRODUCTS = (
    Mistake("is s times too large: divide S by the scale before the root", lambda W, r, s: s * _svd(W, r, s)),
    Mistake("multiplies S by the scale: divide it", lambda W, r, s: s**2 * _svd(W, r, s)),
    Mistake("is the part of the smallest singular values: take the largest", lambda W, r, s: _svd(W, r, s, last=True)),
    Mistake("holds S twice: each factor gets its root", lambda W, r, s: _whole_S(W, r, s) / s),
    Mistake("holds S twice: each factor gets its root", lambda W, r, s: s * _whole_S(W, r, s)),
    Mistake("holds S twice: each factor gets its root", lambda W, r, s: _whole_S(W, r, s)),
    Mistake("holds no S: each factor gets the root of it", lambda W, r, s: _no_S(W, r, s)),
    Mistake("holds no S: each factor gets the root of it", lambda W, r, s: s * _no_S(W, r, s)),
    Mistake("is divided by the scale twice: the root of S / s in each factor", lambda W, r, s: _svd(W, r, s) / s),
    Mistake("is zero: the adapter starts as the main part of W", lambda W, r, s: torch.zeros_like(W)),
)
PISSA_RESIDUALS = (
    Mistake("is W itself: the base has to give up what the adapter holds", lambda W, r, s: W),
    Mistake("leaves out the scale: W - s·BA", lambda W, r, s: W - _svd(W, r, s) / s),
    Mistake("is W + s·BA: take it away", lambda W, r, s: W + _svd(W, r, s)),
    Mistake("applies the scale twice: W - s·BA", lambda W, r, s: W - s * _svd(W, r, s)),
    Mistake("is what was taken out, not what is left", lambda W, r, s: _svd(W, r, s)),
)


@exercise(
    "5.3",
    takes=TAKES,
    points=2,
    minutes=10,
    hints=(
        "The adapter holds the best rank-r approximation of W, the base the rest. How do you share S between A and B, "
        "and where does s go?",
        "s·BA must be U_r diag(S_r) V_rᵀ, so BA is that divided by s. Each factor gets the root of S_r / s.",
        "root = (S[:rank] / scale).sqrt(); A is root times the rows of Vh[:rank]; B is U[:, :rank] times root along "
        "its columns; the residual is W - scale * B @ A.",
    ),
)
def pissa_start(answer: Guard, cases: Cases) -> str:
    """The principal part as the adapter, the rest as the base, S shared evenly."""
    inputs = _cases(cases)
    for args, A, B in _judge(answer, inputs, right_pissa, PISSA_PRODUCTS, PISSA_RESIDUALS):
        W, rank, scale = args
        want = torch.linalg.svdvals(W.double())[:rank] / scale
        for name, gram in (("A", _gram(A)), ("B", _gram(B.T))):
            if not same(gram, torch.diag(gram.diagonal())):
                raise Wrong(f"{name} of your pissa_start mixes the directions of W: keep them apart, orthogonal")
            got = gram.diagonal().sort(descending=True).values
            if not same(got, want):
                how = (
                    "all of S / s" if same(got.sqrt(), want) else "none of S" if same(got, torch.ones_like(got)) else ""
                )
                how = f"it gets {how}; " if how else ""
                raise Wrong(
                    f"s·BA of your pissa_start is right, but A and B do not share S evenly: each gets √(S / s) "
                    f"({how}{name}'s lengths squared are {got[0]:.3g} at most, {want[0]:.3g} is right for "
                    f"{in_words(TAKES, args)})"
                )
    return f"the main part in the adapter and the rest in the base on {len(inputs)} random shapes"


def _qr(W: Tensor, rank: int) -> Tensor:
    Q, R = torch.linalg.qr(W)
    return Q[:, :rank] @ R[:rank]


def _qr_turned(W: Tensor, rank: int) -> Tensor:
    return _qr(W.T, rank).T


def _last(W: Tensor, rank: int) -> Tensor:
    Q, R = torch.linalg.qr(W)
    return Q[:, -rank:] @ R[-rank:]


OLORA_PRODUCTS = (
    Mistake(
        "is the part of the largest singular values: that is PiSSA. OLoRA takes the QR decomposition",
        lambda W, r, s: s * _svd(W, r, s),
    ),
    Mistake(
        "is the part of the largest singular values: that is PiSSA. OLoRA takes the QR decomposition",
        lambda W, r, s: _svd(W, r, s),
    ),
    Mistake("has the scale divided out, as PiSSA does. Here A = R[:r] and B = Q[:, :r]", lambda W, r, s: _qr(W, r)),
    Mistake("applies the scale twice: it is no part of A and B", lambda W, r, s: s**2 * _qr(W, r)),
    Mistake("comes from the QR of W transposed: B spans the first columns of W", lambda W, r, s: s * _qr_turned(W, r)),
    Mistake("comes from the last columns of Q: take the first", lambda W, r, s: s * _last(W, r)),
    Mistake("is zero: the adapter starts as a part of W", lambda W, r, s: torch.zeros_like(W)),
)
OLORA_RESIDUALS = (
    Mistake("is W itself: the base has to give up what the adapter adds", lambda W, r, s: W),
    Mistake("leaves out the scale: the adapter adds s·BA, so the base loses s·BA", lambda W, r, s: W - _qr(W, r)),
    Mistake("is W + s·BA: take it away", lambda W, r, s: W + s * _qr(W, r)),
    Mistake("applies the scale twice: W - s·BA", lambda W, r, s: W - s**2 * _qr(W, r)),
    Mistake("is what was taken out, not what is left", lambda W, r, s: s * _qr(W, r)),
)


@exercise(
    "5.4",
    takes=TAKES,
    points=2,
    minutes=10,
    hints=(
        "W = Q R. The first r columns of Q and the first r rows of R are B and A. What does the base lose?",
        "Thin: the first r columns of Q depend on the first r columns of W alone, so use torch.linalg.qr(W[:, :rank]). "
        "R_r is then Q_rᵀ W.",
        "B = torch.linalg.qr(W[:, :rank]).Q; A = B.T @ W; residual = W - scale * B @ A.",
    ),
)
def olora_start(answer: Guard, cases: Cases) -> str:
    """B an orthonormal basis of W's first columns, A what W has in it; the base loses s times that."""
    inputs = _cases(cases)
    for args, A, B in _judge(answer, inputs, right_olora, OLORA_PRODUCTS, OLORA_RESIDUALS):
        rank = len(A)
        if not same(_gram(B.T), torch.eye(rank, dtype=torch.float64)):
            swapped = same(_gram(A), torch.eye(rank, dtype=torch.float64))
            what = "A has them instead" if swapped else f"BᵀB is not the identity for {in_words(TAKES, args)}"
            raise Wrong(f"B of your olora_start should have orthonormal columns, as Q has: {what}")
    return f"an orthonormal B from a QR, and the residual, on {len(inputs)} random shapes at s other than 1"
