"""validate_merge passes a right merge in every dtype and fails on one that is wrong in any one place."""

import copy

import pytest
import torch
from experts_for_tests import DOWN, MIXTURES, UP, fill_experts
from models_for_tests import ALPHA, DTYPES, LANGUAGE_MODELS, RANK, fill, linear, token_ids, unchanged
from torch import Tensor, nn

from lora_lab import LoRALinear, inject, lora_layers, merge_, merged, unmerge_
from lora_lab.base import is_conv1d, oriented_weight
from lora_lab.merge_bound import exact_merge
from lora_lab.merge_check import validate_merge
from lora_lab.variants import DoRALinear
from lora_lab.variants.experts import expert_layers, inject_experts

INPUTS = {"input_ids": token_ids()}


def adapted(dtype=torch.float32, name="llama", **settings) -> nn.Module:
    return fill(inject(LANGUAGE_MODELS[name](dtype), "all-linear", RANK, ALPHA, **settings))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_right_merge_passes(dtype, name):
    before = adapted(dtype, name, rslora=name == "gpt2")
    with unchanged(before):
        report = validate_merge(before, merged(before), INPUTS)
    assert report.passed, report
    assert set(report.layers) == set(lora_layers(before))
    assert all(0 <= layer.times_bound <= 1 for layer in report.layers.values())
    in_place = validate_merge(before, merge_(copy.deepcopy(before)), [INPUTS, INPUTS])
    assert in_place.passed
    assert "merge right" in str(in_place)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_right_merge_into_codes_passes(kind, dtype):
    before = adapted(dtype, quantize=kind)
    report = validate_merge(before, merged(before), INPUTS)
    assert report.passed, report
    assert max(layer.times_bound for layer in report.layers.values()) > 0.3  # the bound is not merely huge


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_bound_is_tight_enough_to_mean_something(dtype):
    """The worst entry of a right merge comes near its bound in half precision, where rounding dominates."""
    report = validate_merge(before := adapted(dtype), merged(before), INPUTS)
    worst = max(layer.times_bound for layer in report.layers.values())
    assert worst > (0.8 if dtype in (torch.bfloat16, torch.float16) else 0.01)


def forget(base: nn.Module, layer: LoRALinear) -> Tensor:
    return oriented_weight(layer.base)


def no_scale(base: nn.Module, layer: LoRALinear) -> Tensor:
    return oriented_weight(layer.base) + layer.delta_weight() / layer.scale


def twice(base: nn.Module, layer: LoRALinear) -> Tensor:
    return oriented_weight(layer.base) + 2 * layer.delta_weight()


def zeroed(base: nn.Module, layer: LoRALinear) -> Tensor:
    return torch.zeros_like(oriented_weight(base))


def one_entry(base: nn.Module, layer: LoRALinear) -> Tensor:
    weight = oriented_weight(base).clone()
    weight[1, 2] += 0.05 * weight.abs().max()
    return weight


def rounded_twice(base: nn.Module, layer: LoRALinear) -> Tensor:
    low = torch.bfloat16
    return oriented_weight(layer.base).to(low) + (layer.scale * layer.B.to(low) @ layer.A.to(low))


SABOTAGE = [forget, no_scale, twice, zeroed, one_entry, rounded_twice]


