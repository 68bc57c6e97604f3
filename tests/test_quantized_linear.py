"""A quantized layer is a linear layer over its unpacked weight; it holds codes, hands on gradients, and keeps no Ŵ."""

import copy
import math
import pickle

import pytest
import torch
from models_for_tests import ALPHA, DTYPES, LANGUAGE_MODELS, RANK, fill, linear, llama, logits, plain, unchanged
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lora_lab import inject, lora_layers
from lora_lab.base import oriented_weight
from lora_lab.quantize import QuantizedTensor, error_bound, quantize
from lora_lab.quantized_linear import QuantizedLinear, quantize_model_

OUT, IN = 40, 70  # neither a multiple of 64, and 2800 numbers are no whole number of blocks
FORMS = {
    "nf4": {"kind": "nf4"},
    "nf4, scales in fp32": {"kind": "nf4", "double": False},
    "nf4, blocks of 7": {"kind": "nf4", "block_size": 7},
    "int8": {"kind": "int8"},
    "int8, doubly": {"kind": "int8", "block_size": 64, "double": True},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def quantized_layer(dtype=torch.float32, bias=True, conv1d=False, **form) -> QuantizedLinear:
    return QuantizedLinear.from_linear(linear(OUT, IN, bias, dtype, conv1d), **form)


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def assert_same_state(layer: nn.Module, expected: dict[str, Tensor]) -> None:
    found = layer.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@forms
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["bias", "no bias", "Conv1D"])
def test_forward_and_gradient_are_those_of_the_unpacked_weight(layout, dtype, form):
    base = linear(OUT, IN, layout == "bias", dtype, layout == "Conv1D")
    with unchanged(base):
        layer = QuantizedLinear.from_linear(base, **form)
    assert not layer.training  # as base
    assert not {p.data_ptr() for p in layer.parameters()} & {p.data_ptr() for p in base.parameters()}
    expected_weight = quantize(oriented_weight(base), **form).dequantize()
    assert torch.equal(layer.dequantized(), expected_weight)
    assert layer.dequantized().dtype == layer.dtype == dtype
    assert (layer.out_features, layer.in_features, layer.kind) == (OUT, IN, form["kind"])
    for x_dtype in {dtype, torch.float32}:
        for shape in ((IN,), (5, IN), (2, 3, IN), (0, IN)):
            results = []
            for ours in (True, False):
                x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(x_dtype).requires_grad_()
                bias = None if base.bias is None else base.bias.detach().to(x_dtype)
                y = layer(x) if ours else F.linear(x, layer.dequantized(x_dtype), bias)
                (y * torch.linspace(-1, 1, OUT, dtype=x_dtype)).sum().backward()
                results.append((y, x.grad))
            assert results[0][0].dtype == x_dtype
            torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
            torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=1e-6)


@forms
def test_everything_is_frozen(form):
    layer = quantized_layer(**form)
    layer(torch.randn(3, IN, requires_grad=True)).sum().backward()
    assert not any(p.requires_grad or p.grad is not None for p in layer.parameters())
    assert not layer(torch.randn(3, IN)).requires_grad
    assert layer.train().training


def saved_bytes(call) -> tuple[int, list[Tensor]]:
    """What autograd holds for the backward pass of `call()`."""
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call().sum().backward()
    return sum(tensor.nbytes for tensor in saved.values()), list(saved.values())


@forms
def test_the_unpacked_weight_is_not_kept_for_the_backward_pass(form):
    layer = quantized_layer(**form)
    x = torch.randn(3, IN, requires_grad=True)
    size, tensors = saved_bytes(lambda: layer(x))
    owned = {buffer.data_ptr() for buffer in layer.buffers()}
    assert {tensor.data_ptr() for tensor in tensors} <= owned  # nothing new: only what the layer holds anyway
    assert size <= layer.quantized.nbytes
    plain_size, _ = saved_bytes(lambda: F.linear(x, layer.dequantized(), layer.bias))
    assert plain_size >= OUT * IN * 4  # the measure does notice a weight that is kept


def test_codes_changed_before_backward_are_noticed():
    layer = quantized_layer()
    y = layer(torch.randn(3, IN, requires_grad=True))
    layer.requantize_(torch.randn(OUT, IN))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@forms
