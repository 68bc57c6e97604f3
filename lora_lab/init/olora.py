"""OLoRA: B starts with orthonormal columns, from the QR decomposition of W.

    W (out, in) = Q R;    B = Q_r (out, rank), the first r columns;    A = R_r = Q_rᵀ W (rank, in), the first r rows
    base <- W - s·BA:     the model answers as before.

Householder's QR finds column after column, so that Q_r is that of W's first r columns alone: 2·out·r² operations and
one product with W, where the QR of all of W takes about 8/3·n³ for a square W.
s is not divided out, as in PiSSA: the base loses s times what W has in the span of Q_r, and the adapter gives it back.
Source: Büyükakyüz 2024 (arXiv:2406.01775), as in PEFT. PEFT forgets to turn a `Conv1D` (in, out) round: it then fails,
or is silently wrong where W is square. Here W is (out, in) always.
"""

import torch
from torch import Tensor

from lora_lab.init.check import check_weight


@torch.no_grad()
def olora_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` (out, in), in fp32 (fp64 for fp64), on its device.

    `scale` only has to be positive and finite. Raises TypeError or ValueError as `check_weight` does.
    """
    W = check_weight(weight, rank, scale)
    Q, R = torch.linalg.qr(W[:, :rank])
    A = Q.T @ W
    A[:, :rank] = R  # the same but for rounding: R is exactly zero below its diagonal
    return A, Q
