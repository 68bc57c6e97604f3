"""The fused layer in use: memory against PEFT's, autocast, checkpointing, torch.compile, and which product is taken."""

import pytest
import torch
from fused_for_tests import BF16, DTYPES, FP32, FP64, NEEDS, SHAPES, assert_same, fused, input_of, layer_of, results
from models_for_tests import copy_factors, fill, linear, peft_twin
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.timing import peak_bytes
from lora_lab import LoRALinear, fused_products, inject
from lora_lab.fused import folding_pays

MEMORY = {**SHAPES, "many tokens": (64, 256, 8, 2000), "all folded": (256, 64, 8, 2000)}


def twins(out, in_, rank, dtype, dropout=0.0) -> tuple[LoRALinear, nn.Module]:
    """Our layer, fused, and PEFT's with the same numbers."""
    base = nn.Sequential(linear(out, in_, dtype=dtype))
    twin = peft_twin(base, ["0"], rank, 2.5 * rank, dropout)
    ours = fill(inject(base, ["0"], rank, 2.5 * rank, dropout, fused=True))
    copy_factors(ours, twin)
    return ours.train()[0], twin.train().base_model.model[0]


def kept_bytes(forward, x) -> int:
    """What autograd keeps for backward, parameters and x aside: each memory once."""
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in {t.untyped_storage().data_ptr() for t in known}:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    known = [x, *forward.parameters()]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = forward(x)
    assert y.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("needs", NEEDS, ids=str)
def test_keeps_no_more_for_backward_than_peft(needs, dtype, dropout):
    for out, in_, rank, tokens in MEMORY.values():
        ours, theirs = twins(out, in_, rank, dtype, dropout)
        for factors in ((ours.A, ours.B), (theirs.lora_A["default"].weight, theirs.lora_B["default"].weight)):
            for factor, needed in zip(factors, needs[1:], strict=True):
                factor.requires_grad_(needed)
        x = input_of(tokens, in_, dtype=dtype).requires_grad_(needs[0])
        kept = kept_bytes(ours, x)
        assert kept <= kept_bytes(theirs, x)
        if not dropout:
            assert kept == needs[2] * tokens * rank * 4  # x Aᵀ in fp32, and nothing else


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("train", [True, False])
def test_peak_memory_is_not_above_pefts(monkeypatch, train, dtype):
    # oneDNN takes its 130 kB to work in from torch's allocator, where they are seen; MKL takes its own elsewhere.
    monkeypatch.setattr(fused_products, "ONEDNN", False)
    for name in ("few tokens", "wide", "large", "all folded", "many tokens"):
        out, in_, rank, tokens = MEMORY[name]
        x, dy = input_of(tokens, in_, dtype=dtype).requires_grad_(), input_of(tokens, out, dtype=dtype)

        def run(layer, x=x, dy=dy):
            with torch.set_grad_enabled(train):
                y = layer(x)
            wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
            return torch.autograd.grad(y, wanted, dy) if train else y

        ours, theirs = (peak_bytes(lambda layer=layer: run(layer)) for layer in twins(out, in_, rank, dtype))
        assert ours <= theirs, name


@pytest.mark.parametrize("dtype", [FP32, BF16, FP64], ids=str)
def test_autocast_gives_what_it_gives_the_plain_layer(dtype):
    layer, x = layer_of(48, 16, 4, dtype=dtype), input_of(3, 7, 16, dtype=dtype).requires_grad_()
    ours, theirs = (results(layer, f, x, amp=BF16) for f in (fused, LoRALinear.forward))
    assert ours[0].dtype == (FP64 if dtype == FP64 else BF16)
    assert_same(ours, theirs, DTYPES["fp64" if dtype == FP64 else "bf16"][2])


def test_backward_inside_autocast():
    layer, x = layer_of(48, 16, 4), input_of(30, 16).requires_grad_()
    y = fused(layer, x)  # in fp32, so backward is in fp32 too
    with torch.autocast("cpu", BF16):
        y.sum().backward()
    ours = [x.grad, layer.A.grad, layer.B.grad]
    assert_same([None, *ours], [None, *torch.autograd.grad(layer(x).sum(), (x, layer.A, layer.B))])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_checkpointing(dtype, reentrant):
    layer, x = layer_of(40, 24, 4, dtype=dtype), input_of(5, 60, 24, dtype=dtype).requires_grad_()
    ours = results(layer, lambda layer, x: checkpoint(fused, layer, x, use_reentrant=reentrant), x)
    assert_same(ours, results(layer, fused, x), (0, 0, 0, 0))


COMPILED = [("aot_eager", FP32, None), ("aot_eager", BF16, None), ("aot_eager", FP32, BF16)]