def test_half_and_double_leave_codes_and_scales_alone(form):
    layer = quantized_layer(**form)
    weight = layer.dequantized(torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        layer.to(dtype)
        assert layer.bias.dtype == dtype
        assert torch.equal(layer.dequantized(torch.float32), weight)


@forms
def test_copies_and_files_hold_the_same_layer(tmp_path, form):
    layer, x = quantized_layer(**form), torch.randn(3, IN)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other = QuantizedLinear.from_linear(linear(OUT, IN, conv1d=True), **form)
    other.requantize_(torch.randn(OUT, IN))
    assert not torch.equal(other(x), y)
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(other(x), y)
    different = quantized_layer(**({"kind": "int8"} if form["kind"] == "nf4" else {"kind": "nf4"}))
    with pytest.raises(RuntimeError, match="loading state_dict"):
        different.load_state_dict(layer.state_dict())


@forms
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_requantize_is_quantize_in_place(dtype, form):
    layer = quantized_layer(dtype, **form)
    where = {name: buffer.data_ptr() for name, buffer in layer.named_buffers()}
    weight = 3 * torch.randn(OUT, IN, dtype=torch.float64)
    assert layer.requantize_(weight) is layer
    assert {name: buffer.data_ptr() for name, buffer in layer.named_buffers()} == where
    assert torch.equal(layer.dequantized(), quantize(weight, **form).dequantize(dtype))
    assert ((layer.dequantized(torch.float32) - weight).abs() <= error_bound(layer.quantized, torch.float32)).all()


BAD_WEIGHTS = {
    "transposed": (ValueError, r"\(40, 70\), got \(70, 40\)", torch.ones(IN, OUT)),
    "a vector": (ValueError, r"got \(40,\)", torch.ones(OUT)),
    "NaN": (
        ValueError,
        "1 entries",
        torch.ones(OUT, IN).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan)),
    ),
    "infinite": (ValueError, "2800 entries", torch.full((OUT, IN), math.inf)),
    "above fp16": (ValueError, r"float16 holds numbers up to 6.55e\+04, got 7e\+04", torch.full((OUT, IN), 7e4)),
    "integers": (TypeError, "int64", torch.ones(OUT, IN, dtype=torch.int64)),
    "meta": (ValueError, "meta", torch.ones(OUT, IN, device="meta")),
    "a list": (TypeError, "got list", [[1.0]]),
}


