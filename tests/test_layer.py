"""LoRALinear against its equation, torch's numerical gradients, and the promises of its docstring."""

import copy
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from models_for_tests import ALPHA, DTYPES, HALF, RANK, fill, linear, llama, token_ids, unchanged
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lora_lab import LoRALinear, inject, lora_layers, merged_weight, scale_of
from lora_lab.base import oriented_weight
from lora_lab.init import default_factors

OUT, IN = 20, 12


def layer_of(dtype=torch.float32, conv1d=False, bias=True, **settings) -> LoRALinear:
    return fill(LoRALinear(linear(OUT, IN, bias, dtype, conv1d), RANK, ALPHA, **settings))


def exact(layer: LoRALinear, x: torch.Tensor) -> torch.Tensor:
    """W x + b + s·B(A x) in fp64."""
    W, A, B, x = (t.detach().double() for t in (oriented_weight(layer.base), layer.A, layer.B, x))
    bias = 0 if layer.base.bias is None else layer.base.bias.detach().double()
    return x @ W.T + bias + layer.scale * (x @ A.T) @ B.T


@pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 3, IN), (0, IN)], ids=str)
@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_equation(dtype, conv1d, shape):
    layer, x = layer_of(dtype, conv1d), torch.randn(shape, dtype=dtype)
    y = layer(x)
    # Each of the two paths rounds its sums; a half base also rounds its own output, and then the total.
    bound = 4 * IN * torch.finfo(dtype).eps * (1 + exact(layer, x).abs().max().item() if x.numel() else 1)
    assert y.dtype == dtype
    assert y.shape == (*shape[:-1], OUT)
    assert ((y.double() - exact(layer, x)).abs() <= bound).all()


@pytest.mark.parametrize("conv1d", [False, True])
def test_two_paths_agree(conv1d):
    layer, x = layer_of(torch.float64, conv1d), torch.randn(5, IN, dtype=torch.float64)
    weight = merged_weight(layer).T if conv1d else merged_weight(layer)
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.base.bias))


def test_scale():
    base = linear(OUT, IN)
    assert LoRALinear(base, 4, 10).scale == scale_of(4, 10) == 2.5
    assert LoRALinear(base, 4, 10, rslora=True).scale == scale_of(4, 10, rslora=True) == 5.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("conv1d", [False, True])
