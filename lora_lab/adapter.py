"""An adapter as plain data: what is left of LoRA when the model is taken away.

An `Adapter` maps the path of each adapted layer to its `Factors`. Files, merging of several adapters and models that
carry many adapters all speak in these.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def scale_of(rank: int, alpha: float, rslora: bool = False) -> float:
    """The factor s in front of BA: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


class Factors(NamedTuple):
    """One layer's update ΔW = s·BA.  A (rank, in); B (out, rank); s = alpha / rank, or alpha / √rank with rsLoRA.

    With DoRA `magnitude` (out,) holds the length of each row of W + ΔW.
    """

    A: Tensor
    B: Tensor
    alpha: float
    rslora: bool = False
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def scale(self) -> float:
        return scale_of(self.rank, self.alpha, self.rslora)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """ΔW = s·BA (out, in), in fp32 or better."""
        wide = torch.promote_types(torch.promote_types(self.A.dtype, self.B.dtype), torch.float32)
        return self.scale * (self.B.to(wide) @ self.A.to(wide))


Adapter = dict[str, Factors]
