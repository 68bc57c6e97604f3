"""Each row of a batch gets its own adapter, as if it were alone, in calls and in `generate`."""

import copy

import pytest
import torch
from many_for_tests import COMPOSITIONS, MIX, MODELS, carrying, folders, peft_model, three
from models_for_tests import VOCAB, unchanged
from torch import Tensor, nn

from lora_lab.many import active, adapters, add_adapter, multi_layers, remove_adapter, rows, use

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def ids(batch: int, length: int = 6) -> Tensor:
    return torch.randint(2, VOCAB, (batch, length), generator=torch.Generator().manual_seed(batch))


def logits(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch).logits


def one_by_one(model: nn.Module, mixes: list, batch: Tensor) -> Tensor:
    answers = [logits(use(model, mix), batch[i : i + 1]) for i, mix in enumerate(mixes)]
    use(model, None)
    return torch.cat(answers)


@pytest.mark.parametrize("mixes", COMPOSITIONS.values(), ids=COMPOSITIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_row_as_if_alone(kind, mixes):
    model, _ = carrying(kind)
    batch = ids(len(mixes))
    wanted, base = one_by_one(model, mixes, batch), logits(model, batch)
    use(model, "b")
    with unchanged(model), rows(model, mixes) as same:
        assert same is model
        found, again = logits(model, batch), logits(model, batch[:, :2])
    torch.testing.assert_close(found, wanted, **CLOSE)
    torch.testing.assert_close(again, wanted[:, :2], **CLOSE)  # another length, by the same plan
    bare = [i for i, mix in enumerate(mixes) if mix is None]
    torch.testing.assert_close(found[bare], base[bare], rtol=0, atol=0)
    assert active(model) == {"b": 1.0}
    assert all(layer.plan is None for layer in multi_layers(model).values())  # the stacks are not held any longer
    torch.testing.assert_close(logits(model, batch), logits(use(copy.deepcopy(model), "b"), batch), rtol=0, atol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_mixed_batches_as_in_peft(kind, tmp_path):
    model, found = carrying(kind)
    twin = peft_model(MODELS[kind](), folders(MODELS[kind](), found, tmp_path))
    names = ["c", None, "a", "a", "b", None, "c"]
    theirs = ["__base__" if name is None else name for name in names]
    batch = ids(len(names))
    with torch.no_grad():
        wanted = twin(input_ids=batch, adapter_names=theirs).logits
    with rows(model, names):
        torch.testing.assert_close(logits(model, batch), wanted, **CLOSE)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_generate(kind, beams, tmp_path):
    """A padded batch: the tokens of PEFT's mixed batch, and of every row alone with its adapter."""
    model, found = carrying(kind)
    names = ["b", "a", None, "c", "a"]
    batch = ids(len(names), 7)
    mask = torch.ones_like(batch)
    mask[1, :3], mask[3, :5] = 0, 0
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    with rows(model, names, copies=beams):
        tokens = model.generate(input_ids=batch, attention_mask=mask, **settings)
    twin = peft_model(MODELS[kind](), folders(MODELS[kind](), found, tmp_path))
    theirs = [name or "__base__" for name in names]
    assert torch.equal(tokens, twin.generate(input_ids=batch, attention_mask=mask, adapter_names=theirs, **settings))
    for i, name in enumerate(names):
        alone = use(model, name).generate(input_ids=batch[i : i + 1], attention_mask=mask[i : i + 1], **settings)
        assert torch.equal(tokens[i : i + 1, : alone.shape[1]], alone)
    plain = use(model, None).generate(input_ids=batch, attention_mask=mask, **settings)
    assert not torch.equal(plain, tokens)


def test_several_answers_to_one_prompt():
    model, _ = carrying()
    settings = {"max_new_tokens": 5, "do_sample": True, "pad_token_id": 0, "num_return_sequences": 3}
    with rows(model, ["a", "b"], copies=3):
        torch.manual_seed(4)
        tokens = model.generate(input_ids=ids(2), attention_mask=torch.ones(2, 6), **settings)
    assert tokens.shape == (6, 11)
    repeated = ids(2).repeat_interleave(3, dim=0)
    with rows(model, ["a"] * 3 + ["b"] * 3):
        torch.manual_seed(4)
        settings["num_return_sequences"] = 1
        again = model.generate(input_ids=repeated, attention_mask=torch.ones(6, 6), **settings)
    assert torch.equal(tokens, again)


def test_a_wrong_batch_is_refused_and_the_next_goes_on():
    model, _ = carrying()
    with rows(model, ["a", "b"]):
        wanted = logits(model, ids(2))
        with pytest.raises(ValueError, match=r"2 rows .* \(4, 6, 32\)"):
            logits(model, ids(4))
        torch.testing.assert_close(logits(model, ids(2)), wanted, rtol=0, atol=0)


def test_the_stack_follows_new_weights_moves_and_copies():
    model, _ = carrying()
    other, _ = carrying()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    mixes, batch = ["a", MIX, None], ids(3)
    with rows(model, mixes):
        first = logits(model, batch)
        twin = copy.deepcopy(model)
        torch.testing.assert_close(logits(twin, batch), first, rtol=0, atol=0)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(logits(model, batch), one_by_one(other, mixes, batch), **CLOSE)
        wide = logits(model.double(), batch)
        assert wide.dtype == torch.float64
        torch.testing.assert_close(wide, one_by_one(other.double(), mixes, batch), rtol=1e-10, atol=1e-10)


def test_blocks_may_be_nested_and_adapters_may_come():
    model, _ = carrying()
    batch = ids(2)
    with rows(model, ["a", "b"]):
        first = logits(model, batch)
        with rows(model, ["b", None]):
            torch.testing.assert_close(logits(model, batch), one_by_one(copy_out(model), ["b", None], batch), **CLOSE)
        torch.testing.assert_close(logits(model, batch), first, rtol=0, atol=0)
        everywhere = three(MODELS["llama"]())["b"] | three(MODELS["llama"]())["a"]
        add_adapter(model, "new", everywhere)
        torch.testing.assert_close(logits(model, batch), first, rtol=0, atol=0)
        with pytest.raises(ValueError, match="'b' is in use"):
            remove_adapter(model, "b")
        remove_adapter(model, "c")
        torch.testing.assert_close(logits(model, batch), first, rtol=0, atol=0)
    assert sorted(adapters(model)) == ["a", "b", "new"]


def copy_out(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if hasattr(module, "selection"):
            module.selection.rows = None
    return twin


def test_inference_mode_leaves_nothing_that_autograd_refuses():
    model, _ = carrying()
    batch, embed = ids(2), model.get_input_embeddings()
    with rows(model, ["a", "b"]):
        with torch.inference_mode():
            wanted = model(input_ids=batch).logits
        x = embed(batch).detach().requires_grad_()
        found = model(inputs_embeds=x).logits
        found.square().sum().backward()
    torch.testing.assert_close(found, wanted.clone(), **CLOSE)
    assert x.grad.any()


def test_an_error_in_the_block_ends_it():
    model, _ = carrying()
    with unchanged(model), pytest.raises(ValueError, match="1 rows"), rows(model, ["a"]):
        logits(model, ids(2))
    use(model, "a")
