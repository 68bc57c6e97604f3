"""The first step from B = 0 at every rank at once.   A (rank, in); G = ∂L/∂W (out, in); s the scale; η the rate.

    ∂L/∂B = s G Aᵀ                              norm s ‖P‖ with P = G Aᵀ (out, rank)
    SGD   ΔW = -η s² P A                        gain η s² ‖P‖²
    Adam  ΔW = -η s sign(P) A                   gain η s Σ|P|

The gain is -⟨G, ΔW⟩: what the loss loses, to first order. Rank r takes the first r rows of A, so the columns of P serve
every rank, and everything but s and η is computed once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

OPTIMIZERS = ("adam", "sgd")


class Unit(NamedTuple):
    """At rank 1, 2, ..., for s = η = 1."""

    gradient: np.ndarray  # ‖∂L/∂B‖, (ranks,)
    gain: np.ndarray  # (ranks,)
    norm: np.ndarray  # ‖ΔW‖, (ranks,)
    spectra: list[np.ndarray]  # singular values of ΔW, (rank,) at each rank
    power: int  # of s in gain, norm and spectra


def first_steps(G: Tensor, A: Tensor) -> dict[str, Unit]:
    """By optimizer. Raises ValueError when the sizes do not fit, or G is zero or not finite."""
    if G.ndim != 2 or A.ndim != 2 or G.shape[1] != A.shape[1]:
        raise ValueError(f"G {tuple(G.shape)} and A {tuple(A.shape)} are not (out, in) and (rank, in) of one in")
    if not torch.isfinite(G).all() or not G.any():
        raise ValueError("the gradient must be finite and not zero")
    G, A = G.double(), A.double()
    P = G @ A.T
    gradient = P.square().sum(0).cumsum(0).sqrt().numpy()
    gains = {"adam": P.abs().sum(0).cumsum(0), "sgd": P.square().sum(0).cumsum(0)}
    steps = {"adam": P.sign(), "sgd": P}
    units = {}
    for name in OPTIMIZERS:
        spectra = product_spectra(A, steps[name])
        norm = np.array([np.linalg.norm(values) for values in spectra])
        units[name] = Unit(gradient, gains[name].numpy(), norm, spectra, 2 if name == "sgd" else 1)
    return units


def product_spectra(A: Tensor, B: Tensor) -> list[np.ndarray]:
    """Singular values of B[:, :r] A[:r] for every r, without forming the product. A (rank, in); B (out, rank).

    With B = Q R and Aᵀ = P S, BA = Q (R Sᵀ) Pᵀ: an r × r problem, and the leading blocks of R and S serve every r."""
    R, S = torch.linalg.qr(B)[1], torch.linalg.qr(A.T)[1]
    return [torch.linalg.svdvals(R[:r, :r] @ S[:r, :r].T).numpy() for r in range(1, len(A) + 1)]
