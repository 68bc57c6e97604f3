"""Which directions two matrices have in common, and what an update does to those of W.

    φ(A1, A2, i, j) = ‖V1[:, :i]ᵀ V2[:, :j]‖_F² / min(i, j)        V1 (in, r1), V2 (in, r2): right singular vectors

Source: Hu et al. 2021 (arXiv:2106.09685), section 7. For left singular vectors (B of an adapter) pass transposes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lora_lab.spectrum.check import check_rank, count, matrix, same_type


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
    check_rank(i, V1.shape[1], "i", low=1)
    check_rank(j, V2.shape[1], "j", low=1)
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


def random_similarity(inputs: int, i: int, j: int) -> float:
    """max(i, j) / inputs: the mean of φ between random subspaces of i and of j dimensions, what chance alone gives.

    Each of the i·j squared cosines between random unit vectors is 1/inputs on average; their sum is over min(i, j).
    """
    inputs = check_rank(inputs, 2**63 - 1, "inputs", low=1)
    return max(check_rank(i, inputs, "i", low=1), check_rank(j, inputs, "j", low=1)) / inputs


def random_similarity_grid(inputs: int, rank1: int, rank2: int) -> Tensor:
    """All `random_similarity` values, (rank1, rank2): the baseline for a `similarity_grid` of that shape."""
    random_similarity(inputs, rank1, rank2)  # its limits are ours
    return torch.maximum(torch.arange(1, rank1 + 1)[:, None], torch.arange(1, rank2 + 1)[None, :]) / inputs


class Projections(NamedTuple):
    """‖Uᵀ W V‖_F for U (out, rank) and V (in, rank) of three origins, and the whole norms: one row of table 7."""

    onto_delta: float  # the update's top directions
    onto_weight: float  # W's own top directions: the most there can be
    onto_random: float  # random directions: rank / √(out · in) · ‖W‖_F, the root of the mean square
    delta: float  # ‖ΔW‖_F
    weight: float  # ‖W‖_F


def projections(delta_W: Tensor, W: Tensor, rank: int) -> Projections:
    """How much of W lies in the top `rank` directions of delta_W (out, in), of W itself, and of chance.

    Source: Hu et al. 2021 (arXiv:2106.09685), section 7.3, table 7.
    """
    delta, weight, found = _inside(delta_W, W, rank)
    largest = torch.linalg.svdvals(weight)
    norm = torch.linalg.matrix_norm(weight).item()
    chance = rank / math.sqrt(weight.numel()) * norm
    return Projections(found, largest[:rank].norm().item(), chance, torch.linalg.matrix_norm(delta).item(), norm)


def amplification_factor(delta_W: Tensor, W: Tensor, rank: int) -> float:
    """‖ΔW‖_F / ‖Uᵀ W V‖_F: how much larger the update is than what W already had in the update's top directions.

    U (out, rank) and V (in, rank) are the top singular vectors of delta_W (out, in). Infinite if W has nothing there.
    Source: Hu et al. 2021 (arXiv:2106.09685), section 7.3, table 7.
    """
    delta, _, found = _inside(delta_W, W, rank)
    return torch.linalg.matrix_norm(delta).item() / found if found > 0 else math.inf


def _inside(delta_W: Tensor, W: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Both matrices in one type, and ‖Uᵀ W V‖_F with the update's top directions."""
    delta, weight = same_type(matrix(delta_W, "delta_W"), matrix(W))
    if delta.shape != weight.shape:
        raise ValueError(f"delta_W {tuple(delta.shape)} and W {tuple(weight.shape)} differ in shape")
    U, s, Vh = torch.linalg.svd(delta, full_matrices=False)
    check_rank(rank, count(s, delta.shape), low=1)
    return delta, weight, torch.linalg.matrix_norm(U[:, :rank].T @ weight @ Vh[:rank].T).item()


def _pair(A1: Tensor, A2: Tensor) -> tuple[Tensor, Tensor]:
    """The right singular vectors of both, V1 (in, rank of A1) and V2 (in, rank of A2)."""
    first, second = same_type(matrix(A1, "A1"), matrix(A2, "A2"))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"A1 {tuple(A1.shape)} and A2 {tuple(A2.shape)} differ in their number of inputs")
    return _row_space(first, "A1"), _row_space(second, "A2")


def _row_space(A: Tensor, name: str) -> Tensor:
    _, s, Vh = torch.linalg.svd(A, full_matrices=False)
    rank = count(s, A.shape)
    if rank == 0:
        raise ValueError(f"{name} is zero: it spans no subspace")
    return Vh[:rank].T
