"""Injecting is all or nothing; ejecting gives back the very same model."""

import copy
import io
import pickle
import re

import pytest
import torch
from models_for_tests import ALPHA, RANK, fill, gpt2, linear, llama, logits, neox, plain, unchanged
from torch import nn

import lora_lab.inject
from lora_lab import Count, LoRALinear, count, eject, find_targets, inject, lora_layers, merge_, unmerge_
from lora_lab.targets import matches

IDS = torch.arange(6).reshape(2, 3)


def plain_with(**attributes: nn.Module) -> nn.Module:
    model = plain()
    for name, module in attributes.items():
        setattr(model, name, module)
    return model


def integers() -> nn.Linear:
    layer = nn.Linear(6, 9)
    layer.weight = nn.Parameter(torch.ones(9, 6, dtype=torch.int8), requires_grad=False)
    return layer


def raising(weight, rank, scale):
    if weight.shape == (6, 9):  # not the first layer
        raise OSError("the disk is gone")
    return lora_lab.init.default_factors(weight, rank)


def interrupted(weight, rank, scale):
    if weight.shape == (6, 9):
        raise KeyboardInterrupt
    return lora_lab.init.default_factors(weight, rank)


def transposed(weight, rank, scale):
    A, B = lora_lab.init.default_factors(weight, rank)
    return (B.T, A.T) if weight.shape == (6, 9) else (A, B)


BOTH = ["proj", "my_proj"]
REFUSED = {  # settings, error, words of the message
    "no match": ({"targets": ["q_proj"]}, ValueError, "'q_proj' matches no module.*end in .*'proj'"),
    "one bad among good": ({"targets": ["proj", "nope", "my_proj"]}, ValueError, "'nope' matches no module"),
    "part of a name": ({"targets": ["roj"]}, ValueError, "'roj' matches no module"),
    "a string for a list": ({"targets": "block"}, ValueError, "'block' is a ModuleDict"),
    "a name as expression": ({"targets": "norm"}, ValueError, "'norm' matches no module.*regular expression"),
    "empty list": ({"targets": []}, ValueError, "targets is empty"),
    "empty string": ({"targets": ""}, ValueError, "'' matches no module"),
    "invalid regex": ({"targets": "(proj"}, ValueError, "not a regular expression: missing"),
    "layer norm": ({"targets": ["proj", "norm"]}, ValueError, "'block.norm' is a LayerNorm"),
    "embedding": ({"targets": ["embed"]}, ValueError, "'embed' is a Embedding"),
    "regex over all": ({"targets": ".*"}, ValueError, "'embed' is a Embedding"),
    "attention": ({"targets": ["attention"]}, ValueError, "is a MultiheadAttention"),
    "its out_proj": ({"targets": ["out_proj"]}, ValueError, "NonDynamicallyQuantizableLinear"),
    "rank 0": ({"rank": 0}, ValueError, "my_proj|proj: rank .* got 0"),
    "rank -1": ({"rank": -1}, ValueError, "rank .* got -1"),
    "rank 1.5": ({"rank": 1.5}, ValueError, "rank .* whole number .* got 1.5"),
    "rank True": ({"rank": True}, ValueError, "rank .* got True"),
    "rank 7": ({"rank": 7}, ValueError, r"rank .* = 6, got 7"),
    "alpha 0": ({"alpha": 0}, ValueError, "alpha .* got 0"),
    "alpha nan": ({"alpha": float("nan")}, ValueError, "alpha .* got nan"),
    "alpha inf": ({"alpha": float("inf")}, ValueError, "alpha .* got inf"),
    "alpha str": ({"alpha": "16"}, ValueError, "alpha .* got '16'"),
    "dropout 1": ({"dropout": 1.0}, ValueError, "dropout .* got 1.0"),
    "dropout -0.1": ({"dropout": -0.1}, ValueError, "dropout .* got -0.1"),
    "init raises": ({"init": raising}, OSError, "the disk is gone"),
    "init interrupted": ({"init": interrupted}, KeyboardInterrupt, "^$"),
    "init transposed": ({"init": transposed}, ValueError, "init must return A and B"),
}