def test_a_new_layer_answers_like_its_base(conv1d, dtype):
    base, x = linear(OUT, IN, dtype=dtype, conv1d=conv1d), torch.randn(5, IN, dtype=dtype)
    layer = LoRALinear(base, RANK, ALPHA, dropout=0.5)
    assert layer.base is base
    assert torch.equal(layer(x), base(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_factors_train_and_in_which_dtype(dtype):
    layer = layer_of(dtype)
    layer(torch.randn(5, IN, dtype=dtype)).sum().backward()
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["A", "B"]
    assert layer.base.weight.grad is None
    assert layer.base.bias.grad is None
    assert layer.A.dtype == layer.B.dtype == (torch.float32 if dtype in HALF else dtype)


@pytest.mark.parametrize("conv1d", [False, True])
def test_gradients_against_finite_differences(conv1d):
    layer = layer_of(torch.float64, conv1d)
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)

    def of(x, A, B):
        return torch.func.functional_call(layer, {"A": A, "B": B}, (x,))

    assert torch.autograd.gradcheck(of, (x, layer.A, layer.B))


def test_dropout_touches_the_adapter_path_only():
    layer, x = layer_of(dropout=0.4), torch.randn(50, IN)
    torch.manual_seed(1)
    y = layer.train()(x)
    torch.manual_seed(1)
    kept = F.dropout(x, 0.4)
    assert (kept == 0).any()
    torch.testing.assert_close(y, layer.base(x) + layer.scale * kept @ layer.A.T @ layer.B.T)
    torch.testing.assert_close(layer.eval()(x), exact(layer, x).float())


@pytest.mark.parametrize("conv1d", [False, True])
def test_default_start(conv1d):
    weight = oriented_weight(linear(600, 150, conv1d=conv1d))
    A, B = default_factors(weight, 100)
    bound = 150**-0.5
    assert (A.shape, B.shape) == ((100, 150), (600, 100))
    assert not B.any()
    assert 0.99 * bound < A.abs().max() <= bound
    # Of n uniform draws: variance bound²/3, whose own standard deviation is bound²·sqrt(4/45/n); six of them.
    assert A.var().item() == pytest.approx(bound**2 / 3, abs=6 * bound**2 * (4 / 45 / A.numel()) ** 0.5)
    assert abs(A.mean()) < 6 * (bound**2 / 3 / A.numel()) ** 0.5


def test_factors_are_copies_of_what_an_init_returns():
    """An init may return views of the weight, or the same tensors for two layers: training must not tie them."""
    base, shared = linear(OUT, IN), (torch.ones(RANK, IN), torch.ones(OUT, RANK))
    model = inject(nn.Sequential(linear(OUT, IN), linear(OUT, IN)), ["0", "1"], RANK, ALPHA, init=lambda *_: shared)
    layers = [LoRALinear(base, RANK, ALPHA, init=lambda W, r, s: (W[:r], W[:, :r])), *model]
    pointers = [t.data_ptr() for layer in layers for t in (layer.A, layer.B, layer.base.weight)]
    assert len(set(pointers)) == 9
    assert torch.equal(layers[0].A, base.weight[:RANK])


WRONG = {
    "rank 0": ({"rank": 0}, ValueError, "from 1 to min(out, in) = 12, got 0"),
    "rank -1": ({"rank": -1}, ValueError, "got -1"),
    "rank 1.5": ({"rank": 1.5}, ValueError, "whole number.*got 1.5"),
    "rank True": ({"rank": True}, ValueError, "got True"),
    "rank 13": ({"rank": IN + 1}, ValueError, "= 12, got 13"),
    "rank str": ({"rank": "4"}, ValueError, "got '4'"),
    "alpha 0": ({"alpha": 0}, ValueError, "alpha must be a positive finite number, got 0"),
    "alpha -1": ({"alpha": -1.0}, ValueError, "alpha.*got -1.0"),
    "alpha nan": ({"alpha": float("nan")}, ValueError, "alpha.*got nan"),
    "alpha inf": ({"alpha": float("inf")}, ValueError, "alpha.*got inf"),
    "alpha str": ({"alpha": "16"}, ValueError, "alpha.*got '16'"),
    "alpha None": ({"alpha": None}, ValueError, "alpha.*got None"),
    "dropout 1": ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
    "dropout -0.1": ({"dropout": -0.1}, ValueError, "dropout.*got -0.1"),
    "dropout nan": ({"dropout": float("nan")}, ValueError, "dropout.*got nan"),
    "dropout None": ({"dropout": None}, ValueError, "dropout.*got None"),
    "init shapes": (
        {"init": lambda W, r, s: (W.new_zeros(r, OUT), W.new_zeros(IN, r))},
        ValueError,
        "init must return",
    ),
}


@pytest.mark.parametrize(("settings", "error", "words"), WRONG.values(), ids=WRONG)
def test_wrong_settings_are_refused(settings, error, words):
    base = linear(OUT, IN)
    with unchanged(base), pytest.raises(error, match=words.replace("(out, in)", r"\(out, in\)")):
        LoRALinear(base, **({"rank": RANK, "alpha": ALPHA} | settings))


def integer_linear() -> nn.Linear:
    base = linear(OUT, IN).requires_grad_(False)
    base.weight = nn.Parameter(torch.ones(OUT, IN, dtype=torch.int8), requires_grad=False)
    return base


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (nn.LayerNorm(6), "got LayerNorm"),
        (nn.Embedding(9, 6), "got Embedding"),
        (nn.MultiheadAttention(6, 2).out_proj, "NonDynamicallyQuantizableLinear"),
        (integer_linear(), "int8: dequantize"),
    ],
    ids=str,
)
def test_other_layers_are_refused(base, words):
    with unchanged(base), pytest.raises(TypeError, match=words):
        LoRALinear(base, 2, ALPHA)


