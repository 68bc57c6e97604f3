"""Experts through the functions for every adapter: saved and loaded here and by PEFT, merged, ejected, trained."""

import copy
import json

import peft
import pytest
import torch
from experts_for_tests import DOWN, MIXTURES, UP, fill_experts, filled_pair, mixtral, peft_updates, updates
from models_for_tests import ALPHA, RANK, fill, fingerprint, logits, run, unchanged
from safetensors.torch import load_file, save_file
from torch import nn

from lora_lab import (
    adapter_state,
    eject,
    inject,
    load_adapter,
    lora_layers,
    merge_,
    merged,
    save_adapter,
    unmerge_,
)
from lora_lab.adapter_file import read_adapter
from lora_lab.variants.experts import eject_experts, expert_layers, inject_experts

# PEFT uses patterns for the rank of a parameter, and warns that it does not: it looks at the names of modules alone.
false_alarm = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
MIXED = {"experts only": [], "beside attention": ["q_proj", "o_proj"]}


def adapted(base: nn.Module, modules=("q_proj",), targets=(UP, DOWN), rank=RANK - 1, rslora=False) -> nn.Module:
    model = copy.deepcopy(base)
    if modules:
        fill(inject(model, list(modules), RANK, ALPHA, rslora=rslora))
    return fill_experts(inject_experts(model, targets, rank, ALPHA + 1, rslora))


@pytest.mark.parametrize("targets", [(UP, DOWN), (UP,), (DOWN,)], ids=str)
@pytest.mark.parametrize("name", MIXTURES)
def test_keys_and_numbers_are_those_of_peft(name, targets):
    ours, twin = filled_pair(MIXTURES[name](), targets)
    state, theirs = adapter_state(ours), peft.get_peft_model_state_dict(twin)
    assert state.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in state.items())


@false_alarm
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("modules", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("name", MIXTURES)
def test_saved_here_and_loaded_here_and_by_peft(name, modules, rslora, tmp_path):
    base = MIXTURES[name]()
    model = adapted(base, modules, rslora=rslora)
    save_adapter(model, tmp_path)
    expected = logits(model)
    state = torch.get_rng_state()
    again = load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(again), expected)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {n for n, p in again.named_parameters() if p.requires_grad}
    assert {u.rank for u in updates(again).values()} == {RANK - 1}
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert theirs.peft_config["default"].target_parameters
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-5, atol=1e-5)
    eject(again)
    assert torch.equal(logits(again), logits(base))
    assert all(p.requires_grad for p in again.parameters())


@false_alarm
@pytest.mark.parametrize("modules", MIXED.values(), ids=MIXED)
def test_saved_by_peft_and_loaded_here(modules, tmp_path):
    base = mixtral()
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=modules,
        target_parameters=[DOWN, "gate_up_proj"],
        init_lora_weights=False,
        rank_pattern={"layers.1.mlp.experts.down_proj": 2, "gate_up_proj": 3},
        alpha_pattern={"down_proj": 7},
    )
    twin = peft.get_peft_model(copy.deepcopy(base), config)
    twin.save_pretrained(tmp_path)
    ours = load_adapter(base, tmp_path)
    torch.testing.assert_close(logits(ours), logits(twin), rtol=0, atol=0)
    assert [(u.rank, u.alpha) for u in updates(ours).values()] == [(3, ALPHA), (RANK, 7), (3, ALPHA), (2, 7)]
    assert len(lora_layers(ours)) == 2 * len(modules)
    for path, update in updates(ours).items():
        assert torch.equal(update.A, peft_updates(twin)[path][0])


def damaged(folder, change) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors")
    change(config, state)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(state, folder / "adapter_model.safetensors")  # without the digest, as another program would


def path_of(state: dict, end: str) -> str:
    return next(key for key in state if key.endswith(end))


