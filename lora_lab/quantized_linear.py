"""y = Ŵ x + b, with Ŵ (out, in) held as codes and scales, and unpacked only while it is used.

    dx = Ŵᵀ dy        the only gradient: Ŵ and b are frozen

QLoRA (Dettmers et al. 2023, arXiv:2305.14314, equation 5) puts LoRA beside such a layer. The unpacked Ŵ is not kept
for the backward pass, which unpacks it again: what stays in memory between the two are the codes, which are there
anyway.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.base import is_linear, is_quantized, oriented_weight, refuse_many, refuse_unwritable
from lora_lab.init.check import check_matrix
from lora_lab.inject import lora_layers, replace_modules
from lora_lab.modes import autocasts
from lora_lab.quantize import QuantizedTensor, quantize
from lora_lab.targets import find_targets


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, quantized: QuantizedTensor) -> Tensor:
        ctx.quantized = quantized
        ctx.save_for_backward(*quantized.tensors.values())  # the codes and scales, not Ŵ
        return F.linear(x, quantized.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        _ = ctx.saved_tensors  # raises if the layer was requantized in between
        return dy @ ctx.quantized.dequantize(dy.dtype), None, None


# Unpacking by chunks is a loop that torch.compile would unroll: it runs as it is, between two compiled graphs.
_linear = torch.compiler.disable(_Linear.apply)


class QuantizedLinear(nn.Module):
    """A frozen linear layer of 4- or 8-bit weights. Made by `from_linear`.

    It computes in the dtype of its input (under autocast, of autocast). Its buffers are the tensors of the
    `QuantizedTensor` that `quantized` returns, the scales as the bits of integers; `bias` (out,) is a frozen parameter
    or None; `dtype` is that of the weight before. Moving the layer to another dtype moves the bias only.

    Args:
        quantized: the weight (out, in).
        bias: (out,), copied.
    """

    def __init__(self, quantized: QuantizedTensor, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = quantized.shape
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ValueError(f"bias must have the shape ({self.out_features},), got {tuple(bias.shape)}")
        self.dtype, self.kind, self.block_size = quantized.dtype, quantized.kind, quantized.block_size
        self.double = quantized.double
        for name in ("codes", "absmax", "absmax_scale", "absmax_mean"):
            self.register_buffer(name, _as_bits(quantized.tensors.get(name)))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    @classmethod
    def from_linear(
        cls, linear: nn.Module, kind: str = "nf4", block_size: int | None = None, double: bool | None = None
    ) -> "QuantizedLinear":
        """The quantized form of an `nn.Linear` or `Conv1D`, which is left as it is; settings as in `quantize`.

        Raises TypeError for another module, and TypeError or ValueError as `quantize` does.
        """
        if not is_linear(linear) or is_quantized(linear):
            raise TypeError(f"only nn.Linear and Conv1D can be quantized, got {type(linear).__name__}")
        layer = cls(quantize(oriented_weight(linear), kind, block_size, double), linear.bias)
        return layer.train(linear.training)

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight as a `QuantizedTensor` over the same memory."""
        held = (self.codes, self.absmax, self.absmax_scale, self.absmax_mean)
        shape = (self.out_features, self.in_features)
        return QuantizedTensor(*map(_from_bits, held), shape, self.dtype, self.kind, self.block_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> y (..., out), in the dtype of x."""
        device = x.device.type
        if autocasts(device) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        return _linear(x, None if self.bias is None else self.bias.to(x.dtype), self.quantized)

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """Ŵ (out, in) as a new tensor, in `dtype` (None: that of the weight before)."""
        return self.quantized.dequantize(dtype)

    @torch.no_grad()
    def requantize_(self, weight: Tensor) -> "QuantizedLinear":
        """Hold another `weight` (out, in), any float dtype, in place; kind, block size and dtype stay. Returns self.

        Raises TypeError or ValueError, with nothing changed, for another shape, or for what `quantize` refuses, or for
        numbers that the layer's dtype cannot hold.
        """
        shape = (self.out_features, self.in_features)
        if isinstance(weight, Tensor) and tuple(weight.shape) != shape:
            raise ValueError(f"the layer holds a weight of shape {shape}, got {tuple(weight.shape)}")
        new = quantize(weight, self.kind, self.block_size, self.double)
        largest, limit = weight.detach().abs().max(), torch.finfo(self.dtype).max
        if largest > limit:
            raise ValueError(f"the layer's dtype {self.dtype} holds numbers up to {limit:.3g}, got {largest:.3g}")
        for name, tensor in new.tensors.items():
            self._buffers[name].copy_(_as_bits(tensor))
        return self

    def extra_repr(self) -> str:
        bits = 8 * self.quantized.nbytes / (self.in_features * self.out_features)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"kind={self.kind}, block_size={self.block_size}, double={self.double}, bits={bits:.3f}"
        )


def quantize_model_(
    model: nn.Module,
    targets: str | Iterable[str] = "all-linear",
    kind: str = "nf4",
    block_size: int | None = None,
    double: bool | None = None,
) -> nn.Module:
    """Replace the target layers by their quantized form, in place, at every path that leads to them. Returns the model.

    `targets` as in `find_targets`: "all-linear" leaves the output head alone. The other settings as in `quantize`.
    Nothing else is frozen; `inject` does that.

    Raises TypeError or ValueError with the model untouched: an adapter in it (quantize first, or use `inject`'s
    `quantize`), a target that matches nothing, no linear layer or one that is quantized already, a weight that another
    module shares (a tied head) or that is computed (weight norm), or a weight or setting that `quantize` refuses.
    """
    if lora_layers(model):
        raise ValueError("the model carries an adapter: quantize before inject, or let inject(quantize=...) do it")
    refuse_many(model)
    found = find_targets(model, targets)
    again = [name for name, layer in found.items() if is_quantized(layer)]
    if again:
        raise ValueError(f"{len(again)} layers are quantized already ({again[0]}, ...): name the others")
    for name, layer in found.items():
        check_matrix(oriented_weight(layer), f"{name}.weight")
    refuse_unwritable(model, found)
    new = {}
    for name, layer in found.items():
        try:
            new[layer] = QuantizedLinear.from_linear(layer, kind, block_size, double)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    replace_modules(model, new)
    return model


# fp32 buffers would be rounded by `model.half()` or `model.to(torch.bfloat16)`. Integers are left alone.
def _as_bits(tensor: Tensor | None) -> Tensor | None:
    return tensor.view(torch.int32) if tensor is not None and tensor.is_floating_point() else tensor


def _from_bits(tensor: Tensor | None) -> Tensor | None:
    return tensor.view(torch.float32) if tensor is not None and tensor.dtype == torch.int32 else tensor
