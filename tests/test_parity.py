"""Ours against PEFT's, tensor by tensor: init, forward, gradients, training, merge, state dict, counts, targets.

Bit for bit, since both do the same operations in the same order. alpha != rank throughout.
"""

import itertools

import peft
import pytest
import torch
from models_for_tests import (
    ALPHA,
    DTYPES,
    LANGUAGE_MODELS,
    RANK,
    copy_factors,
    fill,
    linear,
    llama,
    logits,
    peft_factors,
    peft_twin,
    plain,
    token_ids,
)
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from lora_lab import adapter_state, count, find_targets, inject, lora_layers, merged
from lora_lab.targets import matches

SHAPES = {"tall": (48, 16, 4), "wide": (16, 48, 4), "rank 1": (7, 5, 1), "full rank": (6, 10, 6)}  # out, in, rank
LAYERS = {f"{name}, {kind}": (shape, kind) for name, shape in SHAPES.items() for kind in ("bias", "no bias", "Conv1D")}


def pair(shape, kind, dtype, dropout=0.0, rslora=False) -> tuple[nn.Module, peft.PeftModel]:
    """The same layer, adapted by us and by PEFT, with the same random A and B."""
    out, in_, rank = shape
    base = nn.Sequential(linear(out, in_, kind == "bias", dtype, kind == "Conv1D"))
    twin = peft_twin(base, ["0"], rank, rank + 3, dropout, rslora)
    ours = fill(inject(base, ["0"], rank, rank + 3, dropout, rslora))
    copy_factors(ours, twin)
    return ours, twin


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_default_init_of_a_whole_model(name, dtype):
    base = LANGUAGE_MODELS[name](dtype)
    torch.manual_seed(5)
    twin = peft_twin(base, "all-linear")
    theirs, state_theirs = peft_factors(twin), torch.get_rng_state()
    torch.manual_seed(5)
    ours = lora_layers(inject(base, "all-linear", RANK, ALPHA))
    assert torch.equal(torch.get_rng_state(), state_theirs)
    assert list(ours) == list(theirs)
    for path, layer in ours.items():
        assert_equal(layer.A, theirs[path][0])
        assert_equal(layer.B, theirs[path][1])
        assert layer.A.any()
        assert not layer.B.any()


@pytest.mark.parametrize(("shape", "kind"), LAYERS.values(), ids=LAYERS)
def test_default_init_of_a_layer(shape, kind):
    out, in_, rank = shape
    base = nn.Sequential(linear(out, in_, kind == "bias", conv1d=kind == "Conv1D"))
    torch.manual_seed(8)
    (theirs,) = peft_factors(peft_twin(base, ["0"], rank)).values()
    torch.manual_seed(8)
    layer = inject(base, ["0"], rank, ALPHA)[0]
    assert_equal(layer.A, theirs[0])
    assert_equal(layer.B, theirs[1])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kind"), LAYERS.values(), ids=LAYERS)
def test_forward_and_gradients(shape, kind, dtype, dropout):
    for rslora, training in itertools.product([False, True], [False, True]):
        ours, twin = pair(shape, kind, dtype, dropout, rslora)
        results = []
        for model in (ours, twin):
            model.train(training)
            x = torch.randn(2, 3, shape[1], generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
            torch.manual_seed(9)  # the same dropout mask
            y = model(x)
            weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
            (y * weights).sum().backward()
            results.append((y, x.grad))
        assert_equal(results[0][0], results[1][0])
        assert_equal(results[0][1], results[1][1])
        assert results[0][0].dtype == dtype
        (theirs,) = peft_factors(twin).values()
        for factor, their_factor in zip((ours[0].A, ours[0].B), theirs, strict=True):
            assert factor.grad.any()
            assert_equal(factor.grad, their_factor.grad)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_forward_of_a_whole_model(name, rslora):
    base = LANGUAGE_MODELS[name]()
    twin = peft_twin(base, "all-linear", rslora=rslora)
    before = logits(base)
    ours = fill(inject(base, "all-linear", RANK, ALPHA, rslora=rslora))
    copy_factors(ours, twin)
    assert_equal(logits(ours), logits(twin))
    assert (logits(ours) - before).abs().max() > 0.01
    for path, layer in lora_layers(ours).items():
        assert layer.scale == twin.base_model.model.get_submodule(path).scaling["default"]


def ten_steps(model: nn.Module) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
    model.train()
    torch.manual_seed(4)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_ten_training_steps(name, dtype):
    base = LANGUAGE_MODELS[name](dtype)
    torch.manual_seed(6)
    twin = peft_twin(base, "all-linear", dropout=0.1)
    torch.manual_seed(6)
    ours = inject(base, "all-linear", RANK, ALPHA, dropout=0.1)
    losses = ten_steps(ours)
    assert losses == ten_steps(twin)
    assert losses[-1] < losses[0] - 0.1
    theirs = peft_factors(twin)
    for path, layer in lora_layers(ours).items():
        assert layer.B.any()
        assert_equal(layer.A, theirs[path][0])
        assert_equal(layer.B, theirs[path][1])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "kind"), LAYERS.values(), ids=LAYERS)
