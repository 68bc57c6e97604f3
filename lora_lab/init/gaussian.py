"""A normal, B zero, as diffusers starts: s·BA = 0, like the default.

A (rank, in) ~ N(0, 1/rank²), whatever `in` is;  B (out, rank) = 0.  The base weight is left as it is.
At rank 16 and in = 4096, A is seven times as large as the default's, whose standard deviation is 1/√(3·in).
Source: PEFT's "gaussian". Hu et al. 2021 (arXiv:2106.09685), section 4.1, say Gaussian and give no variance.
"""

import torch
from torch import Tensor, nn

from lora_lab.init.random import random_factors


def gaussian_factors(weight: Tensor, rank: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` of shape (out, in), on the CPU, in the weight's dtype.

    Only shape and dtype of `weight` are read; `scale` is unused. Bit-equal to PEFT's under the same global seed.
    Raises TypeError or ValueError as `random_factors` does.
    """
    A, B = random_factors(weight, rank)  # PEFT's first two draws, whose numbers it does not use
    return nn.init.normal_(torch.empty(A.shape), std=1 / rank).to(weight.dtype), B.zero_()
