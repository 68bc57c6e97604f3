"""Two factors that are not zero and whose product is: a no-op in which A and B both learn from the first step.

    X (rank, rank) random,  Q = orth(X) by QR;  odd and even rows of Q are orthogonal to each other
    A = (G_A Q_odd)ᵀ / 10,  G_A (in, rank/2);   B = G_Bᵀ Q_even / 10,  G_B (rank/2, out);   G_A, G_B normal
    BA = G_Bᵀ Q_even Q_oddᵀ G_Aᵀ / 100 = 0, to rounding.          The base weight is left as it is.

Both factors have rank `rank`/2; the rows of A are not orthonormal, in spite of the name.
Source: D. Gupta, "Rethink LoRA initialisation" (datta0.github.io), as in PEFT.
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
        raise ValueError(f"an orthogonal init needs an even rank, got {rank}")
    random_factors(weight, rank)  # PEFT's first two draws, unused
    out_features, in_features = weight.shape
    Q = torch.linalg.qr(torch.randn(rank, rank))[0]
    A = (torch.randn(in_features, rank // 2) @ Q[0::2]).T / 10
    B = torch.randn(rank // 2, out_features).T @ Q[1::2] / 10
    return A.contiguous().to(weight.dtype), B.to(weight.dtype)
