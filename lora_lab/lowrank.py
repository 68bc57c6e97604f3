"""A few singular vectors of a weight, without the others.

    W (out, in) = U diag(S) Vh,  k = min(out, in);  top: the first `rank` columns of U and rows of Vh;  bottom: the last

Top: by Lanczos (`krylov.py`), and where the spectrum is too flat for it by a filter (`chebyshev.py`). Bottom: by the
filter, applied to an inverse, as the smallest singular values of W are the largest of L⁻¹, W Wᵀ = L Lᵀ, and the left
singular vectors of L are those of W. Both reach the accuracy of the full SVD in the same dtype, and are that SVD where
nothing is to be gained: a small W, a rank near k, no gap in the spectrum.
"""

import torch
from torch import Tensor

from lora_lab.chebyshev import Map, Triplets, block_width, leading_block
from lora_lab.init.check import check_rank, check_weight
from lora_lab.krylov import lanczos_block


@torch.no_grad()
def top_svd(W: Tensor, rank: int, tolerance: float | None = None) -> Triplets:
    """U (out, rank), S (rank,) from large to small, Vh (rank, in): the largest singular triplets of W (out, in).

    In fp32 (fp64 stays fp64), on W's device; the same result every time, the global random state untouched.
    tolerance: of the bound on the angle to the true directions, in radians; None: 250 roundings (3e-5 in fp32).
    Raises TypeError or ValueError for a W that is no finite matrix, a rank outside 1 to min(out, in), or a tolerance
    that is not positive.
    """
    W = check_weight(W, rank)
    _check_tolerance(tolerance)
    if not _pays(W.shape, rank):
        return _cut(torch.linalg.svd(W, full_matrices=False), rank)
    return top_of_map(W.matmul, W.T.matmul, W.shape, rank, W, tolerance)


@torch.no_grad()
def top_of_map(
    apply: Map, adjoint: Map, shape: tuple[int, int], rank: int, like: Tensor, tolerance: float | None = None
) -> Triplets:
    """U, S, Vh as in `top_svd`, of a map M (out, in) = `shape` that need not exist as a matrix, like W C.

    apply, adjoint: X (in, b) -> M X and Y (out, b) -> Mᵀ Y, so for W C: X -> W (C X) and Y -> C (Wᵀ Y).
    like: a tensor of the dtype (fp32 or fp64) and device to work in. For a full SVD, M is formed by applying it to the
        identity.
    """
    rank = check_rank(rank, min(shape))
    _check_tolerance(tolerance)
    if like.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"a map is worked on in fp32 or fp64, got {like.dtype}")
    if _pays(shape, rank):
        arguments = apply, adjoint, tuple(shape), rank, like, tolerance, 16 * torch.finfo(like.dtype).eps
        found, final = lanczos_block(*arguments)
        if found is not None and not final:
            found = leading_block(*arguments, start=found[2])
        if found is not None:
            U, S, V = found
            return _cut((U, S, V.T), rank)
    return _cut(torch.linalg.svd(apply(torch.eye(shape[1]).to(like)), full_matrices=False), rank)


@torch.no_grad()
def bottom_left(W: Tensor, rank: int, tolerance: float | None = None) -> Tensor:
    """U[:, -rank:] (out, rank) of the thin SVD of W (out, in): left singular vectors, the smallest value's last.

    In fp32 (fp64 stays fp64), on W's device; the same result every time, the global random state untouched.
    tolerance: as in `top_svd`.
    Raises TypeError or ValueError as `top_svd` does.
    """
    W = check_weight(W, rank)
    _check_tolerance(tolerance)
    tall = W.shape[0] > W.shape[1]
    wide = W.T if tall else W
    found = None
    if _pays(W.shape, rank):
        found = _bottom_by_cholesky(wide, rank, tolerance) or _bottom_by_qr(wide, rank, tolerance)
    if found is not None and tall:
        left, s, right = found
        # U = W V / s loses its meaning where s is rounding.
        found = (right, s, left) if torch.finfo(s.dtype).eps * W.norm() <= 1e-2 * s[-1] else None
    if found is None:
        return torch.linalg.svd(W, full_matrices=False).U[:, -rank:]
    return found[0][:, -rank:]


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be an angle between 0 and 1 radians, got {tolerance!r}")


def _pays(shape: tuple[int, int], rank: int) -> bool:
    """Is a matrix so large that a few directions are found sooner than all?"""
    return min(shape) >= 8 * block_width(rank)


def _cut(svd: Triplets, rank: int) -> Triplets:
    U, S, Vh = svd
    return U[:, :rank], S[:rank], Vh[:rank]


def _bottom_by_cholesky(wide: Tensor, rank: int, tolerance: float | None) -> Triplets | None:
    """The smallest triplets of `wide` (k, n) through W Wᵀ = L Lᵀ: the fastest, but it has squared all rounding.

    None where that would show, or where it does not pay.
    """
    if 2 * wide.shape[0] > wide.shape[1]:
        return None  # nearly square: seldom well conditioned, and the QR costs no more
    gram = _lower_gram(wide)
    L, failed = torch.linalg.cholesky_ex(gram)
    found = None if failed else _smallest_block(L, wide, rank, tolerance)
    if found is None:
        return None
    s = found[1]
    error = torch.finfo(s.dtype).eps * gram.norm()  # of W Wᵀ, seen against the gap that sets the block apart
    return found if error <= 4e-3 * (s[0] ** 2 - s[-rank] ** 2) else None


def _bottom_by_qr(wide: Tensor, rank: int, tolerance: float | None) -> Triplets | None:
    """The smallest triplets of `wide` (k, n) through Wᵀ = Q Lᵀ."""
    L = torch.geqrf(wide.T)[0][: len(wide)].T  # above its diagonal there is no zero, but the solver reads none of that
    diagonal = L.diagonal()
    # An exactly singular L: a change as small as its rounding error makes the solve possible.
    least = torch.finfo(L.dtype).eps * diagonal.abs().max()
    diagonal.copy_(torch.where(diagonal.abs() < least, least, diagonal))
    return _smallest_block(L, wide, rank, tolerance)


def _smallest_block(L: Tensor, wide: Tensor, rank: int, tolerance: float | None) -> Triplets | None:
    """U (k, b), s (b,) from large to small, V (n, b): a block whose last `rank` triplets are the smallest of W (k, n).

    They are found as the largest of L⁻¹, and then turned to W's own directions within the block. L is used up.
    """
    size = L.diagonal().abs().max()
    if size == 0:
        return None
    lower = L.div_(size).contiguous()
    upper = lower.T.contiguous()  # the same numbers laid out the other way: each of the two is solved faster in its own
    found = leading_block(
        lambda X: torch.linalg.solve_triangular(lower, X, upper=False),
        lambda Y: torch.linalg.solve_triangular(upper, Y, upper=True),
        L.shape,
        rank,
        L,
        tolerance,
    )
    if found is None:
        return None
    Q, R = torch.linalg.qr(wide.T @ found[2])
    P, s, Th = (part.to(R) for part in torch.linalg.svd(R.double()))
    return found[2] @ Th.T, s, Q @ P


def _lower_gram(wide: Tensor, block: int = 256) -> Tensor:
    """The lower triangle of W Wᵀ (k, k), with about half of the products; above it something else."""
    k = wide.shape[0]
    upper = wide.new_zeros(k, k)  # not empty: its norm is asked for
    for i in range(0, k, block):
        upper[i : i + block, i:] = wide[i : i + block] @ wide[i:].T
    return upper.T  # by columns, as LAPACK has it
