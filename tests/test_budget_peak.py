"""The worst moment of each phase of a training step, predicted, against every tensor that the same step makes."""

import itertools

import pytest
import torch
from budget_for_tests import (
    BATCH,
    FAMILY,
    LENGTH,
    MIXTURES,
    OPTIMIZERS,
    STEPWISE,
    build,
    config,
    ids,
    loss,
    model,
    predicted,
)

from lora_lab import inject
from lora_lab.budget import budget
from lora_lab.budget.measure import Accountant, measured_step


def step_as_predicted(family: str, batch: int = BATCH, optimizer: str = "adamw", **settings) -> tuple[dict, dict]:
    """Predicted and measured bytes of a step."""
    made, tokens = model(family, **settings), ids(batch, LENGTH)
    buffers = [b for name, b in made.named_buffers() if "inv_freq" not in name]
    accountant = Accountant([*made.parameters(), *buffers, tokens, tokens.clone()])
    parameters = [p for p in made.parameters() if p.requires_grad]
    run = OPTIMIZERS[optimizer](parameters)
    found = measured_step(accountant, lambda: loss(made, tokens, settings.get("autocast")), run)
    memory = predicted(family, batch, LENGTH, optimizer=optimizer, **settings).memory
    standing = sum(memory.kinds[kind] for kind in ("weights", "adapter", "optimizer"))
    ours = {phase: sum(kinds.values()) for phase, kinds in memory.moments.items()}
    ours |= {"standing": standing + tokens.nbytes, "gradients": memory.kinds["gradients"], "peak": memory.peak}
    return ours, found


STEPS = list(itertools.product(("llama", "gpt2", "gpt_neox"), ("full", "lora"), ("float32", "bfloat16"), (False, True)))


@pytest.mark.parametrize(("family", "method", "dtype", "checkpointing"), STEPS)
def test_peak_of_a_step(family, method, dtype, checkpointing):
    ours, found = step_as_predicted(family, method=method, dtype=dtype, checkpointing=checkpointing)
    assert ours["gradients"] == found["gradients"]
    assert ours["standing"] == found["standing"]
    # Llama's operations are followed one by one; of the others some variables hold on to more than is written down.
    limit = 0.008 if family == "llama" else 0.02
    for phase in ("peak", "forward", "backward", "step"):
        assert ours[phase] == pytest.approx(found[phase], rel=0.02 if phase == "step" else limit), phase


def test_the_worst_layer_is_the_last_where_inputs_outweigh_gradients():
    settings = {"method": "lora", "targets": ["down_proj"], "checkpointing": True}
    ours, found = step_as_predicted("llama", batch=8, **settings)
    assert ours["backward"] == pytest.approx(found["backward"], rel=0.005)


def test_a_model_of_attention_alone():
    narrow = config("llama")
    narrow.intermediate_size, narrow.head_dim = 4, 32
    made, tokens = inject(build(narrow), "all-linear", 3, 5), ids(BATCH, LENGTH)
    made.activation_checkpointing_enable()
    parameters = [p for p in made.parameters() if p.requires_grad]
    accountant = Accountant([*made.parameters(), tokens, tokens.clone()])
    found = measured_step(accountant, lambda: loss(made, tokens), torch.optim.SGD(parameters))
    settings = {"rank": 3, "dtype": "float32", "batch": BATCH, "length": LENGTH, "optimizer": "sgd", "device": "cpu"}
    memory = budget(narrow, checkpointing=True, **settings).memory
    assert sum(memory.moments["forward"].values()) == pytest.approx(found["forward"], rel=0.01)
    assert memory.peak == pytest.approx(found["peak"], rel=0.01)


OTHERS = [
    {"method": "dora"},
    {"method": "qlora", "dtype": "bfloat16"},
    {"method": "lora", "dtype": "bfloat16", "library": "peft"},
    {"method": "dora", "dtype": "bfloat16", "library": "peft"},
    {"method": "lora", "dtype": "bfloat16", "autocast": "bfloat16"},
    {"method": "full", "autocast": "bfloat16"},
    {"method": "full", "attention": "eager", "dtype": "bfloat16"},
    {"method": "lora", "attention": "eager"},
]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", OTHERS, ids=str)
def test_peak_of_other_ways_to_run(settings, checkpointing):
    ours, found = step_as_predicted("llama", checkpointing=checkpointing, **settings)
    assert ours["peak"] == pytest.approx(found["peak"], rel=0.015)
    if settings.get("attention") == "eager" and checkpointing:
        assert ours["backward"] == pytest.approx(found["backward"], rel=2e-3)  # the mask is there once more
    if settings.get("autocast") and settings["method"] == "full":
        assert ours["forward"] == pytest.approx(found["forward"], rel=2e-3)  # autocast's copies of the weights


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", [name for name in FAMILY if name not in ("llama", "gpt2", "gpt_neox")])
def test_peak_of_every_other_family(family, checkpointing):
    targets = ["q_proj", "v_proj"] if family in MIXTURES else "all-linear"
    attention = "eager" if family in STEPWISE else "sdpa"
    settings = {"attention": attention, "dtype": "bfloat16", "targets": targets}
    ours, found = step_as_predicted(family, checkpointing=checkpointing, **settings)
    assert ours["peak"] == pytest.approx(found["peak"], rel=0.02)
