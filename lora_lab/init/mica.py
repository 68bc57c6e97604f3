"""MiCA: the adapter writes only along the directions that W uses least, and only A learns.

    W (out, in) = U diag(S) Vᵀ;   B = U[:, -rank:] (out, rank), of the smallest singular values, frozen;   A = 0
    s·BA = 0 at the start; the base weight is left as it is.

Plain LoRA of the same rank trains rank·(in + out) numbers, this one rank·in.
Source: Rüdiger & Raschka 2026, "MiCA Learns More Knowledge Than LoRA and Full Fine-Tuning" (arXiv:2604.01694), as in
PEFT, which rounds B to the base's dtype; here the caller keeps it wide.
"""

import torch
from torch import Tensor

from lora_lab.init.check import check_positive
from lora_lab.lowrank import bottom_left


@torch.no_grad()
def mica_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` (out, in), in fp32 (fp64 for fp64), on its device.

    `scale` only has to be positive and finite. Raises TypeError or ValueError as `check_weight` does.
    """
    check_positive(scale, "scale")
    B = bottom_left(weight, rank)
    return B.new_zeros(rank, weight.shape[1]), B.contiguous()