@pytest.mark.parametrize(
    ("backend", "dtype", "amp"), [*COMPILED, pytest.param("inductor", FP32, None, marks=pytest.mark.slow)], ids=str
)
def test_compiles_into_one_graph(backend, dtype, amp):
    torch.compiler.reset()
    compiled = torch.compile(fused, backend=backend, fullgraph=True, dynamic=False)
    bounds = DTYPES["fp32" if (dtype, amp) == (FP32, None) else "bf16"][2]
    for shape in ("few tokens", "large, folded") if backend == "aot_eager" else ("folded",):
        out, in_, rank, tokens = SHAPES[shape]
        layer, x = layer_of(out, in_, rank, dtype=dtype), input_of(tokens, in_, dtype=dtype).requires_grad_()
        theirs = results(layer, LoRALinear.forward, x, amp)
        assert_same(results(layer, lambda layer, x: compiled(layer, x), x, amp), theirs, bounds)


def test_compiles_once_for_any_number_of_tokens():
    torch.compiler.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True, dynamic=True)
    layer = layer_of(40, 24, 4, dtype=BF16)
    for tokens in (5, 30, 300):
        x = input_of(tokens, 24, dtype=BF16).requires_grad_()
        with torch.compiler.set_stance("default" if tokens == 5 else "fail_on_recompile"):
            ours = results(layer, lambda layer, x: compiled(layer, x), x)
        assert_same(ours, results(layer, LoRALinear.forward, x), DTYPES["bf16"][2])


def test_a_second_derivative_is_refused():
    layer, x = layer_of(48, 16, 4), input_of(5, 16).requires_grad_()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(fused(layer, x).sum(), x, create_graph=True)


@pytest.mark.parametrize("folds", [True, False])
def test_folding_changes_nothing_but_the_order(monkeypatch, folds):
    monkeypatch.setattr("lora_lab.fused.folding_pays", lambda W, elements: folds)
    for out, in_, rank, tokens in SHAPES.values():
        layer, x = layer_of(out, in_, rank, dtype=FP64), input_of(tokens, in_, dtype=FP64).requires_grad_()
        assert_same(results(layer, fused, x), results(layer, LoRALinear.forward, x), DTYPES["fp64"][2])


def test_when_folding_pays():
    """RunLoRA's rule: tokens against out · in / (out + in) where only the result is wanted."""
    W = torch.empty(60, 30)
    assert not folding_pays(W, 20 * (60 + 30))
    assert folding_pays(W, 21 * (60 + 30))
    assert not folding_pays(W.half(), 10**6)
    assert not folding_pays(W.bfloat16(), 10**6)
    large = torch.empty(4096, 4096, device="meta")
    assert folding_pays(large, 4097 * 4096)  # not on a CPU: nothing is zeroed first
    assert folding_pays(torch.empty(1).expand(4096, 4096), 6 * 4096 * 4096 + 1)
    assert not folding_pays(torch.empty(1).expand(4096, 4096), 6 * 4096 * 4096)


def test_onednn_and_torch_give_the_same(monkeypatch):
    called, onednn = [], fused_products._onednn
    monkeypatch.setattr(fused_products, "_onednn", lambda *args: called.append(args) or onednn(*args))
    for kind in ("bias", "Conv1D"):
        layer, x = layer_of(200, 300, 16, kind), input_of(500, 300).requires_grad_()  # the thin products too
        monkeypatch.setattr(fused_products, "ONEDNN", torch.backends.mkldnn.is_available())
        ours = results(layer, fused, x)
        assert bool(called) == fused_products.ONEDNN
        monkeypatch.setattr(fused_products, "ONEDNN", False)
        called.clear()
        assert_same(ours, results(layer, fused, x))
        assert not called


@pytest.mark.parametrize("out", [48, 400])
def test_a_bf16_factor_times_a_split_one(monkeypatch, out):
    """What CUDA does for many tokens, with the product of bf16 numbers done in fp32 here: 16 bits of A and B count."""
    can_split = lambda half, wide: (half.dtype, wide.dtype) == (BF16, FP32)  # noqa: E731
    layer, x = layer_of(out, 120, 8, dtype=BF16), input_of(60, 120, dtype=BF16).requires_grad_()
    theirs = results(layer, LoRALinear.forward, x)
    monkeypatch.setattr(fused_products, "splits", can_split)
    monkeypatch.setattr("lora_lab.fused.splits", can_split)
    ours = results(layer, fused, x)
    assert_same(ours, theirs, (2**-7, 2**-7, 2**-15, 2**-15))
    assert (ours[2] - theirs[2]).any()  # it was taken

    wide = input_of(40, 30) * 3
    high, low = fused_products.split(wide).view(40, 2, 30).float().unbind(1)
    assert torch.equal(high, wide.to(BF16).float())
    assert (high + low - wide).abs().max() <= 2**-16 * wide.abs().max()
    repeated = fused_products.split(wide, "high high low").view(40, 3, 30).float()
    assert torch.equal(repeated, torch.stack([high, high, low], 1))
