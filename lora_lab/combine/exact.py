"""The exact sum, and its best approximation of a given rank.

    ΔW = Σ wᵢ sᵢ Bᵢ Aᵢ = [B₁ ... Bₙ] [w₁s₁A₁; ...; wₙsₙAₙ]        rank Σ rᵢ

Weights and scales go into A, so that the result's own scale is 1 (alpha = rank, no rsLoRA), whatever the sources had.
"""

import math

import torch
from torch import Tensor

from lora_lab.adapter import Factors
from lora_lab.combine.check import Part
from lora_lab.spectrum import factor_svd


def stacked(parts: list[Part]) -> tuple[Tensor, Tensor]:
    """A (Σ rᵢ, in), which carries weights and scales, and B (out, Σ rᵢ), with BA the exact sum."""
    return torch.cat([p.weight * p.scale * p.A for p in parts]), torch.cat([p.B for p in parts], dim=1)


def cat(parts: list[Part]) -> Factors:
    """Exact: the factors side by side, the ranks add up."""
    return unscaled(*stacked(parts))


def svd(parts: list[Part], rank: int | None) -> Factors:
    """The matrix of at most this rank that is nearest to the exact sum, from the factors alone (Eckart & Young 1936).

    What it leaves out has the norm √(Σ_{i > rank} sᵢ²). None: the largest rank among the parts.
    """
    A, B = stacked(parts)
    U, s, Vh = factor_svd(precise(A), precise(B))
    return split(U, s, Vh, rank or max(p.rank for p in parts), A.dtype)


def split(U: Tensor, s: Tensor, Vh: Tensor, rank: int, dtype: torch.dtype) -> Factors:
    """The top `rank` of U diag(s) Vh as factors of scale 1, √s on either side so that neither outweighs the other."""
    root = s[:rank].sqrt()
    return unscaled((root[:, None] * Vh[:rank]).to(dtype), (U[:, :rank] * root).to(dtype))


def unscaled(A: Tensor, B: Tensor) -> Factors:
    """Factors with ΔW = BA: alpha = rank makes the scale 1."""
    return Factors(A.contiguous(), B.contiguous(), alpha=A.shape[0], rslora=False)


def precise(tensor: Tensor) -> Tensor:
    """In fp64 where the device has it: on thin factors it costs nothing, and differences of near equals survive."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def rank_limit(layers: dict[str, list[Part]]) -> tuple[int, str]:
    """The smallest min(out, in), and the layer that has it."""
    return min((min(parts[0].shape), path) for path, parts in layers.items())


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 for nothing of nothing, infinite for something of nothing."""
    return part / whole if whole > 0 else (math.inf if part > 0 else 0.0)
