"""Merging is one addition in wide arithmetic and one rounding; it happens at most once, and can be taken back."""

import copy
import math

import pytest
import torch
from models_for_tests import (
    ALPHA,
    DTYPES,
    HALF,
    LANGUAGE_MODELS,
    RANK,
    fill,
    fingerprint,
    linear,
    llama,
    logits,
    plain,
    unchanged,
)
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from lora_lab import LoRALinear, eject, inject, lora_layers, merge_, merged, merged_weight, unmerge_
from lora_lab.base import oriented_weight
from lora_lab.variants import DoRALinear

OUT, IN = 20, 12


def layer_of(dtype=torch.float32, conv1d=False, **settings) -> LoRALinear:
    return fill(LoRALinear(linear(OUT, IN, True, dtype, conv1d), RANK, ALPHA, **settings))


def model_of(dtype=torch.float32, dropout=0.0) -> nn.Module:
    return fill(inject(llama(dtype), "all-linear", RANK, ALPHA, dropout))


def exact_weight(layer: LoRALinear) -> Tensor:
    """W + s·BA (out, in), by plain sums in fp64."""
    product = torch.einsum("or,ri->oi", layer.B.double(), layer.A.double())
    return (oriented_weight(layer.base).double() + ALPHA / RANK * product).detach()


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbouring numbers of `dtype` at |x|, in fp64."""
    return torch.finfo(dtype).eps * 2.0 ** x.double().abs().log2().floor()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sum_is_rounded_once(dtype, conv1d, rslora):
    layer = layer_of(dtype, conv1d, rslora=rslora)
    with unchanged(layer):
        weight = merged_weight(layer)
    assert (weight.dtype, weight.shape) == (dtype, layer.base.weight.shape)
    weight = weight.T if conv1d else weight
    product = layer.B.double() @ layer.A.double()
    exact = oriented_weight(layer.base).double() + (ALPHA / math.sqrt(RANK) if rslora else ALPHA / RANK) * product
    # Half a unit for the one rounding, and what the wide sum itself loses: RANK + 2 operations on at most `size`.
    size = layer.scale * layer.B.double().abs() @ layer.A.double().abs() + exact.abs()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bound = (0.5 * ulp(exact, dtype) if dtype in HALF else 0) + (RANK + 2) * torch.finfo(wide).eps * size
    assert ((weight.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_rounds_almost_every_weight_to_the_nearest(dtype):
    """Rounding BA first and the sum again would miss the nearest number for many weights."""
    layer = fill(LoRALinear(linear(200, 120, dtype=dtype), RANK, ALPHA))
    nearest = exact_weight(layer).to(dtype)
    twice = layer.base.weight + (layer.scale * layer.B.to(dtype) @ layer.A.to(dtype))
    assert (merged_weight(layer) != nearest).float().mean() < 1e-3
    assert (twice != nearest).float().mean() > 0.05


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("conv1d", [False, True])
def test_forward_is_the_same(conv1d, dtype):
    layer, x = layer_of(dtype, conv1d), torch.randn(50, IN, dtype=dtype)
    y = layer(x)
    size = x.double().abs() @ exact_weight(layer).abs().T + 1
    merge_(layer)
    assert layer(x).dtype == dtype
    assert ((layer(x) - y).double().abs() <= 4 * IN * torch.finfo(dtype).eps * size).all()
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_answers_of_a_whole_model_are_the_same(name):
    model = fill(inject(LANGUAGE_MODELS[name](), "all-linear", RANK, ALPHA))
    before = logits(model)
    torch.testing.assert_close(logits(merged(model)), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(merge_(model)), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(unmerge_(model)), before, rtol=1e-4, atol=1e-4)
    assert (logits(eject(model)) - before).abs().max() > 0.1  # the adapter is not nothing


@pytest.mark.parametrize("keep_base", [False, True])
def test_merging_twice_and_unmerging_twice_do_nothing(keep_base):
    model = model_of()
    with unchanged(model):
        unmerge_(model)
    once = copy.deepcopy(merge_(model, keep_base))
    for again in (keep_base, not keep_base):
        merge_(model, again)
        assert_same_state(model, once)
    unmerge_(model)
    with unchanged(model):
        unmerge_(model)


def assert_same_state(model: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keep_base_is_exact(dtype):
    model = model_of(dtype)
    before = copy.deepcopy(model)
    for _ in range(3):
        merge_(model, keep_base=True)
        for layer, other in zip(lora_layers(model).values(), lora_layers(before).values(), strict=True):
            assert not torch.equal(layer.base.weight, other.base.weight)
        assert_same_state(unmerge_(model), before)
    assert all(layer.kept_weight is None for layer in lora_layers(model).values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_drift_without_keep_base(dtype):
    """Per cycle half a unit for each of two roundings, in the larger of W and W + ΔW; fp32 rounds inside as well."""
    layer = layer_of(dtype)
    original = layer.base.weight.clone().double()
    largest = torch.maximum(exact_weight(layer).abs(), original.abs())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    per_cycle = ulp(largest * (1 + 8 * torch.finfo(dtype).eps), dtype) + 2 * torch.finfo(wide).eps * largest
    for cycle in range(1, 6):
        unmerge_(merge_(layer))
        drift = (layer.base.weight.double() - original).abs()
        assert (drift <= cycle * per_cycle).all()
    assert drift.any()


def test_merged_leaves_the_original_alone_and_returns_a_plain_frozen_model():
    model = model_of(torch.bfloat16, dropout=0.1).train()
    with unchanged(model):
        result = merged(model)
    base = llama(torch.bfloat16)
    assert not lora_layers(result)
    assert [(n, type(m)) for n, m in result.named_modules()] == [(n, type(m)) for n, m in base.named_modules()]
    assert {n: (t.dtype, t.device) for n, t in result.state_dict().items()} == {
        n: (t.dtype, t.device) for n, t in base.state_dict().items()
    }
    assert not any(p.requires_grad for p in result.parameters())
    assert not {p.data_ptr() for p in result.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert [sorted(m.__dict__) for m in result.modules()] == [sorted(m.__dict__) for m in base.modules()]
    inject(result, ["q_proj"], RANK, ALPHA)  # ready for the next adapter


@pytest.mark.parametrize("keep_base", [False, True])
def test_merged_of_a_merged_model(keep_base):
    model = merge_(model_of(), keep_base)
    with unchanged(model):
        result = merged(model)
    assert torch.equal(logits(result), logits(model))
    assert not lora_layers(result)


def test_merged_of_a_bare_layer():
    layer = layer_of()
    result = merged(layer)
    assert type(result) is nn.Linear
    assert torch.equal(result.weight, merged_weight(layer))
    assert not result.weight.requires_grad


def test_merged_model_saves_and_loads_as_a_plain_one(tmp_path):
    result = merged(model_of())
    result.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(result))


def test_global_random_state_is_untouched():
    model, before = model_of(dropout=0.5).train(), torch.get_rng_state()
    merged(unmerge_(merge_(model)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_merged_layer_has_no_second_sum():
    layer = merge_(layer_of())
    with pytest.raises(ValueError, match="already holds"):
        merged_weight(layer)


def poison(value: float, factor: str) -> nn.Module:
    model = model_of()
    with torch.no_grad():
        last = model.model.layers[1].mlp.down_proj
        (last.base.weight if factor == "W" else getattr(last, factor))[1, 2] = value
    return model


def overflowing() -> nn.Module:
    model = model_of(torch.float16)
    with torch.no_grad():
        layer = model.model.layers[1].mlp.down_proj
        layer.A.fill_(100.0)
        layer.B.fill_(100.0)  # s·BA = 2.5 · 4 · 10,000 > 65,504
    return model


def sharing() -> nn.Module:
    return fill(inject(llama(tied=True), ["q_proj", "lm_head"], RANK, ALPHA))


def half_sharing() -> nn.Module:
    return fill(inject(plain(), ["proj", "tied_a"], RANK, ALPHA))


def both_sharing() -> nn.Module:
    return fill(inject(plain(), ["proj", "tied_a", "tied_b"], RANK, ALPHA))


def normed(norm) -> nn.Module:
    model = plain()
    norm(model.my_proj)
    return fill(inject(model, ["my_proj"], RANK, ALPHA))


REFUSED = {
    "NaN in A": (lambda: poison(math.nan, "A"), r"layers\.1\.mlp\.down_proj: .* not finite .*nan"),
    "infinity in B": (lambda: poison(math.inf, "B"), r"layers\.1\.mlp\.down_proj: .* not finite"),
    "NaN in W": (lambda: poison(math.nan, "W"), r"down_proj: .* not finite .*max\|W\| = nan"),
    "fp16 overflow": (overflowing, r"not finite in torch.float16: .* limit 6\.55e\+04"),
    "head and embedding": (sharing, "lm_head shares its weight with model.embed_tokens"),
    "two layers, one adapted": (half_sharing, "tied_a shares its weight with tied_b"),
    "two layers, both adapted": (both_sharing, r"tied_b shares its weight with tied_a.base"),
    "weight norm": (lambda: normed(nn.utils.parametrizations.weight_norm), "my_proj: the weight is computed"),
    "spectral norm": (lambda: normed(nn.utils.spectral_norm), "my_proj: the weight is computed"),
    "no adapter": (llama, "LlamaForCausalLM has no LoRA layer"),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refused_merge_changes_nothing(build, words):
    model = build()
    for call in (merge_, merged, lambda m: merge_(m, keep_base=True)):
        with unchanged(model), pytest.raises(ValueError, match=words):
            call(model)


def test_two_parameters_over_one_memory_are_refused():
    model = plain()
    model.tied_b.weight = nn.Parameter(model.tied_a.weight.detach())
    fill(inject(model, ["tied_a"], RANK, ALPHA))
    with unchanged(model), pytest.raises(ValueError, match="tied_a shares its weight with tied_b"):
        merge_(model)
    assert torch.equal(merged(model).tied_b.weight, model.tied_b.weight)  # a copy has two memories


def test_a_large_but_harmless_adapter_is_merged():
    """The cheap bound on s·BA is above fp16's limit here, the sum itself is not."""
    layer = layer_of(torch.float16)
    with torch.no_grad():
        layer.A[:2], layer.A[2:] = 100.0, -100.0
        layer.B.fill_(100.0)
    weight = layer.base.weight.clone()
    assert torch.equal(merge_(layer).base.weight, weight)