def test_numbers_may_come_from_numpy():
    layer = LoRALinear(linear(OUT, IN), np.int64(4), np.float32(2.5), np.float64(0.5))
    assert (layer.rank, layer.alpha, layer.scale) == (4, 2.5, 0.625)
    assert (type(layer.rank), type(layer.alpha), type(layer.scale)) == (int, float, float)
    assert "rank=4, alpha=2.5, scale=0.625" in repr(layer)


def test_copies_and_files_hold_the_same_layer():
    layer, x, file = layer_of(torch.bfloat16), torch.randn(3, IN).bfloat16(), io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), layer(x))
        assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in layer.parameters()]
        assert twin.A is not layer.A
    fresh = LoRALinear(linear(OUT, IN, dtype=torch.bfloat16), RANK, ALPHA)
    fresh.load_state_dict(layer.state_dict())
    assert sorted(layer.state_dict()) == ["A", "B", "base.bias", "base.weight"]
    assert torch.equal(fresh(x), layer(x))


def test_moving_to_another_dtype_or_device_moves_all():
    layer = layer_of().to(torch.float64)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert layer(torch.randn(2, IN, dtype=torch.float64)).dtype == torch.float64
    layer = layer.to(torch.bfloat16)
    assert layer(torch.randn(2, IN, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.delta_weight().dtype == torch.float32
    layer = layer.to("meta")
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer(torch.randn(2, IN, device="meta", dtype=torch.bfloat16)).shape == (2, OUT)
    assert LoRALinear(linear(OUT, IN).to("meta"), RANK, ALPHA).A.device.type == "meta"


def test_gradient_checkpointing_changes_nothing():
    gradients, calls = [], []
    for checkpointed in (False, True):
        model = fill(inject(llama(), "all-linear", RANK, ALPHA, dropout=0.2)).train()
        if checkpointed:
            renamed = hasattr(model, "activation_checkpointing_enable")  # by transformers, during 5.x
            enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_, on=checkpointed: calls.append(on))
        torch.manual_seed(3)
        model(input_ids=token_ids(), labels=token_ids()).loss.backward()
        gradients.append([p.grad for layer in lora_layers(model).values() for p in (layer.A, layer.B)])
    assert calls == [False, True, True]  # the second forward pass of checkpointing
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_checkpoint_of_a_layer():
    layer, x = layer_of(), torch.randn(3, IN)
    gradients = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        layer.zero_grad()
        call(x).square().sum().backward()
        gradients.append((layer.A.grad, layer.B.grad))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_autocast():
    model = fill(inject(llama(), "all-linear", RANK, ALPHA))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
        assert model.model.layers[0].mlp.up_proj(torch.randn(2, 32)).dtype == torch.bfloat16
    loss.backward()
    layer = next(iter(lora_layers(model).values()))
    assert layer.A.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(model(input_ids=token_ids(), labels=token_ids()).loss.item(), rel=0.02)


def test_the_core_needs_no_transformers():
    code = """
import sys, torch
sys.modules["transformers"] = sys.modules["peft"] = None  # importing either fails
import lora_lab
model = lora_lab.inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), ["0"], 2, 5)
lora_lab.merge_(model)
lora_lab.eject(lora_lab.unmerge_(model))
found = [name for name in ("IPython", "matplotlib", "ipywidgets", "notebook") if name in sys.modules]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_generation_runs_through_the_layers():
    model = fill(inject(llama(), "all-linear", RANK, ALPHA))
    answer = model.generate(token_ids(1, 4), max_new_tokens=1, do_sample=False)
    with torch.no_grad():
        assert answer[0, -1] == model(input_ids=answer[:, :-1]).logits[0, -1].argmax()
