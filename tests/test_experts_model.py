"""Experts in a whole model: who is adapted, frozen and given back; beside `inject`; what is refused."""

import re

import pytest
import torch
from experts_for_tests import DOWN, PATHS, UP, Shared, fill_experts, gpt_oss, mixtral, updates
from models_for_tests import ALPHA, RANK, fill, fingerprint, llama, logits, run, token_ids, unchanged
from torch import nn

from lora_lab import count, eject, inject, lora_layers
from lora_lab.adapter_file import adapter_of
from lora_lab.many import add_adapter
from lora_lab.variants import DoRALinear, parameter_groups
from lora_lab.variants.experts import (
    ExpertUpdate,
    eject_experts,
    find_experts,
    inject_experts,
    merge_experts_,
    unmerge_experts_,
)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([UP, DOWN], PATHS),
        (["down_proj"], PATHS[1::2]),
        (["layers.1.mlp.experts.gate_up_proj"], PATHS[2:3]),
        (r".*\.experts\.(gate_up|down)_proj", PATHS),
        (r".*0\.mlp\.experts\.\w+", PATHS[:2]),
    ],
    ids=str,
)
def test_targets(targets, expected):
    model = mixtral()
    found = find_experts(model, targets)
    assert [f"{name}.{tensor}" for name, tensors in found.items() for tensor in tensors] == expected
    assert list(updates(inject_experts(model, targets, RANK, ALPHA))) == expected


def test_only_a_and_b_train_and_eject_gives_the_model_back():
    model = mixtral()
    model.lm_head.weight.requires_grad_(False)
    before, expected = fingerprint(model), logits(model)
    experts = model.model.layers[1].mlp.experts
    inject_experts(model, [DOWN], RANK, ALPHA)
    assert model.model.layers[1].mlp.experts.base is experts
    assert torch.equal(logits(model), expected)  # B is zero
    assert count(model).trainable == 2 * 3 * RANK * (24 + 40)
    fill_experts(model)
    assert (logits(model) - expected).abs().max() > 0.01
    loss = model(input_ids=token_ids(), labels=token_ids()).loss
    loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        f"model.layers.{layer}.mlp.experts.updates.down_proj.{factor}" for layer in (0, 1) for factor in "AB"
    }
    eject_experts(model)
    assert model.model.layers[1].mlp.experts is experts
    assert fingerprint(model)[:2] == before[:2]
    assert all(torch.equal(tensor, before[2][name]) for name, tensor in model.state_dict().items())


def test_beside_inject():
    model = mixtral()
    before = fingerprint(model)
    inject(model, ["q_proj"], RANK, ALPHA)
    inject_experts(model, [UP, DOWN], RANK - 1, ALPHA)
    fill_experts(fill(model))
    assert len(lora_layers(model)) == 2
    trains = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {"A", "B"}
    both = count(model).trainable
    assert both == 2 * (RANK * 48 + (RANK - 1) * 3 * (24 + 80 + 40 + 24))
    groups = parameter_groups(model, 1e-3, 16.0)
    b = {p for name, p in model.named_parameters() if name.endswith(".B")}
    assert [(group["lr_ratio"], set(group["params"]) == b) for group in groups] == [(1.0, False), (16.0, True)]
    losses = run(model).loss
    assert losses[-1] < losses[0]
    eject_experts(model)
    assert count(model).trainable == 2 * RANK * 48
    eject(model)
    assert fingerprint(model)[:2] == before[:2]
    assert all(torch.equal(tensor, before[2][name]) for name, tensor in model.state_dict().items())


def injected(**settings) -> nn.Module:
    return inject(mixtral(), ["q_proj"], RANK, ALPHA, **settings)


def many() -> nn.Module:
    return add_adapter(mixtral(), "one", adapter_of(injected()))


