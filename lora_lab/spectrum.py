"""What the singular values and vectors of a matrix say about it.

    W (out, in) = U diag(s) Vᵀ        U (out, k), s (k,) from large to small, V (in, k), k = min(out, in)

Questions about the size of an update take its singular values s; questions about directions take matrices. All of it
is measurement: nothing here carries gradients. fp64 is computed in fp64, every other type in fp32, on its own device.
"""

import math
import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lora_lab.layer import is_conv1d, is_linear

Values = Tensor | Sequence[float]  # singular values, in any order


def singular_values(W: Tensor) -> Tensor:
    """s (k,) of W (out, in), from large to small."""
    return torch.linalg.svdvals(_matrix(W))


def numerical_rank(W: Tensor, rtol: float | None = None) -> int:
    """Number of singular values above rtol · s₁: the rank of W (out, in), up to rounding.

    rtol: None means max(out, in) times the rounding unit of the type computed in, as `torch.linalg.matrix_rank` has it.
    A product of thin matrices that was then stored in half precision has full rank here: rounding each entry on its own
    is a full-rank change. Give its own error as rtol (about 1e-2 for bf16) to look past it.
    """
    s = singular_values(W)
    if rtol is None:
        rtol = max(W.shape) * torch.finfo(s.dtype).eps
    elif not 0 <= rtol < 1:
        raise ValueError(f"rtol {rtol} is outside [0, 1)")
    return int((s > rtol * s.max()).sum()) if len(s) else 0


def random_low_rank(rows: int, cols: int, rank: int, generator: torch.Generator | None = None) -> Tensor:
    """A (rows, cols) matrix of exactly this rank: a product of two Gaussian factors, (rows, rank) and (rank, cols).

    It is divided by √rank, so that the entries have variance 1 at any rank.
    """
    _check_rank(rank, min(rows, cols), "rank")
    device = generator.device if generator is not None else None
    left = torch.randn(rows, rank, generator=generator, device=device)
    right = torch.randn(rank, cols, generator=generator, device=device)
    return left @ right / math.sqrt(max(rank, 1))


def truncate(W: Tensor, rank: int) -> Tensor:
    """The matrix of at most this rank that is nearest to W (out, in): Σ_{i ≤ rank} sᵢ uᵢ vᵢᵀ, in W's type.

    Nearest in the Frobenius and in the spectral norm (Eckart & Young 1936; Mirsky 1960).
    """
    matrix = _matrix(W)
    _check_rank(rank, min(W.shape), "rank")
    if rank == min(W.shape):
        return W.detach().clone()  # exactly, not to rounding
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return ((U[:, :rank] * s[:rank]) @ Vh[:rank]).to(W.dtype)


def truncation_error(singular_values: Values, rank: int) -> float:
    """‖W − truncate(W, rank)‖_F = √(Σ_{i > rank} sᵢ²), from W's singular values alone."""
    s = _values(singular_values)
    _check_rank(rank, len(s), "rank")
    return s[rank:].norm().item()


def energy(singular_values: Values, rank: int) -> float:
    """Share of ‖W‖_F² = Σ sᵢ² that the best approximation of this rank keeps, 0 to 1; 1 for a zero matrix."""
    s = _values(singular_values)
    _check_rank(rank, len(s), "rank")
    return _shares(s)[rank].item()


def energy_rank(singular_values: Values, share: float) -> int:
    """The smallest rank whose `energy` is at least `share` (0 to 1)."""
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is outside [0, 1]")
    return int((_shares(_values(singular_values)) < share).sum())


def effective_rank(singular_values: Values) -> float:
    """exp(H(p)), p = s / Σ s, H = −Σ p ln p: how many equally large singular values would be as spread out.

    Between 1 and k; 0 for a zero matrix. Source: Roy & Vetterli 2007, "The effective rank", definition 1.
    """
    s = _values(singular_values)
    return torch.special.entr(s / s.sum()).sum().exp().item() if s.sum() > 0 else 0.0