DAMAGE = {
    "a tensor is missing": (
        lambda config, state: [
            state.pop(k) for k in list(state) if k.startswith("base_model.model.model.layers.1.mlp")
        ],
        "layers.1.mlp.experts.gate_up_proj is in the config's target_parameters, but .*base_layer.lora_A is not",
    ),
    "one factor is missing": (
        lambda config, state: state.pop(path_of(state, "base_layer.lora_B.weight")),
        "base_layer has only lora_A: B is missing",
    ),
    "another rank": (
        lambda config, state: config.update(r=2, rank_pattern={}),
        r"gate_up_proj: A and B must have the shapes \(\(6, 24\), \(80, 6\)\), got \(9, 24\), \(80, 9\)",
    ),
    "no alpha": (lambda config, state: config.update(lora_alpha=0), "lora_alpha must be a positive number, got 0"),
    "NaN": (lambda config, state: state[path_of(state, "lora_A.weight")].fill_(float("nan")), "holds NaN or infinity"),
    "unknown tensor": (
        lambda config, state: config["target_parameters"].append("experts.w9"),
        "matches no tensor",
    ),
    "not named": (
        lambda config, state: config.update(target_parameters=[DOWN]),
        r"A and B must have the shapes|is not in the file|are not linear layers",
    ),
}


@pytest.mark.parametrize(("change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused(change, words, tmp_path):
    base = mixtral()
    save_adapter(adapted(base), tmp_path)
    damaged(tmp_path, change)
    with unchanged(base), pytest.raises(ValueError, match=words):
        load_adapter(base, tmp_path)


def test_a_model_without_those_experts_is_refused(tmp_path):
    from models_for_tests import llama

    save_adapter(adapted(mixtral()), tmp_path)
    model = llama()
    with unchanged(model), pytest.raises(ValueError, match="matches no tensor"):
        load_adapter(model, tmp_path)
    with pytest.raises(ValueError, match=r"adapts experts .*: only load_adapter reads it"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("modules", MIXED.values(), ids=MIXED)
def test_merge_unmerge_and_eject_take_the_experts_with_them(modules):
    base = mixtral()
    before = fingerprint(base)
    model = adapted(base, modules)
    expected = logits(model)
    plain = merged(model)
    assert not expert_layers(plain)
    assert not lora_layers(plain)
    assert not any(p.requires_grad for p in plain.parameters())
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), expected)
    merge_(model, keep_base=True)
    assert all(layer.merged for layer in (lora_layers(model) | expert_layers(model)).values())
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    with unchanged(model), pytest.raises(ValueError, match="layers are merged"):
        eject(model)
    with unchanged(model), pytest.raises(ValueError, match="merged into the base"):
        run(model, steps=2)
    assert torch.equal(logits(merged(model)), logits(model))
    eject(unmerge_(model))
    assert [(n, p) for n, *_, p in fingerprint(model)[0]] == [(n, p) for n, *_, p in before[0]]
    assert all(torch.equal(tensor, before[2][name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_an_expert_that_cannot_be_merged_leaves_the_rest_unmerged():
    model = adapted(mixtral())
    with torch.no_grad():
        next(iter(updates(model).values())).B[0, 0] = float("nan")
    for call in (merge_, merged):
        with unchanged(model), pytest.raises(ValueError, match=r"W \+ s·BA is not finite"):
            call(model)


def test_order_of_injection():
    model = inject_experts(mixtral(), [DOWN], RANK, ALPHA)
    with unchanged(model), pytest.raises(ValueError, match="inject comes before inject_experts"):
        inject(model, ["q_proj"], RANK, ALPHA)


def test_a_checkpoint_of_another_scale_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    model = inject_experts(mixtral(), [DOWN], RANK, ALPHA)
    first = run(model, steps=3, checkpoint=path)
    assert run(inject_experts(mixtral(), [DOWN], RANK, ALPHA), steps=3, checkpoint=path).loss == first.loss
    with pytest.raises(ValueError, match="other adapters"):
        run(inject_experts(mixtral(), [DOWN], RANK, ALPHA + 1), steps=3, checkpoint=path)


def test_experts_alone_can_still_be_ejected_alone():
    model = adapted(mixtral())
    eject_experts(model)
    assert lora_layers(model)
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"A", "B"}
