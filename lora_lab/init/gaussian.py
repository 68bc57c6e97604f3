"""A normal, B zero, as in diffusers: a no-op at the start, like the default.

A (rank, in) ~ N(0, 1/rank²), whatever `in` is;  B (out, rank) = 0.  The base weight is left as it is.
With small ranks A is far larger than the default's 1/√(3·in), which acts like a larger learning rate for B.
Source: PEFT's "gaussian"; Hu et al. 2021 (arXiv:2106.09685), section 4.1, say Gaussian without a variance.
"""

import torch
from torch import Tensor, nn

from lora_lab.init.random import random_factors


def gaussian_factors(weight: Tensor, rank: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` of shape (out, in), on the CPU, in the weight's dtype.

    Only shape and dtype of `weight` are read; `scale` is unused. Bit-equal to PEFT's under the same global seed.
    Raises TypeError or ValueError as `random_factors` does.
    """
    A, B = (torch.empty(factor.shape) for factor in random_factors(weight, rank))  # PEFT's first two draws, unused
    nn.init.normal_(A, std=1 / rank)
    return A.to(weight.dtype), B.zero_().to(weight.dtype)
