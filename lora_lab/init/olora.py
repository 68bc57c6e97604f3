"""OLoRA: B starts with orthonormal columns, from the QR decomposition of W.

    W (out, in) = Q R;   B = Q_r (out, rank), the first r columns;   A = R_r = Q_rᵀ W (rank, in)
    base <- W - s·BA

Q_r spans the first r columns of W, so that the QR of those r columns is enough: 2·out·r² operations instead of those of
all of W. s is not divided out: for s != 1 the base loses s times the part of W in that span, and the adapter adds it.
Source: Büyükakyüz 2024 (arXiv:2406.01775), algorithm 1, as PEFT has it. PEFT does not turn a `Conv1D` (in, out) round
before, which fails, or is silently wrong where W is square; here W is (out, in) always.
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
    Q = torch.linalg.qr(W[:, :rank])[0]
    return Q.T @ W, Q
