"""LoRA+'s parameter groups: who is in which, by PEFT's rules, and the same ten steps."""

import math

import peft
import pytest
import torch
from models_for_tests import (
    ALPHA,
    LANGUAGE_MODELS,
    RANK,
    assert_same,
    fill,
    linear,
    llama,
    peft_factors,
    peft_twin,
    run,
    small,
    token_ids,
    unchanged,
)
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from lora_lab import LoRALinear, inject, lora_layers
from lora_lab.variants import DoRALinear, parameter_groups

LR, RATIO, DECAY = 3e-3, 16.0, 0.1
FROM_PEFT = {
    ".base_layer": ".base",
    "base_model.model.": "",
    "lora_A.default.weight": "A",
    "lora_B.default.weight": "B",
    "lora_magnitude_vector.default.weight": "magnitude",
}


def our_name(name: str) -> str:
    for theirs, ours in FROM_PEFT.items():
        name = name.replace(theirs, ours)
    return name


def grouping(model: nn.Module, groups: list[dict], rename=lambda name: name) -> dict[str, tuple[float, float]]:
    """(rate, weight decay) of every parameter that a group holds, by its name here."""
    names = {p: rename(name) for name, p in model.named_parameters()}
    return {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def pair(name: str, more: tuple[str, ...] = (), dtype=torch.float32, **settings) -> tuple[nn.Module, peft.PeftModel]:
    """Ours and PEFT's, with the same start; parameters whose name holds one of `more` train as well."""
    base = LANGUAGE_MODELS[name](dtype)
    dora = bool(settings.get("use_dora"))
    torch.manual_seed(3)
    twin = peft_twin(base, "all-linear", **settings)
    torch.manual_seed(3)
    ours = inject(base, "all-linear", RANK, ALPHA, layer=DoRALinear if dora else LoRALinear)
    for model in (ours, twin):
        for path, parameter in model.named_parameters():
            if any(word in path for word in more):
                parameter.requires_grad_(True)
    return ours, twin


def theirs_of(twin: peft.PeftModel) -> torch.optim.Optimizer:
    return create_loraplus_optimizer(
        twin, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=RATIO, loraplus_weight_decay=DECAY
    )


EXTRA = {"plain": (), "biases": ("bias",), "norms": ("norm", "ln_"), "embeddings": ("embed", "wte"), "head": ("head",)}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("more", EXTRA.values(), ids=EXTRA)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_groups_are_those_of_peft(name, more, dora):
    ours, twin = pair(name, more, use_dora=dora)
    groups = parameter_groups(ours, LR, RATIO, DECAY)
    got = grouping(ours, groups)
    assert got == grouping(twin, theirs_of(twin).param_groups, our_name)
    assert set(got) == {name for name, p in ours.named_parameters() if p.requires_grad}
    assert all(group["params"] for group in groups)
    assert [group["lr"] / LR for group in groups] == pytest.approx([group["lr_ratio"] for group in groups])


def test_the_rule_in_words():
    model = inject(nn.Sequential(linear(24, 40), nn.LayerNorm(24), nn.Embedding(5, 3)), ["0"], RANK, ALPHA)
    model.requires_grad_(True)
    fast, slow = RATIO * LR, LR
    assert grouping(model, parameter_groups(model, LR, RATIO, DECAY)) == {
        "0.A": (slow, DECAY),
        "0.B": (fast, DECAY),
        "0.base.weight": (slow, DECAY),
        "0.base.bias": (fast, 0.0),
        "1.weight": (fast, 0.0),
        "1.bias": (fast, 0.0),
        "2.weight": (slow, DECAY),
    }


def test_frozen_parameters_are_left_out():
    model = inject(llama(), ["q_proj"], RANK, ALPHA)
    for layer in lora_layers(model).values():
        layer.B.requires_grad_(False)  # as in MiCA
    (group,) = parameter_groups(model, LR, RATIO)
    assert {id(p) for p in group["params"]} == {id(layer.A) for layer in lora_layers(model).values()}
    assert group["lr"] == LR
    assert group["weight_decay"] == 0


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_ten_steps_as_with_peft(name, dora):
    # With DoRA PEFT's products come in another order. In fp64 Adam makes nothing of the rounding of a gradient of zero,
    # which the keys' biases have.
    ours, twin = pair(name, ("bias",), torch.float64 if dora else torch.float32, use_dora=dora)
    fill(ours)
    with torch.no_grad():
        for path, layer in lora_layers(ours).items():
            for mine, their in zip((layer.A, layer.B), peft_factors(twin)[path], strict=True):
                their.copy_(mine)
    optimizers = torch.optim.AdamW(parameter_groups(ours, LR, RATIO, DECAY), lr=LR), theirs_of(twin)
    for model, optimizer in zip((ours, twin), optimizers, strict=True):
        for _ in range(10):
            optimizer.zero_grad()
            model(input_ids=token_ids(), labels=token_ids()).loss.backward()
            optimizer.step()
    theirs = {our_name(name): p for name, p in twin.named_parameters() if p.requires_grad}
    trained = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    assert trained.keys() == theirs.keys()
    for path, parameter in trained.items():
        if dora:
            torch.testing.assert_close(parameter, theirs[path], rtol=1e-7, atol=1e-7)
        else:
            assert torch.equal(parameter, theirs[path])


def test_b_moves_ratio_times_as_far():
    # The first step of Adam without decay moves every number by its rate.
    model = fill(inject(llama(), ["q_proj"], RANK, ALPHA))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, LR, RATIO))
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    optimizer.step()
    for name, layer in lora_layers(model).items():
        assert (layer.A - before[f"{name}.A"]).abs().median().item() == pytest.approx(LR, rel=1e-3)
        assert (layer.B - before[f"{name}.B"]).abs().median().item() == pytest.approx(RATIO * LR, rel=1e-3)


