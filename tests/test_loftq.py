"""LoftQ is nearest to W at every scale, equal to PEFT's loop where that is right, and fits the codes that it names."""

import copy
import math
import sys
import types

import peft.utils.loftq_utils
import pytest
import torch
from models_for_tests import ALPHA, DTYPES, LANGUAGE_MODELS, RANK, linear, llama, logits
from torch import Tensor

from lora_lab import inject, lora_layers
from lora_lab.base import oriented_weight
from lora_lab.init.loftq import loftq_factors
from lora_lab.init.table import named
from lora_lab.quantize import quantize
from lora_lab.quantized_linear import QuantizedLinear, quantize_model_

SCALES = [0.25, 1.0, 2.0, 4.0]
SHAPES = [(48, 96), (96, 40), (30, 70)]  # out, in
FORMS = {
    "nf4": {"kind": "nf4"},
    "nf4, scales in fp32": {"double": False},
    "nf4, blocks of 16": {"block_size": 16},
    "int8": {"kind": "int8"},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def weight_of(out=48, in_=96, dtype=torch.float32) -> Tensor:
    return linear(out, in_, dtype=dtype).weight.detach()


def base_of(weight: Tensor, start: tuple, scale: float, **form) -> Tensor:
    """What the quantized base holds."""
    _, _, A0, B0 = start
    return quantize(weight - scale * (B0 @ A0), **form).dequantize(torch.promote_types(weight.dtype, torch.float32))


def error_of(weight: Tensor, start: tuple, scale: float, **form) -> float:
    """‖W - Q - s·BA‖_F"""
    A, B, _, _ = start
    return (weight - base_of(weight, start, scale, **form) - scale * B @ A).norm().item()


class OnThisDevice(Tensor):
    """A tensor that stays where it is: PEFT sends the weight to a GPU, whatever there is."""

    def to(self, *devices, device=None, **more):
        return super().to(**more) if more else self


def peft_start(weight: Tensor, bits: int, rank: int, iterations: int, monkeypatch) -> tuple[Tensor, Tensor, Tensor]:
    """Q, A and B of PEFT's own `loftq_init`, with our quantizer in the place of bitsandbytes'."""
    kind = {"kind": "nf4", "double": False} if bits == 4 else {"kind": "int8"}

    class Params:
        """bitsandbytes' Params4bit and Int8Params: quantized on the way to the GPU, and read by what follows."""

        def __init__(self, data: Tensor, **settings):
            self.data = self.quant_state = self.SCB = quantize(data.as_subclass(Tensor), **kind)

        def to(self, device):
            return self

    def dequantize(data, _):
        return data.dequantize().as_subclass(OnThisDevice)

    module = peft.utils.loftq_utils
    bnb = types.ModuleType("bitsandbytes")
    bnb.nn = types.SimpleNamespace(Params4bit=Params, Int8Params=Params)
    bnb.functional = types.SimpleNamespace(dequantize_4bit=dequantize, int8_vectorwise_dequant=dequantize)
    monkeypatch.setitem(sys.modules, "bitsandbytes", bnb)
    for name, value in {"is_bnb_available": True, "is_bnb_4bit_available": True, "is_xpu_available": False}.items():
        monkeypatch.setattr(module, name, lambda value=value: value)
    result = module.loftq_init(weight.as_subclass(OnThisDevice), bits, rank, iterations)
    return tuple(tensor.as_subclass(Tensor) for tensor in result)


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_at_scale_one_the_last_iterate_is_pefts(shape, bits, iterations, monkeypatch):
    weight = weight_of(*shape)
    Q, A, B = peft_start(weight, bits, RANK, iterations, monkeypatch)
    form = {"kind": "nf4", "double": False} if bits == 4 else {"kind": "int8"}
    ours = loftq_factors(weight, RANK, 1.0, iterations=iterations, keep="last", **form)
    held = base_of(weight, ours, 1.0, **form)
    # After the first iteration the two round differently on the way, and a number midway may fall to either side.
    assert (held != Q).float().mean() <= (0 if iterations == 1 else 2e-3)
    assert error_of(weight, ours, 1.0, **form) == pytest.approx((weight - Q - B @ A).norm().item(), rel=2e-3)
    if torch.equal(held, Q):
        signs = (ours[0] * A).sum(dim=1).sign()
        torch.testing.assert_close(ours[0], signs[:, None] * A, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours[1], signs * B, rtol=1e-3, atol=1e-5)


def test_pefts_start_is_no_nearer_than_plain_codes_at_other_scales(monkeypatch):
    weight = weight_of()
    Q, A, B = peft_start(weight, 4, RANK, 1, monkeypatch)
    lost = (weight - Q).norm().item()
    theirs = {scale: (weight - Q - scale * B @ A).norm().item() for scale in SCALES}
    form = {"kind": "nf4", "double": False}
    ours = {scale: error_of(weight, loftq_factors(weight, RANK, scale, **form), scale, **form) for scale in SCALES}
    assert theirs[2.0] == pytest.approx(lost, rel=1e-5)  # twice the best fit is as far away as none
    assert theirs[4.0] > lost * 1.05
    for scale in SCALES:
        assert ours[scale] < lost
        assert ours[scale] <= theirs[scale] * (1 + 1e-5)


@forms
@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nearer_than_plain_codes_and_the_same_at_every_scale(shape, iterations, form):
    weight = weight_of(*shape)
    plain = (weight - quantize(weight, **form).dequantize()).norm().item()
    errors = []
    for scale in SCALES:
        start = loftq_factors(weight, RANK, scale, iterations=iterations, **form)
        assert start[0].shape == start[2].shape == (RANK, shape[1])
        assert start[1].shape == start[3].shape == (shape[0], RANK)
        errors.append(error_of(weight, start, scale, **form))
        assert errors[-1] < plain
    # A number that lies midway between two codes may fall to either side, as scaling rounds.
    assert errors == pytest.approx([errors[0]] * len(SCALES), rel=1e-4 if iterations == 1 else 5e-3)


@forms
@pytest.mark.parametrize("iterations", [1, 3])
def test_the_factors_are_the_best_fit_of_what_these_codes_lost(iterations, form):
    """Eckart and Young: what is left are the singular values beyond the rank of W - Q, with the Q that is held."""
    weight, scale = weight_of(), ALPHA / RANK
    for keep in ("best", "last"):
        start = loftq_factors(weight, RANK, scale, iterations=iterations, keep=keep, **form)
        sigma = torch.linalg.svdvals((weight - base_of(weight, start, scale, **form)).double())
        assert error_of(weight, start, scale, **form) == pytest.approx(sigma[RANK:].norm().item(), rel=1e-5)
        A, B = start[:2]  # and evenly split between the two
        torch.testing.assert_close(A.norm(dim=1), B.norm(dim=0), rtol=1e-4, atol=0)
        torch.testing.assert_close(scale * A.norm(dim=1) ** 2, sigma[:RANK].float(), rtol=1e-4, atol=0)
    if iterations == 1:
        assert not start[2].any()
        assert not start[3].any()


def test_the_best_iterate_is_kept_and_the_last_is_often_not_it():
    weight, scale = weight_of(64, 48), 2.0
    last = [error_of(weight, loftq_factors(weight, 20, scale, iterations=t, keep="last"), scale) for t in range(1, 11)]
    best = [error_of(weight, loftq_factors(weight, 20, scale, iterations=t), scale) for t in range(1, 11)]
    assert last[-1] > min(last) * 1.01  # the alternation does not descend
    for t in range(10):
        assert best[t] == pytest.approx(min(last[: t + 1]), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype):
    weight, scale = weight_of(dtype=dtype), 0.5
    before, random_state = weight.clone(), torch.get_rng_state()
    start = loftq_factors(weight, RANK, scale, iterations=2)
    assert {tensor.dtype for tensor in start} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert torch.equal(weight, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    wide = weight.to(start[0].dtype)
    assert all(torch.equal(a, b) for a, b in zip(start, loftq_factors(wide, RANK, scale, iterations=2), strict=True))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_whole_model_starts_nearer_to_the_original(name, rslora):
    model = LANGUAGE_MODELS[name]()
    reference = logits(model)

    def error(changed) -> float:
        return ((logits(changed) - reference).norm() / reference.norm()).item()

    plain = error(quantize_model_(copy.deepcopy(model)))
    settings = {"rslora": rslora, "quantize": "nf4"}
    once = inject(copy.deepcopy(model), "all-linear", RANK * 2, ALPHA, init="loftq", **settings)
    assert all(isinstance(m.base, QuantizedLinear) for m in once.modules() if hasattr(m, "base"))
    assert error(once) < 0.9 * plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_injected_base_holds_the_codes_that_were_fitted(dtype):
    base, form = llama(dtype), {"kind": "nf4", "block_size": 16, "double": False}
    model = inject(copy.deepcopy(base), "all-linear", RANK, ALPHA, init=named("loftq", iterations=3), quantize=form)
    for path, layer in lora_layers(model).items():
        weight = oriented_weight(base.get_submodule(path))
        start = loftq_factors(weight, RANK, ALPHA / RANK, iterations=3, **form)
        assert torch.equal(layer.base.dequantized(torch.float32), base_of(weight, start, ALPHA / RANK, **form))
        assert torch.equal(layer.A, start[0])
        assert torch.equal(layer.B, start[1])


REFUSED = {
    "rank 0": (ValueError, "rank must be .* = 48, got 0", {"rank": 0}),
    "rank True": (ValueError, "got True", {"rank": True}),
    "huge rank": (ValueError, "rank must be .* = 48, got 49", {"rank": 49}),
    "scale 0": (ValueError, "scale must be .* got 0", {"scale": 0}),
    "scale NaN": (ValueError, "scale must be .* got nan", {"scale": math.nan}),
    "no iteration": (ValueError, "iterations must be .* got 0", {"iterations": 0}),
    "half an iteration": (ValueError, r"iterations must be .* got 1\.5", {"iterations": 1.5}),
    "iterations True": (ValueError, "iterations must be .* got True", {"iterations": True}),
    "keep": (ValueError, "keep must be 'best' or 'last', got 'first'", {"keep": "first"}),
    "kind": (ValueError, "got 'nf8'", {"kind": "nf8"}),
    "block size": (ValueError, "at least 1, got 0", {"block_size": 0}),
    "NaN": (ValueError, r"\(48, 96\) has 4608 entries", {"weight": torch.full((48, 96), math.nan)}),
    "integers": (TypeError, "int64", {"weight": torch.ones(48, 96, dtype=torch.int64)}),
    "three axes": (ValueError, r"\(2, 48, 96\)", {"weight": torch.ones(2, 48, 96)}),
}  # fmt: skip


@pytest.mark.parametrize(("error", "words", "changed"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(error, words, changed):
    with pytest.raises(error, match=words):
        loftq_factors(**({"weight": weight_of(), "rank": RANK, "scale": 2.0} | changed))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    weight, scale = weight_of(), 2.0
    start = loftq_factors(weight.cuda(), RANK, scale, iterations=2)
    assert all(tensor.is_cuda for tensor in start)
    theirs = error_of(weight, loftq_factors(weight, RANK, scale, iterations=2), scale)
    assert error_of(weight.cuda(), start, scale) == pytest.approx(theirs, rel=1e-2)
