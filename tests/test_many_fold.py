"""The mix in use can be put into the base weights, and taken out again to the bit; or into a plain copy."""

import copy

import pytest
import torch
from adapters_for_tests import factors
from many_for_tests import MIX, MODELS, carrying, dense, folders, three
from models_for_tests import HALF, assert_unchanged, fingerprint, llama, logits, unchanged

from lora_lab import load_adapter, merged
from lora_lab.base import stored
from lora_lab.many import add_adapter, folded, merged_mix, mixture, remove_adapter, rows, use
from lora_lab.quantized_linear import quantize_model_


def entered(context) -> None:
    with context:
        pass


@pytest.mark.parametrize("kind", MODELS)
def test_the_mix_in_the_base_weights(kind):
    model, found = carrying(kind, torch.float64)
    wanted = logits(dense(MODELS[kind](torch.float64), found, MIX))
    use(model, MIX)
    before = fingerprint(model)
    with folded(model) as same:
        assert same is model
        torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)
        weights = {path: stored(model.get_submodule(path).base)["weight"].clone() for path in found["a"]}
        for call in (
            lambda: use(model, "a"),
            lambda: remove_adapter(model, "a"),
            lambda: add_adapter(model, "new", found["a"]),
            lambda: entered(rows(model, ["a"])),
            lambda: entered(folded(model)),
            lambda: merged_mix(model),
        ):
            with pytest.raises(ValueError, match="folded"):
                call()
    assert any(not torch.equal(w, model.get_submodule(path).base.weight) for path, w in weights.items())
    assert_unchanged(model, before)
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [*HALF, "nf4", "int8"], ids=str)
def test_folding_is_undone_to_the_bit(dtype):
    model = llama(dtype if isinstance(dtype, torch.dtype) else torch.float32)
    found = three(model)
    if isinstance(dtype, str):
        quantize_model_(model, kind=dtype)
    for name, one in found.items():
        add_adapter(model, name, one)
    use(model, MIX)
    plain = logits(use(model, None))
    use(model, MIX)
    with unchanged(model), folded(model):
        assert (logits(model) - plain).abs().max() > 0.01
    with unchanged(model), pytest.raises(KeyError), folded(model):
        raise KeyError("from the block")


def test_a_sum_that_does_not_fit_is_refused():
    model, _ = carrying(dtype=torch.float16)
    use(model, {"a": 1.0, "b": 1e7})
    for call in (lambda: entered(folded(model)), lambda: merged_mix(model)):
        with unchanged(model), pytest.raises(ValueError, match=r"not finite in torch\.float16"):
            call()


def test_a_shared_weight_is_not_written():
    model = llama(tied=True)
    add_adapter(model, "a", {"lm_head": factors(64, 32, alpha=7)})
    use(model, "a")
    for call in (lambda: entered(folded(model)), lambda: merged_mix(model)):
        with unchanged(model), pytest.raises(ValueError, match="lm_head shares"):
            call()


@pytest.mark.parametrize("kind", MODELS)
def test_a_plain_copy_with_the_mix(kind, tmp_path):
    base = MODELS[kind]()
    model, found = carrying(kind)
    one = merged(load_adapter(copy.deepcopy(base), folders(base, found, tmp_path)["a"]))
    use(model, "a")
    with unchanged(model):
        plain = merged_mix(model)
    assert list(plain.state_dict()) == list(base.state_dict())
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, one.state_dict()[key], rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in plain.parameters())
    assert sorted(plain.__dict__) == sorted(base.__dict__)
    assert [type(m) for m in plain.modules()] == [type(m) for m in base.modules()]
    torch.testing.assert_close(logits(merged_mix(use(model, MIX))), logits(use(model, MIX)), rtol=1e-4, atol=1e-4)


def test_the_mix_as_one_adapter():
    model, found = carrying()
    one = mixture(use(model, MIX))
    assert list(one) == list(dict.fromkeys(path for name in MIX for path in found[name]))
    alone = add_adapter(llama(), "mix", one)
    torch.testing.assert_close(logits(use(alone, "mix")), logits(model), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no adapter is in use"):
        mixture(use(model, None))
