"""y = W x + b, and an adapter's s·B(A x) beside it: what a layer saves depends on which of its factors trains.

    W trains               x
    W frozen               nothing: the gradient of x needs only W
    W frozen, A and B      x in the adapter's dtype (a copy of its own for each layer, if that is not x's), and A x
    the same, fused        x as it is, shared with the layers beside it, and A x
    W in 4 or 8 bits       nothing more, but W is unpacked for a moment, forward and backward
    DoRA                   W x and B A x too, for the gradient of the magnitude

The copies are why LoRA beside a half-precision base keeps more activations than full fine-tuning does.
"""

from dataclasses import dataclass, replace

import torch

from lora_lab.budget.rules import FP32, Rules
from lora_lab.budget.tape import Value

NORM_BLOCK = {"cuda": 2**24, "cpu": 2**18}  # elements of W + s·BA that DoRALinear forms at a time


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer W (out, in_).

    rank: of the adapter, 0 if it has none. codes: W is stored in 4 or 8 bits. experts: how many such matrices lie in
    one tensor (0: a plain layer).
    """

    out: int
    in_: int
    bias: bool
    trains: bool
    dtype: torch.dtype
    rank: int = 0
    codes: bool = False
    dora: bool = False
    experts: int = 0


def linear(t: Rules, x: Value, layer: Linear) -> Value:
    """x (rows · in) -> y (rows · out)."""
    if layer.rank and t.how.fused:
        return _fused(t, x, layer)
    y = base(t, x, layer)
    return _adapter(t, x, y, layer) if layer.rank else y


def base(t: Rules, x: Value, layer: Linear) -> Value:
    """Without the adapter."""
    rows, size = x.size // layer.in_, layer.out * layer.in_
    x = t.cast(x, t.how.autocast or x.dtype)
    weights = (size + layer.bias * layer.out) * layer.dtype.itemsize if layer.trains else 0
    flops = 2 * rows * size
    costs = {"flops": flops, "backward_flops": flops * (x.grad + layer.trains)}
    if layer.codes:
        unpacked = size * x.dtype.itemsize
        costs |= {"scratch": unpacked, "backward_scratch": unpacked if x.grad else 0}
    saves = [x] if layer.trains else []
    if x.dtype != layer.dtype and not layer.codes:
        # Autocast's copy of W in the type of the product. The gradient of x needs it.
        copy = t.record("cast W", [], size, x.dtype, trains=layer.trains, weight_bytes=weights)
        saves += [copy] if x.grad else []
        if layer.trains:
            t.cached.append(copy.buffer)
        return t.record("linear", [x, copy], rows * layer.out, x.dtype, saves=saves, **costs)
    return t.record(
        "linear", [x], rows * layer.out, x.dtype, saves=saves, trains=layer.trains, weight_bytes=weights, **costs
    )


def _adapter(t: Rules, x: Value, y: Value, layer: Linear) -> Value:
    """y + s·B(A x), cast back to y's dtype."""
    wide = t.dropout(t.cast(x, t.how.adapter_dtype), t.how.dropout)
    A = Linear(layer.rank, layer.in_, bias=False, trains=True, dtype=t.how.adapter_dtype)
    update = base(t, base(t, wide, A), replace(A, out=layer.out, in_=layer.rank))
    total = _dora(t, wide, y, update, layer) if layer.dora else t.add(y, t.scale(update))
    total = t.cast(total, y.dtype)
    t.hold(y, *((wide,) if t.how.library == "peft" else (x, update)))
    return total


def _dora(t: Rules, x: Value, y: Value, update: Value, layer: Linear) -> Value:
    """y + (m/n - 1)∘(y - b) + (m/n)∘(s·B A x), n the row norms of W + s·BA. With dropout, W x again for y - b."""
    straight = t.shift(y) if layer.bias else y
    if t.how.dropout:
        straight = base(t, t.cast(x, y.dtype), replace(layer, bias=False, rank=0))
    size, whole = layer.out * layer.in_, []
    if t.how.library == "peft":  # BA as B(A I), all of it, and W in fp32, both until the layer returns
        whole = [t.record("B(A I)", [], size + layer.in_**2, FP32)]
        whole += [t.record("cast W", [], size, FP32)] if layer.dtype != FP32 else []
        scratch = 2 * size * FP32.itemsize
    else:  # a block of rows at a time
        scratch = min(size, max(NORM_BLOCK[t.how.device], layer.in_)) * FP32.itemsize
    m = {"trains": True, "weight_bytes": layer.out * FP32.itemsize, "scratch": scratch}
    ratio = t.record("m/n", [], layer.out, FP32, saves=[Value(layer.out, FP32)], **m)
    missing = t.add(t.mul(t.shift(ratio), straight), t.scale(t.mul(ratio, update)))
    total = t.add(y, missing)
    t.hold(*whole)
    return total


def _fused(t: Rules, x: Value, layer: Linear) -> Value:
    """All of it as one node, the update added in place."""
    rows, wide = x.size // layer.in_, t.how.adapter_dtype
    x = t.cast(x, t.how.autocast or x.dtype)
    factors = layer.rank * (layer.in_ + layer.out)
    flops, low = 2 * rows * layer.out * layer.in_, 2 * rows * factors
    widen = 0 if x.dtype == wide else x.size * wide.itemsize
    return t.record(
        "fused",
        [x],
        rows * layer.out,
        x.dtype,
        saves=[x, Value(rows * layer.rank, t.how.autocast or wide)],
        trains=True,
        weight_bytes=factors * wide.itemsize,
        flops=flops + low,
        backward_flops=(flops + 2 * low) if x.grad else 2 * low - 2 * rows * layer.rank * layer.in_,
        scratch=widen,
        backward_scratch=widen + (0 if x.dtype == wide else rows * layer.out * wide.itemsize),
    )
