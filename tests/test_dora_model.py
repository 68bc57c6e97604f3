"""DoRA in a model: merged and unmerged, on shifted and quantized bases, saved and loaded here and by PEFT."""

import copy

import peft
import pytest
import torch
from models_for_tests import (
    ALPHA,
    DTYPES,
    LANGUAGE_MODELS,
    RANK,
    fingerprint,
    linear,
    llama,
    logits,
    peft_twin,
    unchanged,
)
from torch import nn
from torch.nn import functional as F
from variants_for_tests import close, directions, dora, halves, one_layer, peft_magnitudes, ten_steps, trained

from lora_lab import eject, inject, load_adapter, lora_layers, merge_, merged, save_adapter, unmerge_
from lora_lab.base import oriented_weight
from lora_lab.quantized_linear import QuantizedLinear
from lora_lab.variants.dora import DoRALinear

KINDS = ("bias", "no bias", "Conv1D")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_merge_and_unmerge(kind, dtype):
    model = nn.Sequential(linear(24, 40, kind == "bias", dtype, kind == "Conv1D"))
    trained(dora(model, ["0"], dropout=0.2)).eval()
    layer, x = model[0], torch.randn(3, 40).to(dtype)
    before, y = layer.base.weight.clone(), model(x)
    rows = directions(layer, oriented_weight(layer.base))
    expected = layer.magnitude.double()[:, None] * rows / rows.norm(dim=1, keepdim=True)
    plain = merged(model)
    assert torch.equal(layer.base.weight, before)
    merge_(model)
    assert torch.equal(plain[0].weight, layer.base.weight)
    rounding = torch.finfo(dtype).eps
    close(oriented_weight(layer.base).double(), expected, max(rounding, 1e-15))
    close(model(x), y, 20 * rounding)
    assert torch.equal(merge_(model)[0].base.weight, plain[0].weight)
    back = oriented_weight(layer.base) - layer.delta_weight()
    close(back, (before.T if kind == "Conv1D" else before).to(back.dtype), 4 * rounding)
    close(unmerge_(model)[0].base.weight, before, 4 * rounding)
    assert layer.base.weight.dtype == dtype
    close(model(x), y, 20 * rounding)
    restored = layer.base.weight.clone()
    assert torch.equal(unmerge_(merge_(model, keep_base=True))[0].base.weight, restored)


def test_merging_twice_after_training_on_uses_the_new_lengths():
    model = trained(dora(nn.Sequential(linear(24, 40, dtype=torch.float64)), ["0"]))
    before = model[0].base.weight.clone()
    unmerge_(merge_(model))
    with torch.no_grad():
        model[0].B.mul_(3)
    close(unmerge_(merge_(model))[0].base.weight, before, 1e-14)


def test_merged_model():
    model = trained(dora(llama(), "all-linear"))
    expected = logits(model)
    assert not lora_layers(merged(model))
    close(logits(merged(model)), expected, 1e-5)


@pytest.mark.parametrize(("field", "value"), [("A", "nan"), ("B", "inf"), ("magnitude", "nan"), ("magnitude", "7e6")])
def test_what_cannot_be_merged_is_refused(field, value):
    model = trained(dora(nn.Sequential(linear(24, 40, dtype=torch.float16)), ["0"]))
    with torch.no_grad():
        getattr(model[0], field)[2] = float(value)
    for call in (merge_, merged):
        with unchanged(model), pytest.raises(ValueError, match=r"is not finite in torch.float16"):
            call(model)


