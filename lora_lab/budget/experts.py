"""A mixture of experts: a router sends each token to k of E gated MLPs, whose weights lie in two 3-D tensors.

    gate_up (E, 2·f, h), down (E, h, f);  rows = tokens · k, sorted by expert, in one grouped product each

PEFT adapts such a tensor by computing W + s·BA for all experts before the product, in every forward pass: as many bytes
as the tensor itself, and saved.
"""

from typing import Any

import torch

from lora_lab.budget.blocks import Layer
from lora_lab.budget.linear import Linear
from lora_lab.budget.rules import FP32, Rules
from lora_lab.budget.tape import Value


def mixture(t: Rules, x: Value, layer: Layer, c: Any) -> Value:
    rows = t.how.tokens * c.num_experts_per_tok
    ends = Value(layer.linears["mlp.experts.gate_up_proj"].experts, torch.int32)  # of each expert's rows, saved once
    scores = _route(t, x, layer, c.num_experts_per_tok)
    sorted_ = t.record("index", [x], rows * c.hidden_size, x.dtype, saves=[Value(rows, torch.int64)])
    if c.model_type != "mixtral":
        scores = t.cast(scores, x.dtype)
    scores = t.record("index", [scores], rows, scores.dtype, saves=[Value(rows, torch.int64)])
    both = _grouped(t, sorted_, layer.linears["mlp.experts.gate_up_proj"], ends)
    gate, up = t.part(both, both.size // 2), t.part(both, both.size // 2)
    y = t.mul(t.of_input(c.hidden_act, gate), up)
    y = t.mul(_grouped(t, y, layer.linears["mlp.experts.down_proj"], ends), scores)
    y = t.record("index", [y], y.size, y.dtype, saves=[Value(rows, torch.int64)])
    total = t.cast(t.record("sum", [y], t.how.tokens * c.hidden_size, y.dtype), x.dtype)
    t.hold(sorted_, scores, y)
    return total


def _route(t: Rules, x: Value, layer: Layer, k: int) -> Value:
    """softmax of the router's scores, the k largest, divided by their sum."""
    router = layer.linears["mlp.gate"]
    if router.rank:
        weight = _folded(t, router)
        flops = 2 * t.how.tokens * router.out * router.in_
        logits = t.product(x, weight, t.how.tokens * router.out, flops, name="router")
    else:
        logits = layer(t, x, "mlp.gate")
    chances = t.of_output("softmax", t.cast(logits, FP32))
    rows = t.how.tokens * k
    top = t.record("topk", [chances], rows, FP32, saves=[Value(rows, torch.int64)])
    total = t.record("sum", [top], t.how.tokens, FP32)
    return t.mul(top, total)


def _grouped(t: Rules, x: Value, tensor: Linear, ends: Value) -> Value:
    rows = x.size // tensor.in_
    flops = 2 * rows * tensor.out * tensor.in_
    if tensor.rank:
        y = t.product(x, _folded(t, tensor), rows * tensor.out, flops, name="experts")
        t.ops[-1].saves.append(ends.buffer)
        return y
    size = tensor.experts * tensor.out * tensor.in_
    weights = size * tensor.dtype.itemsize if tensor.trains else 0
    costs = {"flops": flops, "backward_flops": flops * (x.grad + tensor.trains), "weight_bytes": weights}
    saves = [ends, *([x] if tensor.trains else [])]
    return t.record("experts", [x], rows * tensor.out, x.dtype, saves=saves, trains=tensor.trains, **costs)


def _folded(t: Rules, tensor: Linear) -> Value:
    """W + s·BA of every matrix in the tensor; for experts from copies of A and B in W's dtype."""
    many, own = max(tensor.experts, 1), t.how.adapter_dtype
    factors = []
    for side in (tensor.out, tensor.in_):
        n = many * tensor.rank * side
        factor = t.record("cast A, B", [], n, t.how.dtype, trains=True, weight_bytes=n * own.itemsize)
        if not tensor.experts or t.how.dtype == own:
            factor.buffer.nbytes = 0  # the parameters themselves
        factors.append(factor)
    size = many * tensor.out * tensor.in_
    return t.product(*factors, size, 2 * size * tensor.rank, name="W + sBA")