def test_one_module_at_two_paths_is_merged_once():
    model = fill(inject(plain(), ["again"], RANK, ALPHA))
    expected = merged_weight(model.again)
    merge_(model)
    assert torch.equal(model.block["proj"].base.weight, expected)
    assert torch.equal(merged(model).again.weight, expected)


def test_the_adapters_stay_beside_and_train_again_after_unmerging():
    model = merge_(model_of())
    assert "kept_weight" not in "".join(model.state_dict())
    flags = [flag for _, _, flag, _ in fingerprint(model)[1]]
    unmerge_(model)
    assert [flag for _, _, flag, _ in fingerprint(model)[1]] == flags
    assert sum(flags) == 2 * len(lora_layers(model))
    assert all(not layer.base.weight.requires_grad for layer in lora_layers(model).values())


def test_the_kept_weight_moves_with_the_model():
    model = merge_(model_of(), keep_base=True).to(torch.float64)
    expected = llama().double().state_dict()
    state = eject(unmerge_(model)).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


class Stopping:
    """A `fold` or `unfold` that writes, and then is interrupted in its n-th call."""

    def __init__(self, real, at: int):
        self.real, self.at, self.calls = real, at, 0

    def __call__(self, layer, weight, out):
        self.calls += 1
        self.real(layer, weight, out)
        if self.calls == self.at:
            raise KeyboardInterrupt
        return out


