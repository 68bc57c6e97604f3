"""Intruder dimensions: strong directions of the adapted weight that resemble none of the old ones.

    W + ΔW = Σ sⱼ uⱼ vⱼᵀ;   uⱼ, j ≤ k, intrudes if maxᵢ |uⱼᵀ xᵢ| < ε over all left singular vectors xᵢ (out) of W

Source: Shuttleworth et al. 2024, "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (arXiv:2410.21228),
algorithm 1.
The paper finds them in LoRA's weights and not in those of full fine-tuning, and finds forgetting tied to them.
"""

from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from lora_lab.lowrank import top_svd
from lora_lab.spectrum.check import check_rank, count, matrix, same_type


class Intruders(NamedTuple):
    """`similarity` (k,): maxᵢ |cos| of each of the top k left singular vectors of W + ΔW with those of W, 0 to 1.

    `indices` (n,): which of them intrude, 0 the strongest. U (out, n), s (n,), Vh (n, in): their singular triples.
    """

    similarity: Tensor
    indices: Tensor
    U: Tensor
    s: Tensor
    Vh: Tensor


def check_intruders(k: int, epsilon: float) -> None:
    """Raise TypeError or ValueError unless k is a whole number from 1 and 0 < epsilon <= 1."""
    check_rank(k, 2**63 - 1, "k", low=1)
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be above 0 and at most 1, got {epsilon!r}")


def intruder_dimensions(W: Tensor, delta_W: Tensor, k: int = 10, epsilon: float = 0.5) -> Intruders:
    """The directions among the top k of W + delta_W (out, in) whose best match in W is below `epsilon`.

    Directions beyond the numerical rank, of W or of the sum, are rounding noise and are neither compared with nor
    looked at: there may be fewer than k. Singular vectors of equal singular values are arbitrary within their space:
    read nothing into a W with a flat spectrum.
    Raises TypeError or ValueError for k below 1, `epsilon` outside (0, 1], or matrices that do not fit.
    """
    check_intruders(k, epsilon)
    weight, delta = same_type(matrix(W), matrix(delta_W, "delta_W"))
    if weight.shape != delta.shape:
        raise ValueError(f"W {tuple(weight.shape)} and delta_W {tuple(delta.shape)} differ in shape")
    old, values, _ = torch.linalg.svd(weight, full_matrices=False)
    old = old[:, : count(values, weight.shape)]
    U, s, Vh = top_svd(weight + delta, min(k, *weight.shape))
    top = count(s, weight.shape)
    cosines = (U[:, :top].T @ old).abs().clamp(max=1)
    similarity = cosines.amax(dim=1) if old.shape[1] else cosines.new_zeros(top)
    (found,) = torch.where(similarity < epsilon)
    return Intruders(similarity, found, U[:, found], s[found], Vh[found])
