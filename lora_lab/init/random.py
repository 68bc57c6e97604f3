"""Both factors random: s·BA is not zero, and the model answers otherwise at once. PEFT's False, for debugging.

A (rank, in) ~ U(-1/√in, 1/√in);  B (out, rank) ~ U(-1/√rank, 1/√rank).  The base weight is left as it is.
Each is what `nn.Linear` draws for itself. PEFT makes two `nn.Linear` before any init, so every one of its inits begins
with these two draws.
"""

import math

import torch
from torch import Tensor, nn

from lora_lab.init.check import check_matrix, check_rank


def random_factors(weight: Tensor, rank: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` of shape (out, in), on the CPU, in the weight's dtype.

    Only shape and dtype of `weight` are read; `scale` is unused. Bit-equal to PEFT's under the same global seed.
    Raises TypeError or ValueError for a weight that is no matrix or a rank outside 1 to min(out, in).
    """
    out_features, in_features = check_matrix(weight, meta=True).shape
    rank = check_rank(rank, min(weight.shape))
    A, B = torch.empty(rank, in_features), torch.empty(out_features, rank)
    for factor in (A, B):
        nn.init.kaiming_uniform_(factor, a=math.sqrt(5))  # sqrt(5) reproduces nn.Linear's own default
    return A.to(weight.dtype), B.to(weight.dtype)