@pytest.mark.parametrize(("error", "words", "weight"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_a_refused_weight_changes_nothing(error, words, weight):
    layer = quantized_layer(torch.float16)
    with unchanged(layer), pytest.raises(error, match=words):
        layer.requantize_(weight)


def test_only_linear_layers_are_quantized():
    attention = nn.MultiheadAttention(8, 2)
    for module in (nn.Embedding(5, 6), nn.LayerNorm(4), attention, attention.out_proj, quantized_layer()):
        with pytest.raises(TypeError, match=f"only nn.Linear and Conv1D .* got {type(module).__name__}"):
            QuantizedLinear.from_linear(module)
    with pytest.raises(ValueError, match=r"shape \(40,\), got \(70,\)"):
        QuantizedLinear(quantize(torch.ones(OUT, IN)), torch.ones(IN))
    whole = linear(OUT, IN)
    whole.weight = nn.Parameter(whole.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"got torch\.int8"):
        QuantizedLinear.from_linear(whole)


def test_autocast_sets_the_dtype(monkeypatch):
    layer, x = quantized_layer(), torch.randn(3, IN, requires_grad=True)
    unpack, asked = QuantizedTensor.dequantize, []
    monkeypatch.setattr(QuantizedTensor, "dequantize", lambda q, dtype: asked.append(dtype) or unpack(q, dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert asked == [torch.bfloat16]  # not in fp32 first
        assert layer(x.double()).dtype == torch.float64  # as nn.Linear: autocast leaves fp64 alone
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad[0], layer.dequantized().sum(dim=0), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    layer, grads = quantized_layer(), []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        x = torch.linspace(-1, 1, 3 * IN).view(3, IN).requires_grad_()
        call(x).square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_compiled():
    layer, x = quantized_layer(), torch.randn(3, IN, requires_grad=True)
    y = torch.compile(nn.Sequential(nn.Tanh(), layer), backend="aot_eager")(x)
    torch.testing.assert_close(y, layer(x.tanh()))
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), x), torch.autograd.grad(layer(x.tanh()).sum(), x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_whole_model(name, dtype):
    model = LANGUAGE_MODELS[name](dtype)
    before, names = logits(model).float(), [n for n, m in model.named_modules()]
    errors = {}
    for kind in ("nf4", "int8"):
        ours = quantize_model_(copy.deepcopy(model), "all-linear", kind)
        assert [n for n, m in ours.named_modules()] == names
        for path, layer in ours.named_modules():
            original = model.get_submodule(path)
            if isinstance(layer, QuantizedLinear):
                weight = oriented_weight(original).float()
                assert ((layer.dequantized(torch.float32) - weight).abs() <= error_bound(layer.quantized)).all()
                layer_bytes = sum(t.nbytes for t in [*layer.buffers(), *layer.parameters()])
                assert layer_bytes < sum(t.nbytes for t in original.parameters()) * (0.7 if kind == "int8" else 0.5)
            else:
                assert type(layer) is type(original)
        assert sum(isinstance(m, QuantizedLinear) for m in ours.modules()) == 2 * (7 if name == "llama" else 4)
        assert not isinstance(ours.get_output_embeddings(), QuantizedLinear)
        errors[kind] = ((logits(ours).float() - before).norm() / before.norm()).item()
        twin = copy.deepcopy(model)  # the same weights in plain layers
        for path, layer in ours.named_modules():
            if isinstance(layer, QuantizedLinear):
                with torch.no_grad():
                    oriented_weight(twin.get_submodule(path)).copy_(layer.dequantized())
        torch.testing.assert_close(logits(ours), logits(twin), rtol=1e-5, atol=1e-5)
    assert 0 < errors["int8"] < errors["nf4"] < 0.5


def test_an_adapter_trains_beside_codes():
    model = fill(inject(quantize_model_(llama(), ["q_proj", "down_proj"]), "all-linear", RANK, ALPHA))
    codes = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(input_ids=torch.arange(14).view(2, 7), labels=torch.arange(14).view(2, 7)).loss.backward()
    assert all(layer.A.grad.any() and layer.B.grad.any() for layer in lora_layers(model).values())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        f"{name}.{factor}" for name in lora_layers(model) for factor in "AB"
    }
    assert all(torch.equal(buffer, codes[name]) for name, buffer in model.named_buffers())
    assert sum(isinstance(layer.base, QuantizedLinear) for layer in lora_layers(model).values()) == 4


def test_a_module_at_two_paths_is_replaced_at_both():
    model = quantize_model_(plain(), ["again"])
    assert isinstance(model.again, QuantizedLinear)
    assert model.block["proj"] is model.again


def test_a_tied_head_is_left_alone():
    model = quantize_model_(llama(tied=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def poisoned() -> nn.Module:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = math.nan
    return model


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)))


REFUSED = {
    "NaN in the last layer": (poisoned, {}, r"layers.1.mlp.down_proj: weight \(32, 48\) has 1 entries"),
    "tied head": (lambda: llama(tied=True), {"targets": ["lm_head", "q_proj"]}, "lm_head shares its weight"),
    "two layers over one weight": (plain, {"targets": ["tied_a"]}, "tied_a shares its weight with tied_b"),
    "weight norm": (normed, {"targets": "0"}, "0: the weight is computed"),
    "adapted": (lambda: inject(llama(), ["q_proj"], RANK, ALPHA), {}, "carries an adapter"),
    "quantized already": (lambda: quantize_model_(llama()), {"targets": ["q_proj"]}, "2 layers are quantized already"),
    "no such layer": (llama, {"targets": ["query"]}, "'query' matches no module"),
    "not linear": (llama, {"targets": ["embed_tokens"]}, "Embedding"),
    "kind": (llama, {"kind": "int4"}, "q_proj: kind must be .* got 'int4'"),
    "block size": (llama, {"block_size": 0}, "at least 1, got 0"),
    "double": (llama, {"double": "no"}, "got 'no'"),
}


@pytest.mark.parametrize(("build", "settings", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refused_model_is_unchanged(build, settings, words):
    model = build()
    with unchanged(model), pytest.raises(ValueError, match=words):
        quantize_model_(model, **settings)


def test_a_model_without_numbers_is_refused():
    with pytest.raises(ValueError, match=r"q_proj.weight \(32, 32\) is on the meta device"):
        quantize_model_(llama().to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    layer, x = quantized_layer(), torch.randn(3, IN)
    y = layer(x)
    layer.cuda()
    assert all(buffer.is_cuda for buffer in layer.buffers())
    torch.testing.assert_close(layer(x.cuda()).cpu(), y, rtol=1e-4, atol=1e-4)
