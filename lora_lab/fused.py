"""y = x Wᵀ + b + s·(x Aᵀ) Bᵀ as one autograd function: the numbers of `LoRALinear`, in fewer passes over memory.

    x (..., in) -> y (..., out);   W (out, in), b (out) frozen;   A (rank, in), B (out, rank) trained

    forward     h = x Aᵀ        y = x Wᵀ + b, then y += s·h Bᵀ in place
    backward    H = s·G B       dA = Hᵀ x     dB = s·Gᵀ h     dx = G W, then dx += H A in place     (G = dy)

Written as separate operations, the layer makes three arrays more of the size of y on the way forward (the update, the
update times s, the sum) and two more on the way back. Here there are none, and only x, h (tokens, rank) and the
weights themselves are kept for backward.

Folding: where tokens are many, W' = W + s·BA is formed for the moment, and y = x W'ᵀ + b, dx = G W' need no second
product. Never in half precision: there W' would round the update away.
Source: Cherniuk et al. 2023 (RunLoRA, arXiv:2312.03415), who choose the order of the products by FLOPs.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from lora_lab.fused_products import add_product_, linear, product, splits
from lora_lab.modes import autocasts

FRESH_BYTES, FRESH_COST = 2**25, 5
PART = 2**19  # elements of the wide copy of a part of x, where a wide copy is needed: it should stay in the cache


def lora_linear(
    x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, dropped: Tensor | None = None
) -> Tensor:
    """x (..., in) -> y (..., out), in W's dtype (in autocast's under autocast).

    W, bias: (out, in), a transposed view for `Conv1D`, and (out) or None, both frozen.
    A, B: (rank, in) and (out, rank), of one dtype, usually fp32: the update is computed in it, as in the plain layer.
    dropped: what the adapter sees instead of x, of the same shape: `dropout(x)`.

    Equal to the plain layer up to rounding. Differentiable once: a second derivative raises RuntimeError.
    Raises TypeError or ValueError for shapes or dtypes that do not fit, and for a W or bias that requires a gradient.
    """
    _check(x, W, bias, A, B, scale, dropped)
    if autocasts(x.device.type):
        low = torch.get_autocast_dtype(x.device.type)
        x, dropped, W, bias, A, B = (_lowered(tensor, low) for tensor in (x, dropped, W, bias, A, B))
    # Reshaped out here: a result that is a view of what the function made could not be changed in place afterwards.
    rows, seen = (t if t is None or t.ndim == 2 else t.reshape(-1, t.shape[-1]) for t in (x, dropped))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, dropped, A, B)):
        y = _Fused.apply(rows, seen, W, bias, A, B, scale)
    else:
        y, _ = _forward(rows, seen, W, bias, A, B, scale, keep_h=False)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], len(W))


def folding_pays(W: Tensor, elements: int) -> bool:
    """Is W' = W + s·BA cheaper than adding an update to a result of this many elements?

    Either way each element is read, written and costs `rank` multiplications and additions. The rates of the machine
    cancel, and the numbers of elements decide: out · in against tokens · out forward, tokens · in backward. On a CPU an
    array of 32 MiB or more is fresh memory, zeroed by the system page by page: writing to it was six times as slow as
    writing to an array that was there. On a GPU torch keeps what was freed.
    """
    if W.dtype not in (torch.float32, torch.float64):
        return False
    fresh = W.device.type == "cpu" and W.numel() * W.element_size() >= FRESH_BYTES
    return W.numel() * (1 + FRESH_COST * fresh) < elements


class _Fused(torch.autograd.Function):
    """The same on rows: x (tokens, in), dropped (tokens, in) or None."""

    @staticmethod
    def forward(ctx, x, dropped, W, bias, A, B, scale):
        need_x, _, _, _, need_A, need_B, _ = ctx.needs_input_grad
        y, h = _forward(x, dropped, W, bias, A, B, scale, keep_h=need_B)
        seen = x if dropped is None else dropped
        ctx.save_for_backward(seen if need_A else None, h, W if need_x else None, A, B)
        ctx.scale, ctx.dropped_dtype = scale, None if dropped is None else dropped.dtype
        return y

    @staticmethod
    def backward(ctx, G):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("the fused LoRA layer is differentiable once: with create_graph=True use the plain one")
        device = G.device.type
        # A sum hands in one number, expanded: copied here once and not by every product.
        G = G.contiguous()
        with torch.autocast(device, enabled=False) if autocasts(device) else nullcontext():
            dx, d_dropped, dA, dB = _backward(ctx, G)
        return dx, d_dropped, None, None, dA, dB, None


def _forward(x, dropped, W, bias, A, B, scale, keep_h):
    """y, and h if backward wants it."""
    elements = len(x) * (len(W) if keep_h else sum(W.shape))  # without backward, h serves the update alone
    fold = dropped is None and W.dtype == A.dtype and folding_pays(W, elements)
    # W' is no larger than the two arrays more that PEFT has here: it is never paid for in memory.
    fold = fold and W.shape[1] <= 2 * len(x)
    y = linear(x, torch.addmm(W, B, A, alpha=scale) if fold else W, bias)
    if fold and not keep_h:
        return y, None
    seen, kept = x if dropped is None else dropped, []
    for part in _parts(seen, A):
        h = product(_widened(seen[part], A), A.T)
        if not fold:
            add_product_(y[part], h, B.T, scale)
        if keep_h:
            kept.append(h)
    return y, (torch.cat(kept) if len(kept) > 1 else kept[0]) if keep_h else None


def _backward(ctx, G):
    """G (tokens, out) -> dx, d_dropped, dA, dB: None where no gradient is asked for."""
    seen, h, W, A, B = ctx.saved_tensors
    need_x, need_dropped, _, _, need_A, need_B, _ = ctx.needs_input_grad
    fold = need_x and ctx.dropped_dtype is None and W.dtype == A.dtype and folding_pays(W, len(G) * W.shape[1])
    dx = d_dropped = dA = dB = through_A = None
    if need_x:
        dx = product(G, torch.addmm(W, B, A, alpha=ctx.scale) if fold else W)
        through_A = dx if ctx.dropped_dtype is None and not fold else None
    if need_dropped:
        d_dropped = through_A = G.new_zeros(len(G), A.shape[1], dtype=ctx.dropped_dtype)
    for part in _parts(G, A):
        G_part = _widened(G[part], A)
        H = product(G_part, B, ctx.scale) if need_A or through_A is not None else None
        if need_A:
            dA = _sum(dA, product(H.T, _widened(seen[part], A)))
        if need_B:
            dB = _sum(dB, product(h[part].T, G_part, ctx.scale).T)
        if through_A is not None:
            add_product_(through_A[part], H, A)
    return dx, d_dropped, dA, dB


def _parts(tensor: Tensor, A: Tensor) -> list[slice]:
    """The rows of `tensor`: all at once, but on a CPU a wide copy is made of a part at a time."""
    narrow = tensor.dtype != A.dtype and tensor.device.type == "cpu" and not torch.compiler.is_compiling()
    if not narrow or len(tensor) == 0:
        return [slice(None)]
    step = max(64, PART // tensor.shape[1])
    return [slice(start, start + step) for start in range(0, len(tensor), step)]


def _widened(tensor: Tensor, A: Tensor) -> Tensor:
    """`tensor` in A's dtype, unless `product` takes it as it is."""
    return tensor if tensor.dtype == A.dtype or splits(tensor, A) else tensor.to(A.dtype)