def test_merged_weight(shape, kind, dtype, rslora):
    ours, twin = pair(shape, kind, dtype, rslora=rslora)
    before = ours[0].base.weight.clone()
    plain_model, theirs = merged(ours), twin.merge_and_unload()
    assert type(plain_model[0]) is type(theirs[0])
    assert_equal(plain_model[0].weight, theirs[0].weight)
    assert not torch.equal(plain_model[0].weight, before)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_merged_model(name):
    base = LANGUAGE_MODELS[name]()
    twin = peft_twin(base, "all-linear")
    ours = fill(inject(base, "all-linear", RANK, ALPHA))
    copy_factors(ours, twin)
    state, theirs = merged(ours).state_dict(), twin.merge_and_unload().state_dict()
    assert list(state) == list(theirs)
    for key, tensor in state.items():
        assert_equal(tensor, theirs[key])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_state_dict(name):
    base = LANGUAGE_MODELS[name](torch.bfloat16)
    twin = peft_twin(base, "all-linear")
    ours = fill(inject(base, "all-linear", RANK, ALPHA))
    copy_factors(ours, twin)
    state, theirs = adapter_state(ours), peft.get_peft_model_state_dict(twin)
    assert list(state) == list(theirs)
    for key, tensor in state.items():
        assert_equal(tensor, theirs[key])


BASES = {**LANGUAGE_MODELS, "tied llama": lambda: llama(tied=True), "plain": plain}
TARGETS = {
    "llama": [
        "all-linear",
        "ALL-LINEAR",
        ["q_proj"],
        ["q_proj", "v_proj", "down_proj"],
        ["layers.1.self_attn.k_proj"],
        ["model.layers.0.mlp.up_proj", "o_proj"],
        ["lm_head"],
        r".*\.[qv]_proj",
        r"model\.layers\.1\..*(gate|up)_proj",
        r".*layers\.[0]\.self_attn\.\w_proj",
    ],
    "gpt2": ["all-linear", ["c_attn"], ["c_attn", "c_proj", "c_fc"], ["attn.c_proj"], r".*h\.1\.mlp\.c_\w+"],
    "neox": ["all-linear", ["query_key_value"], ["dense", "dense_h_to_4h"], r".*layers\.\d\.attention\.dense"],
    "tied llama": ["all-linear", ["lm_head", "q_proj"]],
    "plain": [["proj"], ["my_proj"], ["block.proj"], r"(my_)?proj", ["tied_a", "tied_b"]],
}
CASES = [(name, targets) for name, several in TARGETS.items() for targets in several]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(("name", "targets"), CASES, ids=str)
def test_targets_and_counts(name, targets):
    base = BASES[name]()
    twin = peft_twin(base, targets)
    assert list(find_targets(base, targets)) == list(peft_factors(twin))
    numbers = count(inject(base, targets, RANK, ALPHA))
    assert (numbers.trainable, numbers.total) == twin.get_nb_trainable_parameters()
    assert numbers.percent == pytest.approx(100 * numbers.trainable / numbers.total)


NAMES = ["q_proj", "a.q_proj", "a.b.q_proj", "seq_proj", "a.seq_proj", "q_proj.base", "q_projx", "a.qxproj", "A.Q_PROJ"]
NAMES += ["layers.1.q", "layers.11.q", "xlayers.1.q", "0", "1.0", "10", "a\n.q_proj", "a.q_proj\n"]
RULES = [["q_proj"], ["b.q_proj"], ["q_proj", "0"], ["layers.1.q"], ["q.proj"], [".*"], ("0",), {"q_proj"}]
RULES += [r".*q_proj", r"q_proj", r"(a\.)?q_proj", r"(?i).*q_proj", r".*\.\d+", r"layers\.1.*", r"a|q_proj"]


@pytest.mark.parametrize("targets", RULES, ids=str)
def test_names_match_as_in_peft(targets):
    config = peft.LoraConfig(target_modules=list(targets) if isinstance(targets, tuple) else targets)
    assert {n for n in NAMES if matches(n, targets)} == {n for n in NAMES if check_target_module_exists(config, n)}