@pytest.mark.parametrize("keep_base", [False, True])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_interrupted_the_layers_say_what_their_bases_hold(quantize, keep_base, monkeypatch):
    """Ctrl-C in the middle of a layer: that layer is as before, and unmerging and merging go on from there."""
    model = fill(inject(llama(), "all-linear", RANK, ALPHA, quantize=quantize))
    expected = logits(model)
    stop = Stopping(LoRALinear.fold, 5)
    monkeypatch.setattr(LoRALinear, "fold", lambda self, weight, out: stop(self, weight, out))
    with pytest.raises(KeyboardInterrupt):
        merge_(model, keep_base)
    monkeypatch.undo()
    assert sum(layer.merged for layer in lora_layers(model).values()) == 4
    if quantize is None:
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    if keep_base or quantize is None:
        torch.testing.assert_close(logits(unmerge_(model)), expected, rtol=1e-4, atol=1e-4)


def test_factors_in_half_precision_are_widened_before_they_are_multiplied():
    model = model_of().to(torch.bfloat16)
    for layer in lora_layers(model).values():
        exact = layer.base.weight.double() + layer.scale * layer.B.double() @ layer.A.double()
        assert ((merged_weight(layer).double() - exact).abs() <= 0.51 * ulp(exact, torch.bfloat16) + 1e-5).all()


def test_codes_of_a_dtype_that_cannot_hold_the_sum_are_left_alone():
    model = fill(inject(llama(torch.float16), "all-linear", RANK, ALPHA, quantize="nf4"))
    with torch.no_grad():
        layer = model.model.layers[1].mlp.down_proj
        layer.A.fill_(100.0)
        layer.B.fill_(100.0)
    with unchanged(model), pytest.raises(ValueError, match=r"down_proj: .* not finite in torch\.float16"):
        merge_(model)


def test_a_magnitude_of_zero_is_found_before_anything_is_unmerged():
    model = inject(llama(), ["q_proj", "down_proj"], RANK, ALPHA, layer=DoRALinear)
    model.model.layers[1].mlp.down_proj.magnitude.data[3] = 0
    merge_(fill(model))
    with unchanged(model), pytest.raises(ValueError, match="magnitude is 0 in 1 rows"):
        unmerge_(model)
