"""One adapted linear layer, forward and backward: ours with `fused=True` beside PEFT's with the same A and B.

The limit in the table is what the ratio would be if the adapter cost nothing: the time of the two products with the
frozen weight, made as we make them. On a CPU the group "torch's products" leaves oneDNN out, so that what is left of
the ratio comes from the fewer passes alone.
"""

import itertools
from collections.abc import Callable, Iterator

import peft
import torch
from torch import Tensor, nn

from benchmarks.timing import Case, device
from lora_lab import LoRALinear, fused_products

WIDTHS = (256, 512, 1024, 2048, 4096)
TOKENS = (256, 1024, 4096, 8192)
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
BOUND = {torch.float32: 2e-5, torch.bfloat16: 3e-2}  # the largest difference, as a part of the largest entry


def cases(quick: bool) -> Iterator[Case]:
    widths, tokens = ((256, 1024), (256, 1024)) if quick else (WIDTHS, TOKENS)
    grid = list(itertools.product(widths, tokens))
    few = [(w, n) for w, n in grid if n in (1024, 4096)]
    fp32, bf16 = torch.float32, torch.bfloat16
    if device().type == "cuda":
        goals = {(16, bf16, fp32): 1.3, (16, bf16, bf16): 1.3}
        for rank, base, adapter in [(16, bf16, fp32), (16, bf16, bf16), (64, bf16, fp32), (16, fp32, fp32)]:
            for width, n in grid if (rank, base) == (16, bf16) else few:
                yield case(width, n, rank, base, adapter, goals.get((rank, base, adapter)))
        return
    for width, n in grid:
        yield case(width, n, 16, fp32, fp32, goal=1.25)
    for width, n in few:
        yield case(width, n, 16, fp32, fp32, own=False)
    for rank, base in () if quick else ((8, fp32), (64, fp32), (16, bf16)):
        for width, n in few:
            yield case(width, n, rank, base, fp32)


def case(
    width: int, tokens: int, rank: int, base: torch.dtype, adapter: torch.dtype, goal: float | None = None, own=True
) -> Case:
    """A square layer of this width, alpha = 1.5 rank."""
    theirs = peft_layer(width, rank, base, adapter)
    W, bias = theirs.base_layer.weight, theirs.base_layer.bias
    A, B = (factor["default"].weight for factor in (theirs.lora_A, theirs.lora_B))
    ours = LoRALinear(theirs.base_layer, rank, 1.5 * rank, fused=True)
    ours.A.data, ours.B.data = A.detach().clone(), B.detach().clone()
    x = torch.randn(tokens, width, device=device(), dtype=base).requires_grad_()
    dy = torch.randn(tokens, width, device=device(), dtype=base)

    def floor() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return fused_products.linear(x, W, bias), fused_products.product(dy, W)

    kind = f"rank {rank}, " + (
        "fp32" if base == torch.float32 else f"bf16, {'fp32' if adapter != base else 'bf16'} A B"
    )
    limited = (lambda function: function) if own else with_torch_products
    return Case(
        topic="layer",
        group=kind if own else f"{kind}, torch's products",
        name=f"{kind}, {width} wide, {tokens} tokens" + ("" if own else ", torch's"),
        ours=limited(step(ours, x, dy, ours.A, ours.B)),
        theirs=step(theirs, x, dy, A, B),
        floor=limited(floor),
        goal=goal,
        check=lambda ours, theirs: difference(ours, theirs, BOUND[base]),
        memory=True,
    )


def peft_layer(width: int, rank: int, base: torch.dtype, adapter: torch.dtype) -> nn.Module:
    """PEFT's layer, with a random B as if trained."""
    config = peft.LoraConfig(r=rank, lora_alpha=1.5 * rank, target_modules=["0"])
    frozen = nn.Sequential(nn.Linear(width, width, device=device(), dtype=base))
    model = peft.get_peft_model(frozen, config, autocast_adapter_dtype=adapter != base)
    layer = model.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight, std=rank**-0.5)
    return layer


def step(forward: Callable, x: Tensor, dy: Tensor, A: Tensor, B: Tensor) -> Callable:
    """A call that runs forward and backward and returns y and the gradients of x, A and B."""

    def run() -> tuple[Tensor, ...]:
        y = forward(x)
        y.backward(dy)
        found = y.detach(), x.grad, A.grad, B.grad
        x.grad = A.grad = B.grad = None
        return found

    return run


def with_torch_products(function: Callable) -> Callable:
    def run() -> object:
        was, fused_products.ONEDNN = fused_products.ONEDNN, False
        try:
            return function()
        finally:
            fused_products.ONEDNN = was

    return run


def difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], bound: float) -> float:
    """The largest difference in y, dx, dA or dB, as a part of the largest entry. AssertionError above the bound."""
    apart = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)]
    assert max(apart) <= bound, f"y, dx, dA, dB differ by {apart}, more than {bound}"
    return max(apart)
