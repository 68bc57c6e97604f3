"""PiSSA: the adapter starts as the principal part of W, and the frozen base keeps the rest.

    W (out, in) = U diag(S) Vᵀ;    A = diag(√(S_r / s)) V_rᵀ (rank, in),    B = U_r diag(√(S_r / s)) (out, rank)
    base <- W - s·BA = W - U_r diag(S_r) V_rᵀ, the residual: the model answers as before; its main part trains.

Source: Meng et al. 2024 (arXiv:2404.02948), which names the factors the other way round and has no s: dividing it
out, as PEFT does, makes the residual the same for every s. With `niter` the factors come from a
randomized SVD, the paper's "fast SVD": another base in every run, unless the global seed is set.
"""

from numbers import Integral

import torch
from torch import Tensor

from lora_lab.init.check import check_positive, check_weight
from lora_lab.init.random import random_factors
from lora_lab.lowrank import top_svd


@torch.no_grad()
def pissa_factors(weight: Tensor, rank: int, scale: float, niter: int | None = None) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` (out, in), in fp32 (fp64 for fp64), on its device.

    niter: None finds the singular vectors to rounding, the same every time. A number takes that many iterations of
        `torch.svd_lowrank` (PEFT's "pissa_niter_N"): bit-equal to PEFT under the same global seed.
    Beside a half-precision base PEFT rounds A and B after it has formed the residual; these are for the caller to keep.
    Raises TypeError or ValueError as `check_weight` does, and for a `niter` that is no whole number from 0.
    """
    if niter is None:
        scale = check_positive(scale, "scale")
        U, S, Vh = top_svd(weight, rank)
    else:
        W = check_weight(weight, rank, scale)
        if isinstance(niter, bool) or not isinstance(niter, Integral) or niter < 0:
            raise ValueError(f"niter must be a whole number from 0, got {niter!r}")
        random_factors(weight, rank)  # PEFT's first two draws, whose numbers it does not use
        U, S, V = torch.svd_lowrank(W, q=rank, niter=int(niter))
        Vh = V.T
    root = (S / scale).sqrt()
    return root[:, None] * Vh, U * root
