"""What the tests of the fused layer share: shapes and dtypes, and the comparison of y and all gradients.

`LoRALinear` without `fused` and autograd are the reference; alpha is 2.5 times the rank, out is not in.
"""

import itertools

import torch
from models_for_tests import fill, linear
from torch import Tensor

from lora_lab import LoRALinear
from lora_lab.fused import lora_linear
from lora_lab.layer import oriented_weight

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FP32, FP64, BF16, FP16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
# out, in, rank, tokens
SHAPES = {
    "few tokens": (48, 16, 4, 5),
    "wide": (16, 48, 4, 30),
    "rank 1": (7, 5, 1, 3),
    "folded": (40, 24, 4, 300),
    "large": (96, 160, 8, 100),
    "large, folded": (160, 96, 8, 700),
    "one token": (24, 40, 4, 1),
    "no token": (24, 40, 4, 0),
}
KINDS = ("bias", "no bias", "Conv1D")
# dtype of the base, of A and B, and the largest difference of (y, dx, dA, dB), as a part of the largest entry. In half
# precision y and dx are rounded twice, as in the plain layer, but not always in the same order.
DTYPES = {
    "fp32": (FP32, FP32, (1e-5, 1e-5, 1e-5, 1e-5)),
    "fp64": (FP64, FP64, (1e-13, 1e-13, 1e-13, 1e-13)),
    "bf16, fp32 A B": (BF16, FP32, (2**-7, 2**-7, 1e-5, 1e-5)),
    "fp16, fp32 A B": (FP16, FP32, (2**-10, 2**-10, 1e-5, 1e-5)),
    "bf16": (BF16, BF16, (2**-6,) * 4),
    "fp32, bf16 A B": (FP32, BF16, (2**-6,) * 4),
}
NEEDS = list(itertools.product([True, False], repeat=3))[:-1]  # which of x, A, B get a gradient


def layer_of(out, in_, rank, kind="bias", dtype=FP32, factors=None, device="cpu") -> LoRALinear:
    layer = LoRALinear(linear(out, in_, kind == "bias", dtype, kind == "Conv1D"), rank, 2.5 * rank)
    fill(layer).to(device)
    for factor in (layer.A, layer.B):
        factor.data = factor.data.to(factors or factor.dtype)
    return layer.train()


def fused(layer: LoRALinear, x: Tensor, dropped: Tensor | None = None) -> Tensor:
    return lora_linear(x, oriented_weight(layer.base), layer.base.bias, layer.A, layer.B, layer.scale, dropped)


def input_of(*shape: int, dtype=FP32, device="cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(device, dtype)


def results(layer: LoRALinear, forward, x: Tensor, amp: torch.dtype | None = None) -> list[Tensor | None]:
    """y and the gradients of x, A and B."""
    x = x.detach().requires_grad_(x.requires_grad)
    layer.zero_grad()
    with torch.autocast(x.device.type, amp, enabled=amp is not None):
        y = forward(layer, x)
    if y.requires_grad:
        dy = torch.linspace(-1, 1, y.numel(), dtype=FP64, device=y.device).sin().to(y.dtype)
        y.backward(dy.view(y.shape))
    return [y.detach(), x.grad, layer.A.grad, layer.B.grad]


def assert_same(ours, theirs, bounds=DTYPES["fp32"][2]) -> None:
    assert len(ours) == len(theirs)
    for name, a, b, bound in zip(("y", "dx", "dA", "dB"), ours, theirs, bounds, strict=False):
        assert (a is None) == (b is None), name
        if b is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name
            largest = b.double().abs().max().item() if b.numel() else 0.0
            torch.testing.assert_close(
                a, b, rtol=0, atol=bound * largest, msg=lambda text, name=name: f"{name}: {text}"
            )
