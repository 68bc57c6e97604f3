"""Several adapters live on one model: each answers as it does alone, mixes are weighted sums, and all can leave."""

import copy
import math

import peft
import pytest
import torch
from adapters_for_tests import adapter, random
from many_for_tests import (
    COVERED,
    MIX,
    MODELS,
    carrying,
    dense,
    folders,
    peft_model,
    three,
    without_adapters,
)
from models_for_tests import assert_unchanged, fill, fingerprint, llama, logits, peft_twin

from lora_lab import eject, inject, lora_layers
from lora_lab.adapter_file import adapter_of, load_adapter, read_adapter, write_adapter
from lora_lab.init.start import Start
from lora_lab.many import (
    active,
    adapter_of_many,
    adapters,
    add_adapter,
    multi_layers,
    remove_adapter,
    use,
    using,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("kind", MODELS)
def test_each_answers_as_in_peft(kind, tmp_path):
    base = MODELS[kind]()
    before = logits(base)
    saved = folders(base, three(base, kind), tmp_path)
    twin = peft_model(base, saved)
    for name, folder in saved.items():
        add_adapter(base, name, folder)
        torch.testing.assert_close(logits(base), before, rtol=0, atol=0)  # nothing is in use yet
    assert adapters(base) == ["a", "b", "c"]
    seen = [before]
    for name in ("b", "a", "c", "a"):
        use(base, name)
        twin.set_adapter(name)
        torch.testing.assert_close(logits(base), logits(twin), **CLOSE)
        assert all((logits(base) - other).abs().max() > 0.01 for other in seen if name != "a" or len(seen) < 3)
        seen.append(logits(base))
    twin.base_model.set_adapter(["a", "b"])
    torch.testing.assert_close(logits(use(base, {"a": 1, "b": 1})), logits(twin), **CLOSE)
    with twin.disable_adapter():
        torch.testing.assert_close(logits(use(base, None)), logits(twin), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_each_answers_as_in_peft_in_half_precision(dtype, tmp_path):
    base = llama(dtype)
    saved = folders(base, three(base), tmp_path)
    twin = peft_model(base, saved)
    for name, folder in saved.items():
        add_adapter(base, name, folder)
    for name in saved:
        twin.set_adapter(name)
        error = (logits(use(base, name)).double() - logits(twin).double()).norm() / logits(twin).double().norm()
        assert error < 2 * torch.finfo(dtype).eps


def test_three_models_are_not_one(tmp_path):
    """PEFT: three `from_pretrained` on one base are one model, with the last adapter. Ours are three adapters."""
    base = llama()
    ours, alone = copy.deepcopy(base), {}
    found = {name: adapter(base, ("q_proj", "down_proj"), alpha=6, seed=seed) for seed, name in enumerate("abc")}
    saved = folders(base, found, tmp_path)
    for name, folder in saved.items():
        alone[name] = logits(load_adapter(copy.deepcopy(base), folder))
        add_adapter(ours, name, folder)
    for name in "abc":
        torch.testing.assert_close(logits(use(ours, name)), alone[name], **CLOSE)

    first = peft.PeftModel.from_pretrained(base, saved["a"])
    for name in "bc":
        with pytest.warns(UserWarning, match="peft_config"):
            peft.PeftModel.from_pretrained(base, saved[name])
    torch.testing.assert_close(logits(first), alone["c"], **CLOSE)
    assert (alone["c"] - alone["a"]).abs().max() > 0.01


def residual(weight, rank, scale) -> Start:
    """A residual init: some of W is taken out of the base, and given to A and B."""
    A = 0.2 * random(rank, weight.shape[1], seed=5).to(weight)
    B = (weight @ A.T).float()
    return Start(A.float(), B, (A.float(), B))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adding_an_adapter_changes_no_other(init):
    base = llama()
    ours, twin = copy.deepcopy(base), peft_twin(base, ["q_proj", "up_proj"])
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "lora_B" in name:
                parameter.copy_(random(*parameter.shape))
    theirs = logits(twin)
    twin.add_adapter("other", peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], init_lora_weights=init))
    twin.set_adapter("default")
    assert (logits(twin) - theirs).abs().max() > 0.01  # PEFT wrote the residual into the base of both

    add_adapter(ours, "a", three(base)["a"])
    before = logits(use(ours, "a"))
    trained = fill(inject(copy.deepcopy(base), ["q_proj", "up_proj"], 3, 5, init=residual))
    assert all(layer.shifted for layer in lora_layers(trained).values())
    add_adapter(ours, "other", adapter_of(trained))
    torch.testing.assert_close(logits(ours), before, rtol=0, atol=0)
    torch.testing.assert_close(logits(use(ours, "other")), logits(trained), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(use(ours, None)), logits(base), rtol=0, atol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_a_mix_is_the_weighted_sum(kind):
    base = MODELS[kind](torch.float64)
    model, found = carrying(kind, torch.float64)
    for mix in (MIX, {"c": 2.5}, {"b": -1, "a": 0.0}):
        torch.testing.assert_close(logits(use(model, mix)), logits(dense(base, found, mix)), rtol=1e-10, atol=1e-10)
        assert active(model) == {name: weight for name, weight in mix.items() if weight}


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
@pytest.mark.parametrize("kind", MODELS)
def test_when_all_have_left_the_base_is_as_before(kind, order):
    model = MODELS[kind](torch.bfloat16)
    next(model.parameters()).requires_grad_(False)
    adapted, before = three(model, kind), fingerprint(model)
    for name, one in adapted.items():
        add_adapter(model, name, one)
    logits(use(model, MIX))
    use(model, None)
    for name in order:
        alone = {n: logits(use(model, n)) for n in adapters(model) if n != name}
        remove_adapter(use(model, None), name)
        covered = {path for n in adapters(model) for path in adapted[n]}
        assert set(multi_layers(model)) == covered  # a layer that it left without adapters is bare again
        for n, wanted in alone.items():
            torch.testing.assert_close(logits(use(model, n)), wanted, rtol=0, atol=0)
        assert not any(p.requires_grad for p in model.parameters()) or not covered
        if covered:
            use(model, None)
    assert_unchanged(model, before)


def test_a_layer_at_two_paths_is_wrapped_at_both():
    model = llama(layers=1)
    model.again = model.model.layers[0].mlp.up_proj
    add_adapter(model, "a", {"model.layers.0.mlp.up_proj": three(llama())["b"]["model.layers.0.mlp.up_proj"]})
    assert model.again is model.model.layers[0].mlp.up_proj
    assert list(multi_layers(model)) == ["model.layers.0.mlp.up_proj"]
    base = model.again.base
    remove_adapter(model, "a")
    assert model.again is model.model.layers[0].mlp.up_proj is base


def test_using_puts_back_what_was_used_and_trained():
    model, _ = carrying()
    use(model, "b", train=True)
    before = fingerprint(model)
    with using(model, {"a": 0.5, "c": 2}) as same:
        assert same is model
        assert active(model) == {"a": 0.5, "c": 2.0}
        with using(model, None):
            assert active(model) == {}
        assert active(model) == {"a": 0.5, "c": 2.0}
        assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(KeyError), using(model, "a"):
        raise KeyError("from the block")
    assert active(model) == {"b": 1.0}
    assert_unchanged(model, before)
    with using(model, "a"):
        remove_adapter(model, "b")
    assert active(model) == {}


def test_an_adapter_comes_out_as_it_went_in(tmp_path):
    model, found = carrying()
    use(model, MIX)
    for name, one in found.items():
        taken = adapter_of_many(model, name)
        assert list(taken) == list(one)
        for again in (taken, read_adapter(write_adapter(taken, tmp_path / name, model))):
            for path, factors in one.items():
                assert torch.equal(again[path].A, factors.A)
                assert torch.equal(again[path].B, factors.B)
                assert math.isclose(again[path].scale, factors.scale)
        base = without_adapters(use(model, None))
        torch.testing.assert_close(logits(load_adapter(base, tmp_path / name)), logits(use(model, name)), **CLOSE)
        eject(base)


def test_covered_layers_differ():
    """So that names missing in a layer are tested above."""
    for kind, covered in COVERED.items():
        found = {name: set(one) for name, one in three(MODELS[kind](), kind).items()}
        assert len(set(map(frozenset, found.values()))) == len(covered)
        assert found["a"] & found["b"]
        assert found["b"] - found["a"]