def _sum(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _lowered(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What autocast does to the inputs of a product: all but fp64 go to its dtype."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)


def _check(x, W, bias, A, B, scale, dropped) -> None:
    tensors = {"x": x, "W": W, "A": A, "B": B}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {found}")
    if W.ndim != 2 or A.ndim != 2 or tuple(B.shape) != (len(W), len(A)) or A.shape[1] != W.shape[1] or not len(A):
        shapes = {name: tuple(t.shape) for name, t in tensors.items() if name != "x"}
        raise ValueError(f"W (out, in), A (rank, in) and B (out, rank) must fit, got {shapes}")
    if x.ndim == 0 or x.shape[-1] != W.shape[1]:
        raise ValueError(f"x must be (..., in) with in = {W.shape[1]}, got {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) != (len(W),):
        raise ValueError(f"bias must be (out,) = ({len(W)},), got {tuple(bias.shape)}")
    if dropped is not None and dropped.shape != x.shape:
        raise ValueError(f"dropped must have x's shape {tuple(x.shape)}, got {tuple(dropped.shape)}")
    if A.dtype != B.dtype or (x.dtype != W.dtype and not autocasts(x.device.type)):
        raise TypeError(
            f"x and W, A and B must agree in dtype, got {[t.dtype for t in tensors.values()]} for x, W, A, B"
        )
    if not isinstance(scale, (int, float)) or not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    if torch.is_grad_enabled() and (W.requires_grad or (bias is not None and bias.requires_grad)):
        raise ValueError("W and bias are frozen here: they would get no gradient. Set requires_grad_(False)")