def test_a_magnitude_of_zero_is_refused_where_it_would_lose_the_weight():
    model = trained(dora(nn.Sequential(linear(24, 40)), ["0"]))
    with torch.no_grad():
        model[0].magnitude[5] = 0
    assert not merged(model)[0].weight[5].any()
    with unchanged(merge_(model)), pytest.raises(ValueError, match="magnitude is 0 in 1 rows"):
        unmerge_(model)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_init_keeps_the_magnitude_and_the_function(kind, dtype):
    base = nn.Sequential(linear(40, 24, kind == "bias", dtype, kind == "Conv1D"))
    weight, x = oriented_weight(base[0]).double().clone(), torch.randn(3, 24).to(dtype)
    y = base(x)
    pending = DoRALinear(base[0], RANK, ALPHA, init=halves)  # its base is not shifted yet
    model = dora(base, ["0"], init=halves)
    assert model[0].shifted
    assert not torch.equal(oriented_weight(model[0].base).double(), weight)
    tolerance = 4 * max(torch.finfo(dtype).eps, 1e-6 if dtype == torch.float32 else 0)
    for layer in (pending, model[0]):
        close(layer.magnitude.double(), weight.norm(dim=1), 1e-6)
        layer.B.data.mul_(1)
    close(model(x), y, 4 * tolerance)
    close(oriented_weight(merged(model)[0]).double(), weight, tolerance)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_residual_inits_with_dora_as_in_peft(init):
    base = llama()
    expected = logits(base)
    twin = peft_twin(base, ["q_proj", "down_proj"], init_lora_weights=init, use_dora=True)
    ours = dora(base, ["q_proj", "down_proj"], init=init)
    close(logits(ours), expected, 1e-5)
    for path, magnitude in peft_magnitudes(twin).items():
        layer = lora_layers(ours)[path]
        close(layer.magnitude, magnitude, 1e-5)
        close(layer.base.weight, twin.base_model.model.get_submodule(path).base_layer.weight, 1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_quantized_base_the_magnitude_is_that_of_the_codes(kind):
    base = nn.Sequential(linear(64, 128, dtype=torch.bfloat16))
    plain = inject(copy.deepcopy(base), ["0"], RANK, ALPHA, quantize=kind)
    original = base[0].weight.clone()
    model = dora(base, ["0"], quantize=kind, dropout=0.25)
    layer = model[0]
    assert isinstance(layer.base, QuantizedLinear)
    weight = layer.base.dequantized().double()
    close(layer.magnitude.double(), weight.norm(dim=1), 1e-6)
    assert (layer.magnitude - original.double().norm(dim=1)).abs().max() > 1e-4
    x = torch.randn(3, 128).bfloat16()
    assert torch.equal(layer(x), layer.base(x))
    assert torch.equal(layer(x), plain(x))
    trained(model).train()
    y, rows = model.eval()(x), directions(layer, weight)
    expected = layer.base.bias + layer.magnitude * F.linear(x.double(), rows / rows.norm(dim=1, keepdim=True))
    close(y.double(), expected.double(), 0.02)
    model.train()
    torch.manual_seed(8)
    y = layer(x).double()
    torch.manual_seed(8)
    dropped, ratio = F.dropout(x.float(), 0.25).double(), (layer.magnitude / rows.norm(dim=1)).detach()
    straight, update = dropped @ weight.T, dropped @ (rows - weight).T
    close(y, layer.base(x).double() + (ratio - 1) * straight + ratio * update, 0.01)
    x.requires_grad_()
    model(x).sum().backward()
    assert all(p.grad.any() for p in (x, layer.A, layer.B, layer.magnitude))
    with torch.no_grad():
        close(merged(model)(x).double(), model.eval()(x).double(), 0.1 if kind == "nf4" else 0.03)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_saved_here_and_loaded_here_and_by_peft(name, tmp_path):
    base = LANGUAGE_MODELS[name]()
    model = trained(dora(copy.deepcopy(base), "all-linear", dropout=0.1, rslora=True)).eval()
    save_adapter(model, tmp_path)
    again = load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(again), logits(model))
    for path, layer in lora_layers(again).items():
        assert type(layer) is DoRALinear
        assert layer.magnitude.requires_grad
        assert torch.equal(layer.magnitude, lora_layers(model)[path].magnitude)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    close(logits(theirs), logits(model), 1e-5)


def test_saved_by_peft_and_loaded_here(tmp_path):
    base = llama()
    twin = peft_twin(base, ["q_proj", "down_proj"], use_dora=True)
    ten_steps(twin)
    twin.eval().save_pretrained(tmp_path)
    ours = load_adapter(base, tmp_path)
    close(logits(ours), logits(twin), 1e-5)
    assert all(type(layer) is DoRALinear for layer in lora_layers(ours).values())


@pytest.mark.filterwarnings("ignore:OLoRA changes the base weights:UserWarning")
def test_a_file_that_peft_converted_without_the_magnitudes_is_refused(tmp_path):
    base = llama()
    twin = peft_twin(base, ["q_proj"], init_lora_weights="olora", use_dora=True)
    twin.peft_config["default"].init_lora_weights = True
    twin.save_pretrained(tmp_path / "start")
    twin.peft_config["default"].init_lora_weights = "olora"
    twin.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=tmp_path / "start")
    with unchanged(base), pytest.raises(ValueError, match="q_proj has only lora_A, lora_B: magnitude is missing"):
        load_adapter(base, tmp_path / "end")


def test_a_residual_init_is_saved_as_plain_dora_of_twice_the_rank(tmp_path):
    base = llama()
    model = trained(dora(copy.deepcopy(base), ["q_proj", "down_proj"], init=halves))
    save_adapter(model, tmp_path)
    expected = logits(model)
    close(logits(load_adapter(copy.deepcopy(base), tmp_path)), expected, 1e-5)
    close(logits(load_adapter(copy.deepcopy(base), tmp_path, plain=True)), expected, 1e-4)
    close(logits(peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)), expected, 1e-4)


def test_a_quantized_base_is_saved_with_its_trained_magnitude(tmp_path):
    base = llama(hidden=64)
    model = trained(dora(copy.deepcopy(base), ["q_proj"], quantize="nf4"))
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(base, tmp_path)), logits(model))


def test_eject_gives_the_model_back():
    model = llama()
    before = fingerprint(model)
    eject(trained(dora(model, "all-linear")))
    assert [name for name, *_ in fingerprint(model)[1]] == [name for name, *_ in before[1]]
    assert all(torch.equal(tensor, before[2][name]) for name, tensor in model.state_dict().items())


def test_unfold_without_fold_is_refused():
    layer = one_layer("bias")
    with pytest.raises(ValueError, match="nothing was folded"):
        layer.unfold(layer.base.weight, torch.empty(24, 40))
