"""A layer that carries adapters: its arithmetic, its training, what is saved of it, and how it moves."""

import copy

import pytest
import torch
from adapters_for_tests import random
from many_for_tests import (
    IN,
    MIX,
    carrying,
    dense,
    exact,
    injected,
    layer_carrying,
    one_layer,
    three,
    without_adapters,
)
from models_for_tests import DTYPES, assert_unchanged, fingerprint, linear, llama, logits, token_ids

from lora_lab import lora_layers
from lora_lab.combine import combine
from lora_lab.many import (
    active,
    add_adapter,
    multi_layers,
    remove_adapter,
    use,
)
from lora_lab.quantized_linear import QuantizedLinear, quantize_model_

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_update_is_summed_wide_and_rounded_once(dtype, conv1d, grad):
    layer, found = one_layer(dtype, conv1d)
    layer.selection.mix = MIX
    x = random(6, 5, IN).to(dtype)
    with torch.set_grad_enabled(grad):
        y = layer(x)
    assert y.dtype == dtype
    wanted = exact(layer, found, MIX, x)
    # Half a unit for the one rounding; the fp32 products lose a little of what they add up.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bound = 0.5 * torch.finfo(dtype).eps * wanted.abs() + 40 * torch.finfo(wide).eps * (1 + wanted.abs())
    assert ((y.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(IN,), (4, IN), (2, 3, 4, IN), (0, 3, IN)], ids=str)
def test_any_shape_of_input(shape):
    layer, found = one_layer()
    layer.selection.mix = MIX
    x = random(*shape)
    torch.testing.assert_close(layer(x).double(), exact(layer, found, MIX, x), **CLOSE)


def test_autocast():
    layer, found = one_layer()
    layer.selection.mix = MIX
    x = random(6, IN)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact(layer, found, MIX, x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_bases(kind):
    base = linear(20, IN)
    quantized = QuantizedLinear.from_linear(base, kind)
    layer, found = layer_carrying(quantized)
    layer.selection.mix = MIX
    x = random(4, IN)
    torch.testing.assert_close(layer(x).double(), exact(layer, found, MIX, x), **CLOSE)

    model = llama()
    added = three(model)["a"]
    quantize_model_(model, kind=kind)
    before = fingerprint(model)
    add_adapter(model, "a", added)
    wanted = logits(injected(copy.deepcopy(without_adapters(model)), added))
    torch.testing.assert_close(logits(use(model, "a")), wanted, **CLOSE)
    remove_adapter(use(model, None), "a")
    assert_unchanged(model, before)


def test_training_gives_the_gradients_of_the_plain_layer():
    model, found = carrying()
    base = without_adapters(model)
    for name in ("a", "b"):
        plain = injected(copy.deepcopy(base), found[name])
        use(model, name, train=True)
        for one in (model, plain):
            one.zero_grad()
            one(input_ids=token_ids(), labels=token_ids()).loss.backward()
        learning = {path for path, p in model.named_parameters() if p.requires_grad}
        assert learning == {f"{path}.adapters.{name}.{factor}" for path in found[name] for factor in "AB"}
        assert {path for path, p in model.named_parameters() if p.grad is not None} == learning
        for path, layer in lora_layers(plain).items():
            slot = model.get_submodule(path).adapters[name]
            for ours, theirs in ((slot.A.grad, layer.A.grad), (slot.B.grad, layer.B.grad)):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
    use(model, "b")
    assert not any(p.requires_grad for p in model.parameters())


def test_training_one_leaves_the_others_alone():
    model, _ = carrying()
    use(model, "b", train=True)
    before = {path: p.clone() for path, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {path for path, p in model.named_parameters() if not torch.equal(p, before[path])}
    assert changed == {path for path in before if ".adapters.b." in path}


def test_state_dict_and_copies():
    model, found = carrying()
    state = model.state_dict()
    keys = {f"{path}.adapters.{name}.{factor}" for name, one in found.items() for path in one for factor in "AB"}
    bases = {f"{path}.base.weight" for one in found.values() for path in one}
    plain = {
        key for key in without_adapters(model).state_dict() if key.removesuffix(".weight") not in multi_layers(model)
    }
    assert set(state) == keys | bases | plain

    use(model, MIX)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(logits(twin), logits(model), rtol=0, atol=0)
    use(twin, "a")
    assert active(model) == MIX
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert active(twin) == {"a": 1.0}
    wanted = logits(model)
    assert wanted.any()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(use(twin, MIX)), wanted, rtol=0, atol=0)


def test_the_factors_are_copies():
    model = llama()
    found = three(model)["a"]
    add_adapter(model, "a", found)
    wanted = logits(use(model, "a"))
    for factors in found.values():
        factors.A.zero_()
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=0)


def test_moves_to_another_dtype():
    model, found = carrying()
    use(model.double(), MIX)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    wanted = logits(dense(llama().double(), found, MIX))
    torch.testing.assert_close(logits(model), wanted, rtol=1e-10, atol=1e-10)


def test_half_precision_bases_keep_fp32_factors():
    model, _ = carrying(dtype=torch.bfloat16)
    types = {p.dtype for path, p in model.named_parameters() if ".adapters." in path}
    assert types == {torch.float32}
    assert model.training is False
    assert not any(module.training for module in model.modules())


def test_ranks_above_the_layer_are_carried():
    """As sums of adapters have, or converted residual inits."""
    model = llama(layers=1)
    found = three(model)
    big = combine([found["a"]] * 9, [0.3] * 9, "cat")
    assert max(factors.rank for factors in big.values()) > 32
    add_adapter(add_adapter(model, "a", found["a"]), "big", big)
    torch.testing.assert_close(logits(use(model, "big")), logits(use(model, {"a": 2.7})), **CLOSE)
