"""Microsoft's default start: A random, B zero, so that s·BA = 0 and the adapted model answers like its base.

A (rank, in) ~ U(-1/sqrt(in), 1/sqrt(in)), variance 1/(3·in);  B (out, rank) = 0.  The base weight is left as it is.
Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1, as loralib and PEFT implement it. The paper's text says
"Gaussian"; both implementations draw from the uniform distribution above.
"""

import math

from torch import Tensor, nn

from lora_lab.init.random import random_factors


def default_factors(weight: Tensor, rank: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) for a `weight` of shape (out, in), on the CPU, in the weight's dtype.

    Only shape and dtype of `weight` are read; `scale` is unused. Under the same global seed the result is bit-equal to
    PEFT's, which draws in fp32 and rounds to the base's dtype before it keeps A in fp32.
    Raises TypeError or ValueError as `random_factors` does.
    """
    A, B = random_factors(weight, rank)  # PEFT's first two draws: A is drawn anew, and B becomes zero
    A = nn.init.kaiming_uniform_(A.float(), a=math.sqrt(5))  # sqrt(5) reproduces nn.Linear's own default
    return A.to(weight.dtype), B.zero_()
