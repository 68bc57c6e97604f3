"""PiSSA: the adapter starts as the principal part of W, and the frozen base keeps the rest.

    W (out, in) = U diag(S) Vᵀ;   A = diag(√(S_r / s)) V_rᵀ,   B = U_r diag(√(S_r / s));   s·BA = U_r diag(S_r) V_rᵀ
    base <- W - s·BA, the residual: the model answers as before, and what trains are the strongest directions.

Source: Meng et al. 2024 (arXiv:2404.02948), equations 2 to 4; s is PEFT's. With `niter` the factors come from a
randomized SVD (Halko et al. 2011), as the paper's "fast SVD": another base in every run, unless it is seeded.
"""

from numbers import Integral

import torch
from torch import Tensor

from lora_lab.init.check import check_weight
from lora_lab.init.random import random_factors
from lora_lab.lowrank import top_svd


@torch.no_grad()
def pissa_factors(weight: Tensor, rank: int, scale: float, niter: int | None = None) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` (out, in), in fp32 (fp64 for fp64), on its device.

    niter: None finds the singular vectors to rounding, the same every time. A number takes that many iterations of
        `torch.svd_lowrank` (PEFT's "pissa_niter_N"): bit-equal to PEFT under the same global seed.
    Raises TypeError or ValueError as `check_weight` does, and for a `niter` that is no whole number from 0.
    """
    W = check_weight(weight, rank, scale)
    if niter is None:
        U, S, Vh = top_svd(W, rank)
    else:
        if isinstance(niter, bool) or not isinstance(niter, Integral) or niter < 0:
            raise ValueError(f"niter must be a whole number from 0, got {niter!r}")
        random_factors(weight, rank)  # PEFT's first two draws, unused
        U, S, V = torch.svd_lowrank(W, q=rank, niter=int(niter))
        Vh = V.T
    root = (S / scale).sqrt()
    return torch.diag(root) @ Vh, U @ torch.diag(root)
