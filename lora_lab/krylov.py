"""The largest singular triplets of a linear map that is only ever applied: block Lanczos bidiagonalization.

    W V = U B        U (rows, m), V (columns, m) orthonormal, B (m, m);  m grows by a block a step
    B = P diag(s) Qᵀ:    u = U p,  v = V q:    W v = s u,    ‖Wᵀu - s v‖ = ‖R p_last‖, R what Wᵀ U_last has outside V

Nothing that was computed is thrown away: the triplets are the best within all of V, WᵀW V, (WᵀW)² V, ... So this needs
the fewest products of all where the spectrum falls, and too much memory and orthogonalization where it is flat:
`chebyshev.py` goes on from there.

Source: Golub, Luk & Overton 1981 ("A block Lanczos method for computing the singular values and corresponding singular
vectors of a matrix"), with every block made orthogonal to all before it. A block is as wide as the wanted rank: no
multiple singular value can then hide a wanted direction.
"""

import math

import torch
from torch import Tensor

from lora_lab.chebyshev import Map, Triplets, angle_bounds, block_width, random_block

STEPS = 12  # after that the spectrum is called flat


def lanczos_block(
    apply: Map,
    adjoint: Map,
    shape: tuple[int, int],
    rank: int,
    like: Tensor,
    tolerance: float | None = None,
    negligible: float = 0.0,
) -> tuple[Triplets | None, bool]:
    """U (rows, width), s (width,), V (columns, width): the best triplets found, and whether the first `rank` are final.

    None if numbers have left the range. The arguments are those of `chebyshev.leading_block`; `shape` must have room
    for 6 blocks.
    """
    width, limit = max(16, rank), min(shape) // 2
    U, V = (like.new_empty(min(STEPS * width, limit) + width, n).T for n in shape)
    B = torch.zeros(len(V.T), len(V.T), dtype=torch.float64)
    block = torch.linalg.qr(random_block(shape[1], width, like))[0]
    m, next_look, before = 0, 5 * width, (0, math.inf)
    eps = torch.finfo(like.dtype).eps
    tolerance = 250 * eps if tolerance is None else tolerance
    while True:
        new = slice(m, m + width)
        V[:, new] = block
        U[:, new], above, diagonal = appended(apply(block), U[:, :m])
        B[:m, new], B[new, new] = above, diagonal
        m += width
        block, _, R = appended(adjoint(U[:, new]), V[:, :m])
        last = m + width > len(V.T)
        if m < next_look and not last:
            continue
        if not B.isfinite().all():
            return None, False
        P, s, Q = _largest(B[:m, :m], block_width(rank), exact=like.dtype == torch.float64)
        largest = max(s[0].item(), torch.finfo(like.dtype).tiny)
        sizes, residuals = (s / largest).tolist(), ((R.to(B) @ P[-width:]) / largest).norm(dim=0).tolist()
        wanted = sum(size > negligible for size in sizes[:rank])
        angle = max(angle_bounds(sizes, residuals[:wanted], eps, negligible), default=0.0)
        if last or angle <= tolerance:
            P, s, Q = (part.to(like) for part in (P, s, Q))
            return (U[:, :m] @ P, s, V[:, :m] @ Q), angle <= tolerance
        next_look = m + width * _steps_left(before, (m // width, angle), tolerance)
        before = m // width, angle


def _steps_left(before: tuple[int, float], now: tuple[int, float], wanted: float) -> int:
    """Steps until the angle is small enough, if it goes on shrinking as it did since the last look; 1 to 4."""
    rate = math.log(before[1] / now[1]) / (now[0] - before[0]) if before[1] < math.inf else 0.0
    return min(4, math.ceil(math.log(now[1] / wanted) / rate)) if rate > 0 else 2


def appended(block: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q, C, R: block = basis C + Q R, Q orthonormal and orthogonal to `basis`, even where the block adds nothing."""
    C = basis.T @ block
    Q, R = torch.linalg.qr(block - basis @ C)
    for _ in range(3):
        # What rounding left of the basis, which is all there is in a column where nothing new came.
        along = basis.T @ Q
        Q, C = Q - basis @ along, C + along @ R
        if along.numel() == 0 or along.norm().item() ** 2 <= torch.finfo(Q.dtype).eps:
            break
        Q, more = torch.linalg.qr(Q)
        R = more @ R
    return Q, C, R


def _largest(B: Tensor, count: int, exact: bool) -> Triplets:
    """P (m, count), s (count,), Q (m, count): the largest singular triplets of B (m, m), in fp64."""
    if exact:
        P, s, Qh = torch.linalg.svd(B)
        return P[:, :count], s[:count], Qh[:count].T
    # For use in fp32 the squares may be formed in fp64, which is half the work.
    Q = torch.linalg.eigh(B.T @ B)[1][:, -count:]
    P, s, Qh = torch.linalg.svd(B @ Q, full_matrices=False)
    return P, s, Q @ Qh.T
