"""MiCA: the adapter writes only along the directions that W uses least, and only A learns.

    W (out, in) = U diag(S) Vᵀ;   B = U[:, -rank:], the left singular vectors of the smallest singular values, frozen;
    A (rank, in) = 0.     s·BA = 0 at the start; the base weight is left as it is.

Half the trainable parameters of plain LoRA at the same rank (where out = in).
Source: "Minor Component Adaptation" 2026 (arXiv:2604.01694), as in PEFT, which freezes B too.
"""

import torch
from torch import Tensor

from lora_lab.init.check import check_weight
from lora_lab.lowrank import bottom_left


@torch.no_grad()
def mica_factors(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` (out, in), in fp32 (fp64 for fp64), on its device.

    `scale` only has to be positive and finite. Raises TypeError or ValueError as `check_weight` does.
    """
    W = check_weight(weight, rank, scale)
    return W.new_zeros(rank, W.shape[1]), bottom_left(W, rank).contiguous()
