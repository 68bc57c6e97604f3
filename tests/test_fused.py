"""The numbers of the fused layer: those of the plain one to rounding, whatever the shape, dtype and layout."""

import itertools

import pytest
import torch
from fused_for_tests import (
    BF16,
    DEVICES,
    DTYPES,
    FP16,
    FP32,
    FP64,
    KINDS,
    NEEDS,
    SHAPES,
    assert_same,
    fused,
    input_of,
    layer_of,
    results,
)
from torch import nn

from lora_lab import LoRALinear
from lora_lab.fused import folding_pays, lora_linear


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dtype", "factors", "bounds"), DTYPES.values(), ids=DTYPES)
def test_equals_the_plain_layer(dtype, factors, bounds, shape, kind, device):
    out, in_, rank, tokens = shape
    layer = layer_of(out, in_, rank, kind, dtype, factors, device)
    x = input_of(tokens, in_, dtype=dtype, device=device).requires_grad_()
    theirs = results(layer, LoRALinear.forward, x)
    assert theirs[3].any() or tokens == 0
    assert_same(results(layer, fused, x), theirs, bounds)
    with torch.no_grad():
        assert_same([fused(layer, x)], theirs[:1], bounds[:1])


@pytest.mark.parametrize("needs", NEEDS, ids=str)
@pytest.mark.parametrize("shape", ["few tokens", "folded"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_whatever_needs_a_gradient(dtype, shape, needs):
    out, in_, rank, tokens = SHAPES[shape]
    layer = layer_of(out, in_, rank, dtype=dtype)
    layer.A.requires_grad_(needs[1])
    layer.B.requires_grad_(needs[2])
    x = input_of(tokens, in_, dtype=dtype).requires_grad_(needs[0])
    bounds = DTYPES["fp32" if dtype == FP32 else "bf16, fp32 A B"][2]
    assert_same(results(layer, fused, x), results(layer, LoRALinear.forward, x), bounds)

    mask = (torch.arange(in_) % 3 > 0) * 1.5
    layer.dropout = nn.Module()
    layer.dropout.forward = lambda x: x * mask
    ours = results(layer, lambda layer, x: fused(layer, x, layer.dropout(x.to(layer.A.dtype))), x)
    assert_same(ours, results(layer, LoRALinear.forward, x), bounds)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_dropped_input(dtype):
    """The gradient through the dropped input is apart: it passes dropout on its way to x."""
    layer = layer_of(20, 12, 3, dtype=dtype)
    layer.dropout = nn.Dropout(0.4)
    x, seen = input_of(2, 50, 12, dtype=dtype).requires_grad_(), []

    def with_dropout(layer, x):
        seen.append(layer.dropout(x.to(layer.A.dtype)))
        return fused(layer, x, seen[0])

    torch.manual_seed(1)
    ours = results(layer, with_dropout, x)
    torch.manual_seed(1)
    theirs = results(layer, LoRALinear.forward, x)
    assert 0.2 < (seen[0] == 0).float().mean() < 0.6
    assert_same(ours, theirs, DTYPES["fp32" if dtype == FP32 else "bf16, fp32 A B"][2])


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("shape", ["few tokens", "folded"])
def test_x_and_its_dropped_copy_have_gradients_of_their_own(shape, needs):
    out, in_, rank, tokens = SHAPES[shape]
    layer = layer_of(out, in_, rank)
    x, seen = (input_of(tokens, in_).mul(k).requires_grad_(needed) for k, needed in zip((1, 0.5), needs, strict=True))
    fused(layer, x, seen).sum().backward()
    with torch.no_grad():
        dx = layer.base.weight.sum(0).expand(tokens, in_)
        d_seen = (layer.scale * layer.B.sum(0) @ layer.A).expand(tokens, in_)
    for tensor, expected, needed in zip((x, seen), (dx, d_seen), needs, strict=True):
        assert (tensor.grad is not None) == needed
        if needed:
            torch.testing.assert_close(tensor.grad, expected, rtol=1e-4, atol=1e-4)


def test_a_bf16_update_leaves_an_fp32_result_its_precision():
    layer = layer_of(40, 24, 4, factors=BF16)
    layer.B.data *= 1e-6
    x = input_of(30, 24).requires_grad_()
    assert_same(results(layer, fused, x)[:2], results(layer, LoRALinear.forward, x)[:2])


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_a_wide_copy_made_in_parts(monkeypatch, dtype):
    monkeypatch.setattr("lora_lab.fused.PART", 1000)  # of 64 rows
    for shape in ("large", "large, folded"):
        out, in_, rank, tokens = SHAPES[shape]
        layer, x = layer_of(out, in_, rank, dtype=dtype), input_of(tokens, in_, dtype=dtype).requires_grad_()
        bounds = DTYPES["bf16, fp32 A B" if dtype == BF16 else "fp16, fp32 A B"][2]
        assert_same(results(layer, fused, x), results(layer, LoRALinear.forward, x), bounds)


INPUTS = {
    "one vector": lambda: input_of(24),
    "three axes": lambda: input_of(5, 11, 24),
    "four axes": lambda: input_of(2, 3, 4, 24),
    "an empty batch": lambda: input_of(0, 7, 24),
    "no token in a batch": lambda: input_of(3, 0, 24),
    "transposed": lambda: input_of(24, 50).T,
    "axes swapped": lambda: input_of(5, 60, 24).transpose(0, 1),
    "every second": lambda: input_of(50, 48)[:, ::2],
    "one row, expanded": lambda: input_of(1, 24).expand(50, 24),
}


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_any_layout_of_the_input(make, dtype):
    layer, x = layer_of(40, 24, 4, dtype=dtype), make().to(dtype).requires_grad_()
    bounds = DTYPES["fp32" if dtype == FP32 else "bf16, fp32 A B"][2]
    assert_same(results(layer, fused, x), results(layer, LoRALinear.forward, x), bounds)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradient_of_a_sum(shape):
    """It hands in one number, expanded over y."""
    out, in_, rank, tokens = shape
    layer, x = layer_of(out, in_, rank), input_of(tokens, in_).requires_grad_()
    ours = torch.autograd.grad(fused(layer, x).sum(), (x, layer.A, layer.B))
    theirs = torch.autograd.grad(layer(x).sum(), (x, layer.A, layer.B))
    assert_same([None, *ours], [None, *theirs])


@pytest.mark.parametrize("with_dropped", [False, True])
@pytest.mark.parametrize("tokens", [3, 30])
def test_gradients_by_finite_differences(tokens, with_dropped):
    layer = layer_of(7, 5, 2, dtype=FP64)
    x, seen = (input_of(tokens, 5, dtype=FP64).mul(k).requires_grad_() for k in (1, 0.5))
    assert folding_pays(layer.base.weight, tokens * 5) == (tokens == 30)

    def function(x, seen, A, B):
        return lora_linear(x, layer.base.weight, layer.base.bias, A, B, 2.5, seen if with_dropped else None)

    torch.autograd.gradcheck(function, (x, seen, layer.A, layer.B))


def test_inputs_are_left_alone():
    for (out, in_, rank, tokens), dtype in itertools.product(SHAPES.values(), (FP32, BF16)):
        layer, x = layer_of(out, in_, rank, dtype=dtype), input_of(tokens, in_, dtype=dtype).requires_grad_()
        dy = input_of(tokens, out, dtype=dtype)
        tensors = [x, dy, *layer.parameters()]
        before = [(t.detach().clone(), t._version) for t in tensors]
        fused(layer, x).backward(dy)
        for tensor, (value, version) in zip(tensors, before, strict=True):
            assert torch.equal(tensor, value)
            assert tensor._version == version


@pytest.mark.parametrize("shape", [(6, 16), (2, 3, 16)], ids=str)
def test_the_result_may_be_changed_in_place(shape):
    layer, x = layer_of(48, 16, 4), input_of(*shape).requires_grad_()
    ours = results(layer, lambda layer, x: fused(layer, x).mul_(2), x)
    assert_same(ours, results(layer, lambda layer, x: layer(x) * 2, x))


GOOD = {
    "x": torch.ones(3, 5),
    "W": torch.ones(7, 5),
    "bias": torch.ones(7),
    "A": torch.ones(2, 5),
    "B": torch.ones(7, 2),
    "scale": 1.5,
    "dropped": torch.ones(3, 5),
}
REFUSED = {
    "x of another width": ({"x": torch.ones(3, 7)}, r"x must be \(\.\.\., in\) with in = 5, got \(3, 7\)"),
    "x a number": ({"x": torch.tensor(1.0)}, r"got \(\)"),
    "x a list": ({"x": [[1.0] * 5]}, "x must be a floating-point tensor, got list"),
    "x of integers": ({"x": torch.ones(3, 5, dtype=torch.int64)}, "x must be a floating-point tensor, got torch.int64"),
    "x in fp64": ({"x": torch.ones(3, 5, dtype=FP64)}, "must agree in dtype.*float64"),
    "W a vector": ({"W": torch.ones(5)}, r"must fit.*'W': \(5,\)"),
    "W transposed": ({"W": torch.ones(5, 7)}, r"must fit.*'W': \(5, 7\)"),
    "W of codes": ({"W": torch.ones(7, 5, dtype=torch.uint8)}, "W must be a floating-point tensor, got torch.uint8"),
    "W trained": ({"W": torch.ones(7, 5, requires_grad=True)}, "W and bias are frozen"),
    "bias trained": ({"bias": torch.ones(7, requires_grad=True)}, "W and bias are frozen"),
    "bias too short": ({"bias": torch.ones(1)}, r"bias must be \(out,\) = \(7,\), got \(1,\)"),
    "A transposed": ({"A": torch.ones(5, 2)}, r"must fit.*'A': \(5, 2\)"),
    "B transposed": ({"B": torch.ones(2, 7)}, r"must fit.*'B': \(2, 7\)"),
    "ranks differ": ({"A": torch.ones(3, 5)}, r"must fit.*'A': \(3, 5\)"),
    "rank 0": ({"A": torch.ones(0, 5), "B": torch.ones(7, 0)}, r"must fit.*'A': \(0, 5\)"),
    "A and B of two dtypes": ({"A": torch.ones(2, 5, dtype=BF16)}, "must agree in dtype.*bfloat16"),
    "scale missing": ({"scale": None}, "scale must be a finite number, got None"),
    "scale NaN": ({"scale": float("nan")}, "scale must be a finite number, got nan"),
    "dropped of another shape": ({"dropped": torch.ones(2, 5)}, r"dropped must have x's shape \(3, 5\), got \(2, 5\)"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(change, words):
    assert lora_linear(**GOOD).shape == (3, 7)
    with pytest.raises((TypeError, ValueError), match=words):
        lora_linear(**(GOOD | change))
