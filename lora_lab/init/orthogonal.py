"""Two factors that are not zero while their product is: s·BA = 0, and A and B both learn from the first step.

    X (rank, rank) normal,   X = Q R;   the odd rows Q_o and the even rows Q_e of Q are orthogonal: Q_e Q_oᵀ = 0
    A = (G Q_o)ᵀ / 10,  G (in, rank/2) normal;      B = Hᵀ Q_e / 10,  H (rank/2, out) normal
    BA = Hᵀ Q_e Q_oᵀ Gᵀ / 100 = 0, to rounding.     The base weight is left as it is.

Despite the name the rows of A are not orthonormal, and A and B are each of rank `rank`/2 only. Other inits with B = 0
give A no gradient at the first step.
Source: datta0.github.io/posts/rethink-lora-init, which PEFT's code names.
"""

import torch
from torch import Tensor

from lora_lab.init.check import check_matrix, check_rank
from lora_lab.init.random import random_factors


def orthogonal_factors(weight: Tensor, rank: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` of shape (out, in), on the CPU, in the weight's dtype.

    Only shape and dtype of `weight` are read; `scale` is unused. Bit-equal to PEFT's under the same global seed.
    Raises TypeError or ValueError as `random_factors` does, and ValueError for an odd rank.
    """
    if check_rank(rank, min(check_matrix(weight, meta=True).shape)) % 2:
        raise ValueError(f"the orthogonal init halves the rank, which must be even, got {rank}")
    random_factors(weight, rank)  # PEFT's first two draws, whose numbers it does not use
    out_features, in_features = weight.shape
    Q = torch.linalg.qr(torch.randn(rank, rank)).Q
    A = (torch.randn(in_features, rank // 2) @ Q[0::2]).T / 10
    B = torch.randn(rank // 2, out_features).T @ Q[1::2] / 10
    return A.contiguous().to(weight.dtype), B.to(weight.dtype)
