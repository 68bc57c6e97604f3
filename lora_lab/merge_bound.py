"""What a merged weight should be, and how far from it a right merge may be.

For each entry, with W* = W + s·BA computed here in fp64, by none of the functions that merge, and W' the merged weight:

    |W' - W*| <= u·|W*| + e + tiny,      e = (r + 3)·2⁻²⁴·(|W| + |s|·‖B_i‖·‖A_j‖),    u = half the spacing in W's dtype

u·|W*| is the one rounding that no merge can avoid; e is the product and the sum in fp32 (Higham 2002, "Accuracy and
Stability of Numerical Algorithms", section 3.1; ‖B_i‖·‖A_j‖ by Cauchy-Schwarz): r roundings for the product, one each
for the scale and for adding W, and one more that pays for products of roundings, as long as r stays below 200.
Assumed: rounding to nearest, fp32 that is fp32 (no TF32), no overflow. With DoRA W* = (m/n)∘(W + s·BA), and e
is multiplied by m/n and grows by what the row lengths n lose. Into 4 or 8 bits the first term is what the codes can
miss. An fp64 base is computed in fp64 on both sides.
"""

import torch
from torch import Tensor, nn

from lora_lab.base import is_quantized, oriented_weight
from lora_lab.layer import LoRALinear


@torch.no_grad()
def exact_merge(layer: LoRALinear, merged_base: nn.Module) -> tuple[Tensor, Tensor]:
    """W* and the largest |W' - W*| of a right merge of `layer` into `merged_base`, both (out, in), fp64."""
    W = oriented_weight(layer.base, wide=True).double()
    A, B = (factor.double() for factor in layer.factors())
    wide = torch.promote_types(layer.A.dtype, torch.float32)
    unit = torch.finfo(wide).eps / 2
    exact = W + layer.scale * (B @ A)
    error = (A.shape[0] + 3) * unit * (W.abs() + abs(layer.scale) * torch.outer(B.norm(dim=1), A.norm(dim=0)))
    magnitude = getattr(layer, "magnitude", None)
    if magnitude is not None:
        lengths = exact.norm(dim=1)
        ratio = (magnitude.double() / lengths.masked_fill(lengths == 0, 1))[:, None]
        relative = error.norm(dim=1) / lengths.masked_fill(lengths == 0, 1) + (W.shape[1] + 4) * unit
        error = ratio.abs() * (error + relative[:, None] * exact.abs())
        exact = ratio * exact
    if is_quantized(merged_base):
        from lora_lab.quantize import error_bound

        return exact, error + error_bound(merged_base.quantized, wide).double()
    return exact, error + _rounding(exact.abs() + error, oriented_weight(merged_base).dtype)


@torch.no_grad()
def exact_expert_merge(update: nn.Module, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """W* and its bound for a tensor of experts, in the layout of `weight`."""
    A, B = (factor.double() for factor in update.factors())
    unit = torch.finfo(torch.promote_types(update.A.dtype, torch.float32)).eps / 2
    delta, sizes = B @ A, B.norm(dim=2)[:, :, None] * A.norm(dim=1)[:, None, :]
    if update.transposed:
        delta, sizes = delta.mT, sizes.mT
    exact = weight.double() + update.scale * delta
    error = (A.shape[1] + 3) * unit * (weight.double().abs() + abs(update.scale) * sizes)
    return exact, error + _rounding(exact.abs() + error, dtype)


def _rounding(size: Tensor, dtype: torch.dtype) -> Tensor:
    """The most that rounding a number of this size to `dtype` can change, subnormal ones included."""
    info = torch.finfo(dtype)
    return size * info.eps / 2 + info.tiny * info.eps / 2
