"""DoRA's layer: its formula against arithmetic, every number against PEFT's, what it costs, what is refused."""

import pytest
import torch
from models_for_tests import DTYPES, HALF, LANGUAGE_MODELS, linear, llama, peft_factors, peft_twin, unchanged
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from variants_for_tests import (
    Largest,
    close,
    copy_all,
    directions,
    dora,
    one_layer,
    peft_magnitudes,
    ten_steps,
    trained,
)

from lora_lab import count, lora_layers, merge_, merged, unmerge_
from lora_lab.base import oriented_weight
from lora_lab.init import Start
from lora_lab.layer import LoRALinear

KINDS = ("bias", "no bias", "Conv1D")
# Where PEFT's products and sums come in another order: a few units in the last place.
CLOSE = {torch.float32: 1e-6, torch.float64: 2e-15, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base_does(kind, dtype):
    layer = one_layer(kind, dtype, dropout=0.3)
    close(layer.magnitude, oriented_weight(layer.base).to(layer.magnitude.dtype).norm(dim=1), 1e-6)
    assert layer.magnitude.dtype == layer.A.dtype
    assert layer.magnitude.requires_grad
    x = torch.randn(3, 40).to(dtype)
    for training in (False, True):
        assert torch.equal(layer.train(training)(x), layer.base(x))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_formula(kind, rslora):
    layer = one_layer(kind, torch.float64, rslora=rslora)
    trained(layer)
    x = torch.randn(2, 3, 40, dtype=torch.float64)
    rows = directions(layer, oriented_weight(layer.base))
    weight = layer.magnitude[:, None] * rows / rows.norm(dim=1, keepdim=True)
    bias = None if kind == "no bias" else layer.base.bias
    close(layer(x), F.linear(x, weight, bias), 1e-13)
    assert layer(x[0, 0]).shape == (24,)
    close(layer.delta_weight(), weight - oriented_weight(layer.base), 1e-13)
    close(layer.magnitude.abs(), (oriented_weight(layer.base) + layer.delta_weight()).norm(dim=1), 1e-13)


def test_the_length_of_a_row_is_a_constant_in_the_gradient():
    layer = one_layer("bias", torch.float64)
    trained(layer)
    x = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    leaves = (x, layer.A, layer.B, layer.magnitude)
    got = torch.autograd.grad(layer(x).sin().sum(), leaves)
    rows = layer.base.weight + layer.scale * layer.B @ layer.A
    ratio = layer.magnitude / rows.norm(dim=1).detach()
    for ours, expected in zip(
        got, torch.autograd.grad((layer.base.bias + ratio * (x @ rows.T)).sin().sum(), leaves), strict=True
    ):
        close(ours, expected, 1e-13)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_gradients_and_merge_as_in_peft(kind, dtype, dropout):
    for rslora in (False, True):
        base = nn.Sequential(linear(24, 40, kind == "bias", dtype, kind == "Conv1D"))
        twin = peft_twin(base, ["0"], 5, 8, dropout, rslora, use_dora=True)
        ours = trained(dora(base, ["0"], 5, 8, dropout=dropout, rslora=rslora))
        copy_all(ours, twin)
        for training in (False, True):
            results = []
            for model in (ours, twin):
                model.train(training).zero_grad()
                x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
                torch.manual_seed(9)  # the same dropout mask
                y = model(x)
                (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)).sum().backward()
                results.append([y, x.grad])
            assert y.dtype == results[0][0].dtype == dtype
            (factors,), (magnitude,) = peft_factors(twin).values(), peft_magnitudes(twin).values()
            results[0] += [p.grad for p in (ours[0].A, ours[0].B, ours[0].magnitude)]
            results[1] += [p.grad for p in (*factors, magnitude)]
            # With dropout PEFT multiplies by an fp32 copy of a half-precision base.
            for mine, theirs in zip(*results, strict=True):
                assert mine.any()
                close(mine, theirs, CLOSE[dtype] if dropout and training else min(CLOSE[dtype], 1e-6))
        close(merged(ours)[0].weight, twin.merge_and_unload()[0].weight, min(CLOSE[dtype], 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_ten_training_steps_as_in_peft(name, dtype):
    base = LANGUAGE_MODELS[name](dtype)
    torch.manual_seed(6)
    twin = peft_twin(base, "all-linear", dropout=0.1, use_dora=True)
    torch.manual_seed(6)
    ours = dora(base, "all-linear", dropout=0.1)
    assert count(ours)[:2] == twin.get_nb_trainable_parameters()
    started = {path: layer.magnitude.clone() for path, layer in lora_layers(ours).items()}
    losses, theirs = ten_steps(ours), ten_steps(twin)
    assert losses == pytest.approx(theirs, rel=100 * CLOSE[dtype])
    assert losses[-1] < losses[0] - 0.1
    for path, magnitude in peft_magnitudes(twin).items():
        layer = lora_layers(ours)[path]
        for mine, their in zip(
            (layer.A, layer.B, layer.magnitude), (*peft_factors(twin)[path], magnitude), strict=True
        ):
            # Adam divides by the size of a gradient, and so makes more of the rounding of a small one.
            close(mine, their, 1e-3 if dtype == torch.float32 else 1e-9)
        assert (layer.magnitude - started[path]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_peft_rounds_the_magnitude_of_a_half_precision_base_and_here_it_is_exact(dtype):
    base = nn.Sequential(linear(24, 40, dtype=dtype))
    exact = base[0].weight.double().norm(dim=1)
    (theirs,) = peft_magnitudes(peft_twin(base, ["0"], use_dora=True)).values()
    ours = dora(base, ["0"])[0].magnitude
    close(ours.double(), exact, 1e-6)
    assert (theirs - exact).abs().max() > 100 * (ours - exact).abs().max()


def test_a_row_of_zeros_gives_the_bias_and_not_nan():
    base = nn.Sequential(linear(24, 40))
    with torch.no_grad():
        base[0].weight[3] = 0
    twin = peft_twin(base, ["0"], use_dora=True)
    layer, x = dora(base, ["0"])[0], torch.randn(2, 40)
    assert twin(x)[:, 3].isnan().all()
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, layer.base(x))
    assert torch.equal(y[:, 3], layer.base.bias[3].expand(2))
    assert all(p.grad.isfinite().all() for p in (layer.A, layer.B, layer.magnitude))
    assert not unmerge_(merge_(base))[0].base.weight[3].any()


@pytest.mark.parametrize("kind", ["bias", "Conv1D"])
def test_no_matrix_of_the_size_of_the_weight_is_formed(kind):
    layer = one_layer(kind, shape=(1300, 1000), rank=3)
    trained(layer)
    expected = directions(layer, oriented_weight(layer.base)).norm(dim=1)
    for run in (layer.row_norms, lambda: layer(torch.randn(2, 1000)).sum().backward()):
        with Largest() as largest:
            run()
        assert 100_000 < largest.numel < 1300 * 1000 / 4
    close(layer.row_norms().double(), expected, 1e-6)
    weight = oriented_weight(layer.base).clone()
    close(layer.fold(weight, weight).double().norm(dim=1), layer.magnitude.double().abs(), 1e-6)


def test_the_lengths_do_not_depend_on_autocast():
    layer = one_layer("bias")
    trained(layer)
    expected = layer.row_norms()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.row_norms(), expected)
        assert layer(torch.randn(2, 40)).dtype == torch.bfloat16


def test_gradients_through_activation_checkpointing():
    layer = one_layer("bias", dropout=0.2).train()
    trained(layer)
    gradients = []
    for recomputed in (False, True):
        x = torch.randn(5, 40, generator=torch.Generator().manual_seed(2)).requires_grad_()
        torch.manual_seed(1)
        y = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
        gradients.append(torch.autograd.grad(y.sin().sum(), (x, layer.A, layer.B, layer.magnitude)))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def freezes_a(weight: Tensor, rank: int, scale: float) -> Start:
    return Start(torch.zeros(rank, weight.shape[1]), torch.zeros(weight.shape[0], rank), trains="B")


REFUSED = {
    "mica": ({"init": "mica"}, ValueError, "'mica' trains A alone"),
    "frozen A": ({"init": freezes_a}, ValueError, "'freezes_a' trains B alone"),
    "fused": ({"fused": True}, ValueError, "no fused form"),
    "rank": ({"rank": 0}, ValueError, "rank must be a whole number from 1 to .* got 0"),
    "alpha": ({"alpha": float("nan")}, ValueError, "alpha must be"),
    "dropout": ({"dropout": 1.0}, ValueError, "dropout must be"),
}


@pytest.mark.parametrize(("settings", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_changes(settings, error, words):
    model = llama()
    with unchanged(model), pytest.raises(error, match=words):
        dora(model, ["q_proj", "up_proj"], **settings)


def test_what_it_prints():
    assert isinstance(one_layer("bias"), LoRALinear)
    assert repr(one_layer("bias")).startswith(
        "DoRALinear(\n  rank=4, alpha=10, scale=2.5, merged=False, magnitude=(24,)"
    )
