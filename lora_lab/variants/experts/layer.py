"""W_e + s·B_e A_e for every expert e of a mixture.   W (experts, out, in) frozen; s = alpha / rank.

A (rank·experts, in), A_e = A[e·rank : (e+1)·rank];   B (out, rank·experts), B_e = B[:, e::experts]

transformers 5 stores the experts of a layer as one tensor (Mixtral: `mlp.experts.gate_up_proj` and `down_proj`), which
no `nn.Linear` holds. The layout of A and B is that of PEFT's `target_parameters`.

What it costs: the experts' own code wants whole tensors, so each forward pass forms W + s·BA for all experts. That is
a second tensor of W's size for each adapted layer, kept until the backward pass (with activation checkpointing: of one
layer at a time); a gradient of that size in the backward pass, and its FLOPs; and in half precision a sum in which an
update of less than half a unit of W's last place is lost. `fused` forms none of these: see `products`.
"""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lora_lab.adapter import scale_of
from lora_lab.init.check import check_positive, check_rank
from lora_lab.product import add_low_rank
from lora_lab.variants.experts.products import experts_by_products

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class ExpertUpdate(nn.Module):
    """ΔW_e = s·B_e A_e, for every expert e of one tensor.

    Args:
        weight: (experts, out, in), or (experts, in, out) if `transposed`. Only shape, dtype and device are read.
        rank: of each expert's update, 1 to min(out, in).
        init: True (A uniform, B zero), "gaussian" (A normal with deviation 1 / rank, B zero), False (both uniform), or
            A and B themselves, which are copied.

    A and B are fp32, or fp64 beside fp64. Under the same global seed they are bit-equal to PEFT's.
    Raises TypeError or ValueError, naming value and limit, if `weight` cannot carry such an update.
    """

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        alpha: float,
        rslora: bool = False,
        init: bool | str | tuple[Tensor, Tensor] = True,
        transposed: bool = False,
    ):
        super().__init__()
        check_expert_settings(weight, rank, alpha, init)
        self.rank, self.alpha = int(rank), int(alpha) if isinstance(alpha, Integral) else float(alpha)
        self.rslora, self.transposed, self.scale = rslora, transposed, scale_of(self.rank, self.alpha, rslora)
        self.experts, *shape = weight.shape
        out_features, in_features = reversed(shape) if transposed else shape
        shapes = (self.rank * self.experts, in_features), (out_features, self.rank * self.experts)
        # PEFT rounds what it draws to the dtype of W, then widens it.
        A, B = init if isinstance(init, tuple) else (f.to(weight.dtype) for f in _draw(*shapes, self.rank, init))
        if (tuple(A.shape), tuple(B.shape)) != shapes:
            raise ValueError(f"A and B must have the shapes {shapes}, got {tuple(A.shape)}, {tuple(B.shape)}")
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.A, self.B = (nn.Parameter(f.detach().to(weight.device, wide, copy=True)) for f in (A, B))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A_e and B_e of all experts, (experts, rank, in) and (experts, out, rank): views."""
        A = self.A.unflatten(0, (self.experts, self.rank))
        return A, self.B.unflatten(1, (self.rank, self.experts)).permute(2, 0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """W + s·BA for all experts, in the layout and dtype of W, as PEFT computes it."""
        A, B = (factor.to(weight.dtype) for factor in self.factors())
        left, right = (A.mT, B.mT) if self.transposed else (B, A)
        with torch.autocast(weight.device.type, enabled=False):
            return torch.baddbmm(weight, left, right, alpha=self.scale)

    @torch.no_grad()
    def fold(self, weight: Tensor, out: Tensor, sign: int = 1) -> None:
        """Write W + sign·s·BA, in the layout of W, to `out`, which may be `weight`: one expert after the other, summed
        in fp32 or better and rounded once."""
        for w, o, A, B in zip(weight, out, *self.factors(), strict=True):
            add_low_rank(w.mT if self.transposed else w, A, B, sign * self.scale, o.mT if self.transposed else o)

    @torch.no_grad()
    def fold_bound(self, weight: Tensor) -> Tensor:
        """A number that no entry of W + s·BA exceeds: |s·B_e A_e|_ij <= s·|B_e,i|·|A_e,j|. NaN if anything is."""
        A, B = self.factors()
        return weight.abs().max().to(A.dtype) + self.scale * (B.norm(dim=2).amax(1) * A.norm(dim=1).amax(1)).max()

    def extra_repr(self) -> str:
        return f"experts={self.experts}, rank={self.rank}, alpha={self.alpha:g}, scale={self.scale:g}"


class LoRAExperts(nn.Module):
    """A module that holds tensors of experts, with an update beside some of them. `inject_experts` makes them.

    `updates` maps names of tensors of `base` to their `ExpertUpdate`. `base` is kept, not copied, and frozen. While
    `merged` the updates are in the tensors. `fused`: see `products`; the base must have passed `refuse_other_experts`.
    """

    def __init__(self, base: nn.Module, updates: Mapping[str, ExpertUpdate], fused: bool = False):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.updates = nn.ModuleDict(updates)
        self.fused, self.merged = fused, False
        self.train(base.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What `base` returns with its tensors updated."""
        if self.merged:
            return self.base(*args, **kwargs)
        if self.fused:
            return experts_by_products(self.base, self.updates, *args, **kwargs)
        weights = {name: update(getattr(self.base, name)) for name, update in self.updates.items()}
        return functional_call(self.base, weights, args, kwargs)

    def extra_repr(self) -> str:
        return f"merged={self.merged}"


def check_expert_settings(weight: Tensor, rank: int, alpha: float, init: Any = True) -> None:
    """Raise TypeError or ValueError, naming value and limit, if `weight` cannot carry such an update."""
    if weight.ndim != 3 or weight.numel() == 0:
        raise ValueError(f"experts are a tensor (experts, out, in), got the shape {tuple(weight.shape)}")
    if weight.dtype not in DTYPES:
        raise TypeError(f"the experts must be fp64, fp32, bf16 or fp16, got {weight.dtype}: dequantize them first")
    check_rank(rank, min(weight.shape[1:]))
    check_positive(alpha, "alpha")
    if not isinstance(init, bool | tuple) and init != "gaussian":
        raise ValueError(f"init of experts must be True, False or 'gaussian', got {init!r}")


def _draw(shape_a: tuple[int, int], shape_b: tuple[int, int], rank: int, init: bool | str) -> tuple[Tensor, Tensor]:
    A, B = torch.empty(shape_a), torch.empty(shape_b)
    # sqrt(5) reproduces nn.Linear's own default. PEFT builds two nn.Linear, then draws A anew.
    for factor in (A, B):
        nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
    if init == "gaussian":
        nn.init.normal_(A, std=1 / rank)
    elif init:
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return A, B.zero_() if init else B