@pytest.mark.parametrize(("settings", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refused_call_changes_nothing(settings, error, words):
    model = plain()
    drawn = "init" in settings  # an init that was called may have drawn random numbers
    with unchanged(model, rng=not drawn), pytest.raises(error, match=words):
        inject(model, **({"targets": BOTH, "rank": RANK, "alpha": ALPHA} | settings))


def test_a_rank_that_fits_only_some_layers_is_refused():
    model = llama()
    with unchanged(model), pytest.raises(ValueError, match=r"layers\.0\.self_attn\.k_proj: rank .* = 16, got 17"):
        inject(model, ["q_proj", "k_proj"], 17, ALPHA)


def test_integer_weights_are_refused():
    model = plain_with(last=integers())
    with unchanged(model), pytest.raises(TypeError, match=r"last: .*int8: dequantize"):
        inject(model, [*BOTH, "last"], RANK, ALPHA)


def test_an_error_while_replacing_is_undone(monkeypatch):
    """Interrupted with one of two layers already in its place."""
    model, replaced = plain(), []

    class Stubborn(nn.ModuleDict):
        def __setattr__(self, name, value):
            if isinstance(value, LoRALinear):
                replaced.append(name)
                raise KeyboardInterrupt
            super().__setattr__(name, value)

    model.block = Stubborn({"proj": model.block["proj"], "norm": model.block["norm"]})
    with unchanged(model, rng=False), pytest.raises(KeyboardInterrupt):
        inject(model, ["my_proj", "block.proj"], RANK, ALPHA)
    assert replaced == ["proj"]


def test_no_second_injection():
    model = inject(plain(), ["proj"], RANK, ALPHA)
    for targets in (["my_proj"], ["base"], "all-linear"):
        with unchanged(model), pytest.raises(ValueError, match="already injected: eject"):
            inject(model, targets, RANK, ALPHA)


def test_a_model_without_layers_inside():
    for model in (nn.Linear(6, 9), nn.Sequential(nn.ReLU())):
        with unchanged(model), pytest.raises(ValueError, match="no linear layer below its root"):
            inject(model, "all-linear", RANK, ALPHA)


def test_exactly_the_factors_train():
    model = inject(llama(), ["q_proj", "down_proj"], RANK, ALPHA)
    paths = [f"model.layers.{i}.{end}" for i in (0, 1) for end in ("self_attn.q_proj", "mlp.down_proj")]
    assert list(lora_layers(model)) == paths
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [f"{p}.{f}" for p in paths for f in "AB"]


@pytest.mark.parametrize("build", [llama, gpt2, neox])
def test_a_new_adapter_changes_no_answer(build):
    model = build()
    before = logits(model)
    assert torch.equal(logits(inject(model, "all-linear", RANK, ALPHA)), before)


@pytest.mark.parametrize("targets", [["block.proj"], ["again"], ["again", "block.proj"], r"again|block\.proj"], ids=str)
def test_a_module_at_two_paths_is_wrapped_once_and_replaced_at_both(targets):
    model = plain()
    base = model.again
    assert list(find_targets(model, targets).values()) == [base]
    inject(model, targets, RANK, ALPHA)
    assert isinstance(model.again, LoRALinear)
    assert model.again is model.block["proj"]
    assert model.again.base is base
    assert len(lora_layers(model)) == 1
    fill(model)(IDS).sum().backward()
    assert model.again.A.grad.any()
    assert eject(model).again is model.block["proj"] is base


def test_tied_weights_stay_tied():
    model = llama(tied=True)
    embedding = model.model.embed_tokens.weight
    inject(model, ["lm_head"], RANK, ALPHA)
    assert model.lm_head.base.weight is embedding
    total = sum(p.numel() for p in llama(tied=True).parameters()) + RANK * (32 + 64)
    assert count(model) == Count(RANK * (32 + 64), total, 100 * RANK * (32 + 64) / total)
    assert eject(model).lm_head.weight is model.model.embed_tokens.weight is embedding


def test_all_linear_leaves_out_the_head_but_not_its_twin_name():
    found = find_targets(llama(), "all-linear")
    assert len(found) == 2 * 7
    assert not any(name.endswith("lm_head") for name in found)
    assert "embed_out" not in find_targets(neox(), "all-linear")
    assert list(find_targets(plain(), "all-linear")) == ["proj", "my_proj", "block.proj", "tied_a", "tied_b"]


def test_targets_may_be_any_iterable():
    for targets in (("proj",), {"proj"}, iter(["proj"]), ["proj", "proj"]):
        assert list(find_targets(plain(), targets)) == ["proj", "block.proj"]


def test_names_match_whole_or_after_a_dot():
    assert matches("layers.0.q_proj", ["q_proj"])
    assert matches("q_proj", ["q_proj"])
    assert not matches("layers.0.seq_proj", ["q_proj"])
    assert not matches("q_proj.base", ["q_proj"])
    assert not matches("layers.0.q_proj", "q_proj")


@pytest.mark.parametrize("build", [plain, llama, gpt2])
def test_eject_gives_back_the_same_objects_and_flags(build):
    model = build()
    next(model.parameters()).requires_grad_(False)
    model.train()
    with unchanged(model, rng=False):
        inject(model, ["proj"] if build is plain else "all-linear", RANK, ALPHA)
        merge_(fill(model), keep_base=True)
        eject(unmerge_(model))
    assert not lora_layers(model)


def test_what_eject_refuses():
    model = plain()
    with unchanged(model), pytest.raises(ValueError, match="nothing to eject"):
        eject(model)
    merge_(fill(inject(model, BOTH, RANK, ALPHA)))
    with (
        unchanged(model),
        pytest.raises(ValueError, match=re.escape("3 layers are merged (proj, ...): unmerge_ first")),
    ):
        eject(model)


def test_inject_again_after_eject():
    model = plain()
    flags = [p.requires_grad for p in model.parameters()]
    for targets in (["proj"], ["my_proj"]):
        eject(inject(model, targets, RANK, ALPHA))
    assert [p.requires_grad for p in model.parameters()] == flags


def test_eject_through_a_parent_restores_what_trained():
    """`inject` was called on a part; the whole is ejected."""
    model = plain()
    flags = [p.requires_grad for p in model.parameters()]
    inject(model.block, ["proj"], RANK, ALPHA)
    eject(model)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert type(model.block["proj"]) is nn.Linear


def test_a_bare_layer_gives_back_its_base():
    base = linear(9, 6)
    assert eject(LoRALinear(base, RANK, ALPHA)) is base


def test_a_hand_wrapped_layer_leaves_the_other_flags_alone():
    model = plain()
    model.proj = LoRALinear(model.proj, RANK, ALPHA)
    assert not eject(model).proj.weight.requires_grad  # LoRALinear froze it, and nothing recorded what was before
    assert model.my_proj.weight.requires_grad


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_answer_and_eject_like_the_original(how):
    model = fill(inject(plain(), BOTH, RANK, ALPHA, dropout=0.1))
    file = io.BytesIO()
    if how == "torch.save":
        torch.save(model, file)
        file.seek(0)
    twin = {
        "deepcopy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "torch.save": lambda: torch.load(file, weights_only=False),
    }[how]()
    assert torch.equal(twin(IDS), model(IDS))
    assert twin.again is twin.block["proj"]
    assert twin.proj.A is not model.proj.A
    flags = [p.requires_grad for p in eject(twin).parameters()]
    assert flags == [p.requires_grad for p in plain().parameters()]
    assert len(lora_layers(model)) == 3


@pytest.mark.parametrize("training", [False, True])
def test_a_new_layer_is_in_the_mode_of_its_base(training):
    """Otherwise dropout would be at work in a model that is being evaluated."""
    model = inject(plain().train(training), BOTH, RANK, ALPHA, dropout=0.5)
    assert {module.training for module in model.modules()} == {training}


def test_hooks_of_the_base_still_run():
    model, seen = plain(), []
    model.proj.register_forward_hook(lambda *_: seen.append("base"))
    inject(model, ["my_proj", "proj"], RANK, ALPHA)(IDS)
    assert seen == ["base"]


def test_count():
    model = inject(nn.Sequential(linear(20, 12)), ["0"], RANK, ALPHA)
    trainable, total = RANK * (20 + 12), RANK * (20 + 12) + 20 * 12 + 20
    assert count(model) == Count(trainable, total, 100 * trainable / total)
    assert str(count(model)) == "128 of 388 parameters train (32.9897 %)"
    assert count(nn.ReLU()) == Count(0, 0, 0.0)
