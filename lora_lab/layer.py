"""y = W x + b + s·B(A x).   W (out, in) and b (out) frozen; A (rank, in); B (out, rank); s = alpha / rank.

Source: Hu et al. 2021 (arXiv:2106.09685), equation 3. With rsLoRA s = alpha / sqrt(rank) (Kalajdzievski 2023,
arXiv:2312.03732).
"""

import math
import sys
from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.init import default_factors

Init = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]


def scale_of(rank: int, alpha: float, rslora: bool = False) -> float:
    """The factor s in front of BA: alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def is_conv1d(module: nn.Module) -> bool:
    """True for GPT-2's `Conv1D`: a linear layer that stores its weight as (in, out)."""
    # Looked up, not imported: transformers stays optional, and no Conv1D exists before it is loaded.
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    return pytorch_utils is not None and isinstance(module, pytorch_utils.Conv1D)


def is_linear(module: nn.Module) -> bool:
    """True for the layers that LoRA can wrap: `nn.Linear` and GPT-2's `Conv1D`."""
    # nn.MultiheadAttention reads the weight of its out_proj without ever calling the module.
    uncalled = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return (isinstance(module, nn.Linear) and not uncalled) or is_conv1d(module)


def oriented_weight(base: nn.Module) -> Tensor:
    """The weight of a linear layer as (out, in): a view, also for `Conv1D`."""
    return base.weight.T if is_conv1d(base) else base.weight


def check_settings(base: nn.Module, rank: int, alpha: float, dropout: float) -> None:
    """Raise TypeError or ValueError, naming value and limit, if `base` cannot carry such an adapter."""
    if not is_linear(base):
        raise TypeError(f"LoRA wraps nn.Linear and Conv1D, got {type(base).__name__}")
    if not base.weight.is_floating_point():
        raise TypeError(f"the base weight must be floating point, got {base.weight.dtype}: dequantize it first")
    limit = min(base.weight.shape)
    if isinstance(rank, bool) or not isinstance(rank, Integral) or not 1 <= rank <= limit:
        raise ValueError(f"rank must be a whole number from 1 to min(out, in) = {limit}, got {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a positive finite number, got {alpha!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update beside it.

    Args:
        base: `nn.Linear` or `Conv1D`, any floating dtype and device. It is kept, not copied, and frozen.
        rank: inner dimension of the update, 1 to min(out, in).
        alpha: numerator of the scale.
        dropout: probability of dropping an input of the adapter path (the base path sees every input).
        rslora: divide alpha by sqrt(rank) instead of rank.
        init: `(weight (out, in), rank, scale) -> (A, B)`.

    A and B are fp32, also beside an fp16 or bf16 base, as in PEFT; fp64 beside an fp64 base. Both are copies of what
    `init` returns. While `merged` the update is in the base weight, and the adapter path is skipped.

    Raises:
        TypeError: `base` is no linear layer, or its weight is not floating point.
        ValueError: a setting is outside its limits, or `init` returns the wrong shapes.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        init: Init = default_factors,
    ):
        super().__init__()
        check_settings(base, rank, alpha, dropout)
        # Plain numbers, also where numpy's came in: they are printed and written to JSON.
        rank, alpha = int(rank), int(alpha) if isinstance(alpha, Integral) else float(alpha)
        self.rank, self.alpha, self.rslora = rank, alpha, rslora
        self.scale = scale_of(rank, alpha, rslora)

        weight = oriented_weight(base)
        A, B = init(weight, rank, self.scale)
        expected = (rank, weight.shape[1]), (weight.shape[0], rank)
        if (tuple(A.shape), tuple(B.shape)) != expected:
            raise ValueError(f"init must return A and B of shapes {expected}, got {tuple(A.shape)}, {tuple(B.shape)}")
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        kept = {"device": weight.device, "dtype": wide}
        # A copy: an init may well return a view of the weight, or one tensor for several layers.
        self.A = nn.Parameter(A.detach().to(**kept, copy=True))
        self.B = nn.Parameter(B.detach().to(**kept, copy=True))
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.merged = False
        # Holds the exact base weight while merged, if the caller asked for it; moves with the module, is never saved.
        self.register_buffer("kept_weight", None, persistent=False)
        self.train(base.training)  # in a model that is being evaluated, dropout is off from the start

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> y (..., out), in the dtype that the base layer returns."""
        y = self.base(x)
        if self.merged:
            return y
        update = F.linear(F.linear(self.dropout(x.to(self.A.dtype)), self.A), self.B)
        return (y + self.scale * update).to(y.dtype)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW = s·BA (out, in), in fp32 or better."""
        wide = torch.promote_types(self.A.dtype, torch.float32)
        return self.scale * (self.B.to(wide) @ self.A.to(wide))

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, scale={self.scale:g}, merged={self.merged}"
