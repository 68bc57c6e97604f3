"""C = a b by the kernel that is fastest here.  a (n, k), b (k, m) -> C (n, m)

Three cases, for a LoRA layer's two large products and its four thin ones:
  one dtype              torch's own product; for fp32 on an x86 CPU oneDNN's instead of MKL's, which runs AVX2 code on
                         AMD processors even where they have AVX-512
  bf16 times fp32, CUDA  the fp32 factor as a sum of two bf16 numbers, high + low, side by side in one product: 16 bits
                         instead of fp32's 24, the bf16 factor is read once and never copied to fp32
  other mixed dtypes     the narrower factor as a copy in the wider dtype
Neither changes what a result is rounded to: sums are in fp32 (fp64 for fp64).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_ONEDNN = 2**21  # FLOPs below which oneDNN's 10 microseconds per call are more than it saves
SMALLEST_SPLIT = 2**22  # elements of the bf16 factor; below, the small kernels that split should cost more than a copy


def product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale · a b, in the wider of the two dtypes."""
    if a.dtype == b.dtype:
        if _onednn_suits(a, b):
            found = _onednn(a, b)
            return found if scale == 1 else found.mul_(scale)
        # beta = 0: the first argument is not read, and the scale costs no kernel of its own.
        return a @ b if scale == 1 else torch.addmm(a.new_empty(()), a, b, beta=0, alpha=scale)
    wide = torch.promote_types(a.dtype, b.dtype)
    if a.dtype == wide and splits(b, a):
        high_low = _wide_mm(split(a.T).T, b)
        found = high_low[: len(a)] + high_low[len(a) :]
    elif b.dtype == wide and splits(a, b):
        high_low = _wide_mm(a, split(b))
        found = high_low[:, : b.shape[1]] + high_low[:, b.shape[1] :]
    else:
        return product(a.to(wide), b.to(wide), scale)
    return found if scale == 1 else found.mul_(scale)


def linear(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b.  x (n, in), W (out, in)."""
    if _onednn_suits(x, W.T):
        return _onednn(x, W.T, bias)
    return F.linear(x, W, bias)


def add_product_(y: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """y += scale · a b in place, with one rounding to y's dtype.  a and b have one dtype, y may have another."""
    if y.dtype == a.dtype:
        return y.addmm_(a, b, alpha=scale)
    if splits(y, a):
        # (a₁ + a₂)(b₁ + b₂) without a₂ b₂, which is smaller than the last bit kept.
        return y.addmm_(split(a, "high low high"), split(b.T, "high high low").T, alpha=scale)
    if y.device.type == "cpu" and torch.promote_types(y.dtype, a.dtype) == a.dtype:
        # Adding an fp32 array to a bf16 one makes three fp32 arrays on a CPU, this makes one.
        return y.copy_(y.to(a.dtype).addmm_(a, b, alpha=scale))
    return y.add_(product(a, b), alpha=scale)


def splits(half: Tensor, wide: Tensor) -> bool:
    """Is bf16 times fp32 computed by splitting here? fp16 never: its exponents are too few for the low parts."""
    return (
        half.is_cuda
        and torch.version.hip is None
        and (half.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
        and half.numel() >= SMALLEST_SPLIT
    )


def split(wide: Tensor, order: str = "high low") -> Tensor:
    """fp32 (n, m) -> bf16 (n, parts · m): high = round(wide) and low = round(wide − high), side by side as named."""
    names = order.split()
    found = torch.empty(len(wide), len(names), wide.shape[1], dtype=torch.bfloat16, device=wide.device)
    high = found[:, 0].copy_(wide)
    for place, name in enumerate(names[1:], start=1):
        if name == "high":
            found[:, place].copy_(high)
        else:
            torch.sub(wide, high, out=found[:, place])
    return found.view(len(wide), -1)


def _wide_mm(a: Tensor, b: Tensor) -> Tensor:
    """bf16 times bf16, which fp32 holds exactly, summed and returned in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _onednn_suits(a: Tensor, b: Tensor) -> bool:
    return (
        ONEDNN
        and a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and 2 * a.shape[0] * a.shape[1] * b.shape[1] >= SMALLEST_ONEDNN
        and torch.backends.mkldnn.enabled
        and not torch.compiler.is_compiling()  # the compiler chooses its own kernels
    )


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")


ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.mkl.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
