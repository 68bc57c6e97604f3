"""The largest singular triplets of a linear map that is only ever applied: subspace iteration with a polynomial filter.

    V = orth(X) (columns, width),   W V = U diag(s) Qᵀ,   V <- V Q,   X <- T_d((2 / a) WᵀW - 1) V,   a = s_width²

The Chebyshev polynomial T_d stays below 1 on [-1, 1], where (2 / a) WᵀW - 1 puts the sizes up to s_width, and beyond it
grows faster than any other polynomial of its degree. So a round shrinks what the wanted directions still have of
unwanted ones by the factor T_d(2 s_rank² / a - 1), where d products with WᵀW alone would give (s_rank² / a)^d.

What is left of W outside the block, the residual ‖(1 - VVᵀ) Wᵀu‖, bounds the angle to the true directions by
residual / (s - s_rank+1) (Wedin 1972). Source: Rutishauser 1970 ("Simultaneous iteration method for symmetric
matrices"); a and d are chosen anew every round, as in Zhou, Saad, Tiago & Chelikowsky 2006.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
Triplets = tuple[Tensor, Tensor, Tensor]

DEGREES = (2, 4, 8, 16, 32)  # at most, by round: the first guesses of a are too small
SPREAD = 1e10  # by how much a round may magnify one direction over another without losing the smaller to rounding


def block_width(rank: int) -> int:
    """Columns of the block for so many wanted directions: more of them widen the gap, and cost more to multiply."""
    return rank + max(16, rank // 2)


def leading_block(
    apply: Map,
    adjoint: Map,
    shape: tuple[int, int],
    rank: int,
    like: Tensor,
    tolerance: float | None = None,
    negligible: float = 0.0,
    start: Tensor | None = None,
) -> Triplets | None:
    """U (rows, width), s (width,) from large to small, V (columns, width) of a map W of this `shape` (rows, columns).

    The first `rank` triplets are final, the others approximate.
    apply, adjoint: X (columns, b) -> W X and Y (rows, b) -> Wᵀ Y.   like: a tensor of the dtype and device to work in.
    tolerance: of the bound on the angle, in radians; None: 250 roundings. The angle itself is about ten times smaller.
        Where rounding keeps the bound above it, up to 2000 roundings will do.
    negligible: directions whose size is at most this share of the largest may be any, and residuals need be no smaller.
    start: a guess of V (columns, width). Without one the same numbers every time, from a generator of its own.
    Returns None if it does not converge, as where s hardly falls behind s_rank: take the full SVD then.
    """
    width = block_width(rank)
    X, rounds = start, len(DEGREES) - 1
    if start is None:
        X = adjoint(_scaled(apply(_scaled(adjoint(random_block(shape[0], width, like))))))
        rounds = 0
    eps, expected = torch.finfo(like.dtype).eps, math.inf
    tolerance = 250 * eps if tolerance is None else tolerance
    budget = 4 * min(shape) // width  # products: by then the full SVD has become the cheaper one
    while budget > 0:
        block = _triplets(apply, adjoint, X)
        if block is None:
            return None
        U, s, V, _ = block
        sizes, residuals = _measured(block)
        wanted = sum(size > negligible for size in sizes[:rank])
        due = expected <= tolerance
        angles = angle_bounds(sizes, residuals[:wanted], eps, negligible, due)
        worst = max(angles, default=0.0)
        if worst <= tolerance or (due and worst <= 2000 * eps):
            return U, s, V
        # Leave out what has converged beyond need: the filter then serves the rest, and need not magnify so much.
        done = next(i for i, angle in enumerate(angles) if angle > tolerance / 64)
        growth, fastest = (_growth(sizes[i], sizes[-1]) for i in (wanted - 1, done))
        needed = math.ceil(math.log(worst / tolerance) / growth)
        safe = int(math.log(SPREAD) / max(fastest - growth, 1e-3))
        degree = max(1, min(DEGREES[min(rounds, len(DEGREES) - 1)], needed, safe))
        X = _filtered(apply, adjoint, block, degree, done)
        expected = worst * math.exp(-growth * degree)
        budget, rounds = budget - degree - 4 * due, rounds + 1  # what was due and did not come is doubtful
    return None


def _triplets(apply: Map, adjoint: Map, X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The singular triplets U, s, V of W restricted to the span of X, and WᵀU. None if numbers have left the range."""
    V = torch.linalg.qr(X)[0]
    U, R = torch.linalg.qr(apply(V))
    if not R.isfinite().all():
        return None
    # The small problem in fp64: it costs nothing, and leaves only the rounding of the products.
    P, s, Qh = (part.to(R) for part in torch.linalg.svd(R.double()))
    U, V = U @ P, V @ Qh.T
    return U, s, V, adjoint(U)


def _measured(block: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[list[float], list[float]]:
    """Size of each direction and residual of each, as shares of the largest size."""
    _, s, V, image = block
    largest = s[0].clamp(min=torch.finfo(s.dtype).tiny)
    return (s / largest).tolist(), ((image - V @ (V.T @ image)) / largest).norm(dim=0).tolist()


def angle_bounds(
    sizes: list[float], residuals: list[float], eps: float, negligible: float = 0.0, due: bool = False
) -> list[float]:
    """A bound on how far each wanted direction may be from the true ones, in radians; all 0 where rounding is reached.

    That is where small residuals stay although convergence is `due`, and where there is no gap behind the wanted.
    """
    if not residuals:
        return []
    smallest, next_ = sizes[len(residuals) - 1], sizes[len(residuals)]
    noise = max(32 * eps * smallest, negligible)
    if max(residuals) <= noise and (due or smallest - next_ <= noise):
        return [0.0] * len(residuals)
    return [r / max(size - next_, eps**2) for size, r in zip(sizes, residuals, strict=False)]


def _growth(size: float, edge: float) -> float:
    """g with T_d(2 size² / edge² - 1) = cosh(g d)."""
    return math.acosh(max(2 * (size / max(edge, 1e-15)) ** 2 - 1, 1 + 1e-6))


def _filtered(apply: Map, adjoint: Map, block: tuple[Tensor, Tensor, Tensor, Tensor], degree: int, done: int) -> Tensor:
    """V with T_degree((2 / a) WᵀW - 1) applied to all but its first `done` columns, W without those directions.

    By T_d+1(x) = 2x T_d(x) - T_d-1(x), from T_1 = x: WᵀW V = s WᵀU is known.
    """
    U, s, V, image = block
    edge = max(s[-1].item(), 1e-15 * s[0].item())

    def without(X: Tensor, directions: Tensor) -> Tensor:
        return X - directions @ (directions.T @ X) if done else X

    before, X = V[:, done:], image[:, done:] * (2 * s[done:] / edge / edge) - V[:, done:]
    for _ in range(degree - 1):
        product = without(apply(X).mul_(2 / edge), U[:, :done])
        product = without(adjoint(product).mul_(2 / edge), V[:, :done])
        before, X = X, product.sub_(X, alpha=2).sub_(before)
    return torch.cat([V[:, :done], X], dim=1)


def random_block(rows: int, columns: int, like: Tensor) -> Tensor:
    """Gaussian numbers, the same every time; the global random state is not touched."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(like)


def _scaled(X: Tensor) -> Tensor:
    return X / X.abs().max().clamp(min=torch.finfo(X.dtype).tiny)