def stable_rank(singular_values: Values) -> float:
    """‖W‖_F² / ‖W‖₂² = Σ sᵢ² / s₁²: at most the rank, and hardly moved by small singular values.

    0 for a zero matrix. Source: Rudelson & Vershynin 2007 (arXiv:math/0503442), there "numerical rank".
    """
    s = _values(singular_values)
    return (s / s[0]).square().sum().item() if len(s) and s[0] > 0 else 0.0


def principal_angles(A1: Tensor, A2: Tensor) -> Tensor:
    """Angles in radians, from small to large, between the row spaces of A1 (r1, in) and A2 (r2, in).

    One for each dimension of the smaller space; all 0 if it lies inside the other, all π/2 if they are orthogonal.
    Small angles come from their sines, as a cosine near 1 has lost them (Björck & Golub 1973).
    """
    V1, V2 = _pair(A1, A2)
    if V1.shape[1] < V2.shape[1]:
        V1, V2 = V2, V1
    inner = V1.T @ V2
    cosines = torch.linalg.svdvals(inner).clamp(max=1)
    sines = torch.linalg.svdvals(V2 - V1 @ inner).clamp(max=1).flip(0)
    return torch.where(cosines.square() < 0.5, cosines.arccos(), sines.arcsin())


def subspace_similarity(A1: Tensor, A2: Tensor, i: int, j: int) -> float:
    """φ(A1, A2, i, j) = ‖V1[:, :i]ᵀ V2[:, :j]‖_F² / min(i, j), 0 (orthogonal) to 1 (one space holds the other).

    V1 (in, r1) and V2 (in, r2) are the right singular vectors of A1 (r1, in) and A2 (r2, in): the space spanned by the
    first i directions of one against the first j of the other. Random spaces have max(i, j) / in on average.
    Source: Hu et al. 2021 (arXiv:2106.09685), section 7.2, equation 4 (which writes U for these V).
    Raises ValueError if i or j exceeds the numerical rank: directions beyond it are rounding noise.
    """
    V1, V2 = _pair(A1, A2)
    _check_rank(i, V1.shape[1], "i", low=1)
    _check_rank(j, V2.shape[1], "j", low=1)
    return ((V1[:, :i].T @ V2[:, :j]).square().sum() / min(i, j)).item()


def similarity_grid(A1: Tensor, A2: Tensor) -> Tensor:
    """All `subspace_similarity` values at once: grid[i - 1, j - 1] = φ(A1, A2, i, j), (rank of A1, rank of A2).

    The squared norm of a top-left block of V1ᵀ V2 is a cumulative sum along both axes.
    """
    V1, V2 = _pair(A1, A2)
    blocks = (V1.T @ V2).square().cumsum(0).cumsum(1)
    i = torch.arange(1, V1.shape[1] + 1, device=blocks.device)
    j = torch.arange(1, V2.shape[1] + 1, device=blocks.device)
    return blocks / torch.minimum(i[:, None], j[None, :])


def amplification_factor(delta_W: Tensor, W: Tensor, rank: int) -> float:
    """‖ΔW‖_F / ‖Uᵀ W V‖_F: how much larger the update is than what W already had in the update's top directions.

    U (out, rank) and V (in, rank) are the top singular vectors of delta_W (out, in). Infinite if W has nothing there.
    Source: Hu et al. 2021 (arXiv:2106.09685), section 7.3, table 7.
    """
    delta, weight = _same_type(_matrix(delta_W, "delta_W"), _matrix(W))
    if delta.shape != weight.shape:
        raise ValueError(f"delta_W {tuple(delta.shape)} and W {tuple(weight.shape)} differ in shape")
    _check_rank(rank, numerical_rank(delta), "rank", low=1)
    U, _, Vh = torch.linalg.svd(delta, full_matrices=False)
    found = torch.linalg.matrix_norm(U[:, :rank].T @ weight @ Vh[:rank].T).item()
    return torch.linalg.matrix_norm(delta).item() / found if found > 0 else math.inf


