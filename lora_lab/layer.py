"""y = W x + b + s·B(A x).   W (out, in) and b (out) frozen; A (rank, in); B (out, rank); s = alpha / rank.

Source: Hu et al. 2021 (arXiv:2106.09685), equation 3. With rsLoRA s = alpha / sqrt(rank) (Kalajdzievski 2023,
arXiv:2312.03732).
"""

from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.adapter import scale_of
from lora_lab.base import is_linear, is_quantized, oriented_weight, weight_shape
from lora_lab.fused import lora_linear
from lora_lab.init import Init, Start, resolve
from lora_lab.init.check import check_positive, check_rank
from lora_lab.product import add_low_rank


def check_settings(base: nn.Module, rank: int, alpha: float, dropout: float) -> None:
    """Raise TypeError or ValueError, naming value and limit, if `base` cannot carry such an adapter."""
    if not is_linear(base):
        raise TypeError(f"LoRA wraps nn.Linear, Conv1D and QuantizedLinear, got {type(base).__name__}")
    if not is_quantized(base) and not base.weight.is_floating_point():
        raise TypeError(f"the base weight must be floating point, got {base.weight.dtype}: dequantize it first")
    check_rank(rank, min(weight_shape(base)))
    check_positive(alpha, "alpha")
    if isinstance(dropout, bool) or not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update beside it.

    Args:
        base: `nn.Linear`, `Conv1D` or `QuantizedLinear`, any dtype and device. It is kept, not copied, and frozen.
        rank: inner dimension of the update, 1 to min(out, in).
        alpha: numerator of the scale.
        dropout: probability of dropping an input of the adapter path (the base path sees every input).
        rslora: divide alpha by sqrt(rank) instead of rank.
        init: a function `(weight (out, in), rank, scale) -> (A, B)` or `Start`, or a name from `lora_lab.init.INITS`.
        fused: compute with `lora_lab.fused`: the same numbers to rounding, in fewer passes over memory. Hooks of the
            base are not called then; a quantized base has a product of its own, and is not fused.

    A and B are fp32, also beside an fp16 or bf16 base, as in PEFT; fp64 beside an fp64 base. Both are copies of what
    `init` returns (PEFT rounds what it draws at random to the base's dtype first, and so do the inits here). While
    `merged` the update is in the base weight, and the adapter path is skipped.

    An init with a shift (PiSSA, ...) wants W - s·B0 A0 as its base. The constructor leaves the base alone: until
    `inject` or `lora_lab.shift` puts the shift into the base, the layer computes W x + s·(BA - B0 A0) x, which is the
    same function at the price of twice the rank.

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
        init: Init | str | bool = True,
        fused: bool = False,
    ):
        super().__init__()
        check_settings(base, rank, alpha, dropout)
        # Plain numbers, also where numpy's came in: they are printed and written to JSON.
        rank, alpha = int(rank), int(alpha) if isinstance(alpha, Integral) else float(alpha)
        self.rank, self.alpha, self.rslora = rank, alpha, rslora
        self.scale = scale_of(rank, alpha, rslora)
        weight = oriented_weight(base)
        start = Start(*resolve(init)(weight, rank, self.scale))
        shapes = (rank, weight.shape[1]), (weight.shape[0], rank)
        for A, B in filter(None, ((start.A, start.B), start.shift)):
            if (tuple(A.shape), tuple(B.shape)) != shapes:
                raise ValueError(f"init must return A and B of shapes {shapes}, got {tuple(A.shape)}, {tuple(B.shape)}")
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32

        def own(factor: Tensor) -> Tensor:
            # A copy: an init may well return a view of the weight, or one tensor for several layers. In one layout, so
            # that what a file gives back computes to the bit what the init's own layout (LAPACK's, say) did.
            return factor.detach().to(weight.device, wide, copy=True, memory_format=torch.contiguous_format)

        self.A = nn.Parameter(own(start.A), requires_grad="A" in start.trains)
        self.B = nn.Parameter(own(start.B), requires_grad="B" in start.trains)
        for name, factor in zip(("A0", "B0"), start.shift or (None, None), strict=True):
            self.register_buffer(name, None if factor is None else own(factor), persistent=False)
        self.shifted = False  # is the shift in the base?
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(float(dropout)) if dropout else nn.Identity()
        self.fused, self.merged = fused, False
        # Holds the exact base weight while merged, if the caller asked for it; moves with the module, is never saved.
        self.register_buffer("kept_weight", None, persistent=False)
        self.train(base.training)  # in a model that is being evaluated, dropout is off from the start

    def base_changed(self) -> None:
        """To be called after `base` was replaced: what a variant has derived from its weight has to be derived anew."""

    def factors(self) -> tuple[Tensor, Tensor]:
        """The A and B of the update to the base as it is: with a pending shift [A; A0] and [B, -B0], rank 2r."""
        if self.A0 is None or self.shifted:
            return self.A, self.B
        return torch.cat([self.A, self.A0]), torch.cat([self.B, -self.B0], dim=1)

    @property
    def dropout_is_on(self) -> bool:
        return isinstance(self.dropout, nn.Dropout) and self.dropout.training

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> y (..., out), in the dtype that the base layer returns."""
        if self.merged:
            return self.base(x)
        A, B = self.factors()
        if self.fused and not is_quantized(self.base):
            dropped = self.dropout(x.to(A.dtype)) if self.dropout_is_on else None
            return lora_linear(x, oriented_weight(self.base), self.base.bias, A, B, self.scale, dropped)
        y = self.base(x)
        update = F.linear(F.linear(self.dropout(x.to(A.dtype)), A), B)
        return (y + self.scale * update).to(y.dtype)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW = s·BA (out, in) to the base as it is, in fp32 or better."""
        A, B = self.factors()
        wide = torch.promote_types(A.dtype, torch.float32)
        return self.scale * (B.to(wide) @ A.to(wide))

    def fold(self, weight: Tensor, out: Tensor) -> Tensor:
        """Write W + s·BA (out, in), summed in fp32 or better and rounded once, to `out`, which may be `weight`."""
        return add_low_rank(weight, *self.factors(), self.scale, out)

    def unfold(self, weight: Tensor, out: Tensor) -> Tensor:
        """The inverse of `fold`, to rounding."""
        return add_low_rank(weight, *self.factors(), -self.scale, out)

    def refuse_unfold(self) -> None:
        """Raise ValueError where `unfold` would, before anything is written."""

    @torch.no_grad()
    def fold_bound(self, largest: Tensor) -> Tensor:
        """A number that no entry of W + s·BA exceeds, given the `largest` entry of W: |s·BA|_ij <= s·|B_i|·|A_j|."""
        A, B = self.factors()
        return largest + self.scale * B.norm(dim=1).max() * A.norm(dim=0).max()

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, scale={self.scale:g}, merged={self.merged}"
