"""`fused=True` changes how a layer computes, and nothing that it computes."""

import copy

import pytest
import torch
from models_for_tests import ALPHA, DTYPES, LANGUAGE_MODELS, RANK, fill, linear, llama, logits, run, token_ids
from torch import nn

from lora_lab import LoRALinear, inject, lora_layers, merge_, merged, unmerge_

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def pair(build, **settings) -> tuple[nn.Module, nn.Module]:
    """The same adapted model, plain and fused."""
    plain = fill(inject(build(), "all-linear", RANK, ALPHA, **settings))
    fused = copy.deepcopy(plain)
    for layer in lora_layers(fused).values():
        layer.fused = True
    return plain, fused


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_answers_and_gradients(name, dtype, rslora):
    models = pair(lambda: LANGUAGE_MODELS[name](dtype), rslora=rslora)
    for model in models:
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    tolerance = TOLERANCE[dtype]
    x, y = (logits(model).double() for model in models)
    assert (x - y).norm() <= tolerance * x.norm()
    for path in lora_layers(models[0]):
        for factor in "AB":
            x, y = (getattr(m.get_submodule(path), factor).grad.double() for m in models)
            assert x.any()
            assert (x - y).norm() <= 20 * tolerance * x.norm()  # rounding grows on its way back
    assert not any(layer.base.weight.grad is not None for layer in lora_layers(models[1]).values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_takes_the_same_path(dropout):
    """The same dropout masks too: both draw them from the same numbers."""
    plain, fused = pair(lambda: llama(torch.float64), dropout=dropout)  # in fp32 Adam makes much of a rounding
    torch.testing.assert_close(run(plain).loss, run(fused).loss, rtol=1e-9, atol=0)
    for path, layer in lora_layers(plain).items():
        torch.testing.assert_close(lora_layers(fused)[path].B, layer.B, rtol=1e-6, atol=1e-8)


def test_fused_from_the_start_with_a_shift_and_merged():
    model = inject(llama(), "all-linear", RANK, ALPHA, init="pissa", fused=True)
    assert all(layer.fused and layer.shifted for layer in lora_layers(model).values())
    torch.testing.assert_close(logits(model), logits(llama()), rtol=1e-5, atol=2e-5)
    fill(model)
    expected = logits(model)
    torch.testing.assert_close(logits(merged(model)), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(unmerge_(merge_(model))), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_codes_it_is_the_plain_layer(kind):
    plain, fused = pair(llama, quantize=kind)
    assert torch.equal(logits(plain), logits(fused))


def test_conv1d_and_a_pending_shift():
    layer = fill(LoRALinear(linear(20, 12, conv1d=True), RANK, ALPHA, init="pissa"))
    x = torch.randn(5, 12)
    plain = layer(x)
    layer.fused = True
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_shapes_can_be_asked_on_the_meta_device(quantize):
    model = nn.Sequential(linear(20, 12))
    inject(model, "all-linear", RANK, ALPHA, fused=True, quantize=quantize).to("meta")
    found = model(torch.ones(2, 5, 12, device="meta"))
    assert found.is_meta
    assert found.shape == (2, 5, 20)
