"""How large a matrix is in each direction, and how many directions that makes.

W (out, in) = U diag(s) Vᵀ = Σ sᵢ uᵢ vᵢᵀ        s (k,) from large to small, k = min(out, in)
"""

import math

import torch
from torch import Tensor

from lora_lab.spectrum.check import Values, check_rank, matrix, shares, values


def singular_values(W: Tensor) -> Tensor:
    """s (k,) of W (out, in), from large to small."""
    return torch.linalg.svdvals(matrix(W))


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
    check_rank(rank, min(rows, cols))
    device = generator.device if generator is not None else None
    left = torch.randn(rows, rank, generator=generator, device=device)
    right = torch.randn(rank, cols, generator=generator, device=device)
    return left @ right / math.sqrt(max(rank, 1))


def truncate(W: Tensor, rank: int) -> Tensor:
    """The matrix of at most this rank that is nearest to W (out, in): Σ_{i ≤ rank} sᵢ uᵢ vᵢᵀ, in W's type.

    Nearest in the Frobenius and in the spectral norm (Eckart & Young 1936; Mirsky 1960).
    """
    wide = matrix(W)
    check_rank(rank, min(W.shape))
    if rank == min(W.shape):
        return W.detach().clone()  # exactly, not to rounding
    U, s, Vh = torch.linalg.svd(wide, full_matrices=False)
    return ((U[:, :rank] * s[:rank]) @ Vh[:rank]).to(W.dtype)


def truncation_error(singular_values: Values, rank: int) -> float:
    """‖W − truncate(W, rank)‖_F = √(Σ_{i > rank} sᵢ²), from W's singular values alone."""
    s = values(singular_values)
    check_rank(rank, len(s))
    return s[rank:].norm().item()


def energy(singular_values: Values, rank: int) -> float:
    """Share of ‖W‖_F² = Σ sᵢ² that the best approximation of this rank keeps, 0 to 1; 1 for a zero matrix."""
    s = values(singular_values)
    check_rank(rank, len(s))
    return shares(s)[rank].item()


def energy_rank(singular_values: Values, share: float) -> int:
    """The smallest rank whose `energy` is at least `share` (0 to 1)."""
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is outside [0, 1]")
    return int((shares(values(singular_values)) < share).sum())


def effective_rank(singular_values: Values) -> float:
    """exp(H(p)), p = s / Σ s, H = −Σ p ln p: how many equally large singular values would be as spread out.

    Between 1 and k; 0 for a zero matrix. Source: Roy & Vetterli 2007, "The effective rank", definition 1.
    """
    s = values(singular_values)
    return torch.special.entr(s / s.sum()).sum().exp().item() if s.sum() > 0 else 0.0


def stable_rank(singular_values: Values) -> float:
    """‖W‖_F² / ‖W‖₂² = Σ sᵢ² / s₁²: at most the rank, and hardly moved by small singular values.

    0 for a zero matrix. Source: Rudelson & Vershynin 2007 (arXiv:math/0503442), there "numerical rank".
    """
    s = values(singular_values)
    return (s / s[0]).square().sum().item() if len(s) and s[0] > 0 else 0.0