def half(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:
        layer.mlp.experts.down_proj = nn.Parameter(layer.mlp.experts.down_proj.to(torch.float8_e4m3fn))
    return model


BAD = {
    "no target": (
        mixtral,
        {"targets": []},
        "matches no tensor; .* end in .'experts.down_proj', 'experts.gate_up_proj'",
    ),
    "unknown": (mixtral, {"targets": [DOWN, "w1"]}, r"target \['w1'\] matches no tensor"),
    "a matrix": (mixtral, {"targets": ["q_proj.weight"]}, r"q_proj.weight has the shape \(24, 24\), experts are"),
    "no mixture": (llama, {}, r"matches no tensor; tensors of experts here end in \[\]"),
    "rank 0": (
        mixtral,
        {"rank": 0},
        "layers.0.mlp.experts.down_proj: rank must be a whole number from 1 to .*24, got 0",
    ),
    "rank": (mixtral, {"rank": 25}, "rank must be a whole number from 1 to .*24, got 25"),
    "bool rank": (mixtral, {"rank": True}, "rank must be a whole number"),
    "alpha": (mixtral, {"alpha": float("inf")}, "alpha must be a positive finite number, got inf"),
    "init": (mixtral, {"init": "pissa"}, "init of experts must be True, False or 'gaussian', got 'pissa'"),
    "None": (mixtral, {"init": None}, "init of experts must be"),
    "8 bits": (lambda: half(mixtral()), {}, "must be fp64, fp32, bf16 or fp16, got torch.float8_e4m3fn"),
    "twice": (lambda: inject_experts(mixtral(), [UP], RANK, ALPHA), {}, "the experts are adapted already"),
    "many": (many, {}, "q_proj carries adapters of add_adapter already"),
    "dropout": (lambda: injected(dropout=0.1), {}, "q_proj has dropout, the experts have not"),
    "DoRA": (lambda: injected(layer=DoRALinear), {}, "q_proj has DoRA"),
    "rslora": (lambda: injected(rslora=True), {}, "q_proj has rslora=True"),
    "unknown kind": (Shared, {"targets": ["a.w"], "rank": 2, "fused": True}, "Module has no has_gate"),
    "itself": (
        lambda: mixtral().model.layers[0].mlp.experts,
        {"targets": ["down_proj"]},
        "belongs to the model itself",
    ),
}


@pytest.mark.parametrize(("build", "settings", "words"), BAD.values(), ids=BAD)
def test_refused_before_anything_changes(build, settings, words):
    model = build()
    error = TypeError if "fp64" in words else ValueError
    with unchanged(model), pytest.raises(error, match=words):
        inject_experts(model, **({"targets": [DOWN], "rank": RANK, "alpha": ALPHA} | settings))


def test_an_interrupt_leaves_the_model_as_it_was(monkeypatch):
    model, made = mixtral(), []

    def interrupted(self, *args, **more):
        made.append(self)
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **more)

    original = ExpertUpdate.__init__
    monkeypatch.setattr(ExpertUpdate, "__init__", interrupted)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        inject_experts(model, [UP, DOWN], RANK, ALPHA)


@pytest.mark.parametrize("call", [eject_experts, merge_experts_, unmerge_experts_])
def test_without_adapted_experts_there_is_nothing_to_do(call):
    with pytest.raises(ValueError, match=r"no experts of the model are adapted|has no adapted experts"):
        call(mixtral())


def test_ready_factors_are_copied_and_must_fit():
    A, B = torch.randn(6, 4), torch.randn(5, 6)
    update = ExpertUpdate(torch.randn(2, 5, 4), 3, 4, init=(A, B))
    kept = A.clone(), B.clone()
    A.zero_(), B.zero_()
    assert torch.equal(update.A, kept[0])
    assert torch.equal(update.B, kept[1])
    with pytest.raises(
        ValueError, match=re.escape("A and B must have the shapes ((6, 4), (5, 6)), got (5, 4), (5, 6)")
    ):
        ExpertUpdate(torch.randn(2, 5, 4), 3, 4, init=(A[:5], B))


def test_what_it_prints():
    experts = inject_experts(gpt_oss(), [DOWN], RANK, ALPHA).model.layers[0].mlp.experts
    assert "ExpertUpdate(experts=3, rank=4, alpha=10, scale=2.5)" in repr(experts)
    assert repr(experts).startswith("LoRAExperts(\n  merged=False")