def test_train_takes_the_ratio(tmp_path):
    model = fill(small())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, steps=1, lr=LR, lr_ratio=RATIO, weight_decay=0.0)
    for name, layer in lora_layers(model).items():
        assert (layer.A - before[f"{name}.A"]).abs().median().item() == pytest.approx(LR, rel=1e-2)
        assert (layer.B - before[f"{name}.B"]).abs().median().item() == pytest.approx(RATIO * LR, rel=1e-2)
    whole, halves, path = fill(small()), fill(small()), tmp_path / "run.pt"
    expected = run(whole, lr_ratio=RATIO)
    run(halves, lr_ratio=RATIO, checkpoint=path, on_step=lambda step, history: step == 5)
    halves = fill(small())
    assert run(halves, lr_ratio=RATIO, checkpoint=path).loss == expected.loss
    assert_same(halves, whole)
    with pytest.raises(ValueError, match="other lr_ratio"):
        run(small(), checkpoint=path)


BAD = {
    "no rate": ({"lr": 0.0}, "lr must be positive, got 0.0"),
    "negative rate": ({"lr": -1e-3}, "lr must be finite and not negative, got -0.001"),
    "text": ({"lr": "1e-3"}, "lr must be finite"),
    "NaN": ({"ratio": math.nan}, "ratio must be finite"),
    "infinite": ({"ratio": math.inf}, "ratio must be finite"),
    "zero ratio": ({"ratio": 0}, "ratio must be positive, got 0"),
    "bool": ({"ratio": True}, "ratio must be finite and not negative, got True"),
    "decay": ({"weight_decay": -0.1}, "weight_decay must be finite and not negative, got -0.1"),
}


@pytest.mark.parametrize(("settings", "words"), BAD.values(), ids=BAD)
def test_refused(settings, words):
    model = inject(llama(), ["q_proj"], RANK, ALPHA)
    with unchanged(model), pytest.raises(ValueError, match=words):
        parameter_groups(model, **({"lr": LR, "ratio": RATIO} | settings))


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(llama().requires_grad_(False), LR, RATIO)