@torch.no_grad()
def delta_weights(before: nn.Module | Mapping[str, Tensor], after: nn.Module) -> dict[str, Tensor]:
    """ΔW (out, in) = after − before, in fp32 (fp64 stays), for every linear layer of `after`, by the layer's path.

    before: the same model as it was, or its `state_dict()` (cloned, or it moves along in training). Embeddings and
    norms are left out, an output head is not; a `Conv1D` is turned to (out, in). Merge or eject an adapter first.
    Raises ValueError for a layer that the model before does not have, or has in another shape.
    """
    old = before.state_dict() if isinstance(before, nn.Module) else before
    deltas = {}
    for path, layer in after.named_modules():
        if not is_linear(layer):
            continue
        name = f"{path}.weight" if path else "weight"
        if name not in old:
            raise ValueError(f"the model before has no {name!r}: not the same model, or with an adapter in one of them")
        if old[name].shape != layer.weight.shape:
            raise ValueError(f"{name}: {tuple(old[name].shape)} before, {tuple(layer.weight.shape)} after")
        delta = _wide(layer.weight) - _wide(old[name].to(layer.weight.device))
        deltas[path] = delta.T if is_conv1d(layer) else delta
    return deltas


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _same_type(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(first.device, dtype)


def _matrix(W: Tensor, name: str = "W") -> Tensor:
    """W as a finite matrix in fp32 or fp64, without gradient."""
    if not isinstance(W, Tensor) or W.ndim != 2 or not W.is_floating_point() or W.numel() == 0:
        found = f"{tuple(W.shape)} of {W.dtype}" if isinstance(W, Tensor) else type(W).__name__
        raise ValueError(f"{name} must be a matrix (out, in) of floating-point numbers, got {found}")
    bad = W.numel() - int(W.isfinite().sum())
    if bad:
        raise ValueError(f"{name} has {bad} entries that are NaN or infinite")
    return _wide(W.detach())


def _values(values: Values) -> Tensor:
    """Singular values as fp64 (k,), from large to small."""
    s = torch.as_tensor(values, dtype=torch.float64).detach()
    if s.ndim != 1 or len(s) == 0:
        raise ValueError(f"singular values must be one list of numbers (k,), got the shape {tuple(s.shape)}")
    if not s.isfinite().all() or s.min() < 0:
        raise ValueError(f"singular values are finite and at least 0, got {s.tolist()[:8]}")
    return s.sort(descending=True).values


def _shares(s: Tensor) -> Tensor:
    """Share of Σ s² in the first 0, 1, ..., k values, (k + 1,); all 1 for a zero matrix."""
    # Divided first, as squares of tiny values would vanish; by a power of two, which rounds nothing.
    squares = (s / 2.0 ** math.frexp(s[0].item())[1]).square()
    sums = torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    return sums / sums[-1] if sums[-1] > 0 else torch.ones_like(sums)


def _pair(A1: Tensor, A2: Tensor) -> tuple[Tensor, Tensor]:
    """The right singular vectors of both, V1 (in, rank of A1) and V2 (in, rank of A2)."""
    first, second = _same_type(_matrix(A1, "A1"), _matrix(A2, "A2"))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"A1 {tuple(A1.shape)} and A2 {tuple(A2.shape)} differ in their number of inputs")
    return _row_space(first, "A1"), _row_space(second, "A2")


def _row_space(A: Tensor, name: str) -> Tensor:
    _, s, Vh = torch.linalg.svd(A, full_matrices=False)
    rank = int((s > max(A.shape) * torch.finfo(s.dtype).eps * s[0]).sum())
    if rank == 0:
        raise ValueError(f"{name} is zero: it spans no subspace")
    return Vh[:rank].T


def _check_rank(rank: int, limit: int, name: str, low: int = 0) -> None:
    if not low <= operator.index(rank) <= limit:
        raise ValueError(f"{name} {rank} is outside {low} to {limit}")