@pytest.mark.parametrize("sabotage", SABOTAGE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_one_sabotaged_layer_is_found(sabotage, dtype):
    before = adapted(dtype)
    right = merged(before)
    for name, layer in lora_layers(before).items():
        after = copy.deepcopy(right)
        base = after.get_submodule(name)
        with torch.no_grad():
            weight = sabotage(base, layer)
            oriented_weight(base).copy_(weight)
        report = validate_merge(before, after, INPUTS)
        assert not report.passed
        assert name in report.faults[0]
        assert name in str(report)


@torch.no_grad()
def change(parameter: Tensor) -> None:
    parameter.view(-1)[0] += 0.25


def unmerged_one(model: nn.Module) -> None:
    unmerge_(model.model.layers[1].mlp)


OTHER_FAULTS = {
    "norm": (lambda m: change(m.model.norm.weight), "model.norm.weight differs"),
    "embedding": (lambda m: change(m.model.embed_tokens.weight), "embed_tokens.weight differs"),
    "head": (lambda m: change(m.lm_head.weight), "lm_head.weight differs"),
    "buffer": (lambda m: change(m.model.rotary_emb.inv_freq), "inv_freq differs"),
    "missing layer": (lambda m: setattr(m.model.layers[0].mlp, "down_proj", nn.Identity()), "down_proj is missing"),
    "other shape": (lambda m: setattr(m.model.layers[0].mlp, "down_proj", linear(32, 40)), "has the shape (32, 40)"),
    "still adapted": (unmerged_one, "still carries its adapter unmerged"),
    "NaN": (lambda m: m.lm_head.weight.data.fill_(float("nan")), "NaN"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("damage", "words"), OTHER_FAULTS.values(), ids=OTHER_FAULTS)
def test_whatever_else_is_wrong_is_found(damage, words):
    before = adapted()
    after = merge_(copy.deepcopy(before))
    damage(after)
    report = validate_merge(before, after, INPUTS)
    assert not report.passed
    assert any(words in fault for fault in report.faults), report.faults


def test_a_changed_bias_is_found():
    before = adapted(name="gpt2")
    after = merged(before)
    change(after.transformer.h[1].attn.c_attn.bias)
    assert any("c_attn.bias differs" in fault for fault in validate_merge(before, after, INPUTS).faults)


def test_the_numbers_are_what_they_say():
    before = adapted()
    after = merged(before)
    with torch.no_grad():
        after.model.layers[0].mlp.down_proj.weight.mul_(1.5)
        x, y = before(**INPUTS).logits.double(), after(**INPUTS).logits.double()
    report = validate_merge(before, after, INPUTS)
    p = x.softmax(-1)
    assert report.max_error == pytest.approx((x - y).abs().max().item(), rel=1e-4)
    assert report.mean_error == pytest.approx((x - y).abs().mean().item(), rel=1e-4)
    assert report.relative_error == pytest.approx(((x - y).norm() / x.norm()).item(), rel=1e-4)
    assert report.argmax_agreement == pytest.approx((x.argmax(-1) == y.argmax(-1)).double().mean().item())
    assert report.kl == pytest.approx((p * (x.log_softmax(-1) - y.log_softmax(-1))).sum(-1).mean().item(), rel=1e-4)


def test_padding_does_not_count():
    before = adapted()
    after = merged(before)
    after.model.layers[0].mlp.down_proj.weight.data.mul_(1.5)
    ids = token_ids()
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    whole = validate_merge(before, after, {"input_ids": ids[:, :5]})
    padded = validate_merge(before, after, {"input_ids": ids, "attention_mask": mask})
    assert padded.mean_error == pytest.approx(whole.mean_error, rel=1e-4)


def test_dropout_is_off_and_modes_stay():
    before = adapted(dropout=0.4).train()
    report = validate_merge(before, merged(before), INPUTS)
    assert report.passed
    assert report.max_error < 1e-3
    assert before.training


def test_what_cannot_be_compared_is_refused():
    before = adapted()
    after = merged(before)
    for model, other, words in (
        (after, after, "no LoRA layer"),
        (merge_(copy.deepcopy(before)), after, "14 merged layers"),
        (before, before, "compare a model with itself"),
    ):
        with pytest.raises(ValueError, match=words):
            validate_merge(model, other, INPUTS)
    with pytest.raises(ValueError, match="inputs is empty"):
        validate_merge(before, after, [])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [1, 12])
@pytest.mark.parametrize("conv1d", [False, True])
def test_the_bound_holds_at_any_scale(dtype, rank, conv1d):
    """Updates from far smaller to far larger than W, on many random layers."""
    for seed, size in enumerate((1e-4, 1e-2, 1, 10)):
        base = linear(40, 24, dtype=dtype, conv1d=conv1d)
        layer = LoRALinear(base, rank, rank + 5)
        g = torch.Generator().manual_seed(seed)
        layer.A.data.copy_(size * torch.randn(layer.A.shape, generator=g))
        layer.B.data.copy_(torch.randn(layer.B.shape, generator=g))
        after = merged(layer)
        assert is_conv1d(after) == conv1d
        W = oriented_weight(base).double()
        exact, bound = exact_merge(layer, after)
        torch.testing.assert_close(exact, W + layer.scale * layer.B.double() @ layer.A.double())
        assert ((oriented_weight(after).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unmerging_drifts_once_and_then_no_further(dtype):
    """Merged and unmerged twenty times, W is off by at most one rounding of W + ΔW and one of W."""
    model = adapted(dtype)
    before = {name: oriented_weight(layer.base).clone().double() for name, layer in lora_layers(model).items()}
    for _ in range(20):
        unmerge_(merge_(model))
    for name, layer in lora_layers(model).items():
        W, delta = before[name], layer.delta_weight().double()
        unit = torch.finfo(dtype).eps / 2
        wide = torch.finfo(layer.A.dtype).eps
        allowed = unit * ((W + delta).abs() + W.abs()) * 1.01 + 4 * RANK * wide * (W.abs() + delta.abs() + 1)
        assert ((oriented_weight(layer.base).double() - W).abs() <= allowed).all()


def test_fp64_llama_is_checked_in_fp64():
    before = adapted(torch.float64)
    after = merged(before)
    after.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-12
    assert not validate_merge(before, after, INPUTS).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("larger", [1, 30, 1000])
def test_dora_is_held_against_its_own_formula(larger, dtype):
    before = adapted(dtype, layer=DoRALinear)
    for layer in lora_layers(before).values():
        layer.magnitude.data.mul_(larger)
    assert validate_merge(before, merged(before), INPUTS).passed
    twin = fill(inject(LANGUAGE_MODELS["llama"](dtype), "all-linear", RANK, ALPHA))  # merged as if it were plain LoRA
    assert not validate_merge(before, merged(twin), INPUTS).passed


def half_the_scale(self, weight: Tensor, out: Tensor) -> Tensor:
    return out.copy_(weight + self.delta_weight() / 2)


def plain_lora(self, weight: Tensor, out: Tensor) -> Tensor:
    return LoRALinear.fold(self, weight, out)


@pytest.mark.parametrize(("cls", "wrong"), [(LoRALinear, half_the_scale), (DoRALinear, plain_lora)], ids=str)
def test_the_reference_does_not_come_from_what_merges(cls, wrong, monkeypatch):
    """A fault in the formula itself is found: the check computes W* by itself."""
    before = adapted(layer=cls)
    for layer in lora_layers(before).values():
        if cls is DoRALinear:
            layer.magnitude.data.mul_(3)
    monkeypatch.setattr(cls, "fold", wrong)
    assert len(validate_merge(before, merged(before), INPUTS).faults) == len(lora_layers(before))


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_checked_too(name):
    before = fill_experts(inject_experts(MIXTURES[name](), [UP, DOWN], RANK, ALPHA))
    after = merged(before)
    assert validate_merge(before, after, INPUTS).passed
    assert len(validate_merge(before, after, INPUTS).layers) == 4
    with torch.no_grad():
        change(next(iter(after.get_submodule(next(iter(expert_layers(before)))).parameters())))
    assert not validate_merge(before, after, INPUTS).passed


def test_a_parameter_in_another_dtype_is_found():
    before = adapted()
    after = merged(before)
    after.model.norm.to(torch.bfloat16)
    assert any("is torch.bfloat16, not torch.float32" in f for f in validate_merge(before, after, INPUTS).faults)


def test_a_reference_that_is_not_finite_is_refused():
    before = adapted()
    after = merged(before)
    before.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"norm\.weight of the model before"):
        validate_merge(before, after, INPUTS)
