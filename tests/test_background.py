"""Short training runs for the training explorer: what they tell, what they leave, what they refuse."""

import pytest
import torch

from lora_lab.background import Settings, events
from lora_lab.models import load_base
from lora_lab.widgets import train_now


@pytest.fixture(scope="module")
def base():
    return load_base(device="cpu")


def test_a_real_run_learns_and_gives_the_model_back(base):
    model, tokenizer = base
    before = {name: p.clone() for name, p in model.state_dict().items()}
    run = train_now(Settings(rank=4, alpha=16, lr=1e-2, steps=6), model, tokenizer)
    assert len(run.loss) == 6
    assert run.loss[-1] < run.loss[0]
    assert run.grad_A[0] == 0  # B starts at zero
    assert run.grad_B[0] > 0
    assert run.ended == "done"
    assert len(run.spectrum) == 4
    assert run.norm[-1] > run.norm[0] > 0
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_giving_up_in_the_middle_leaves_the_model_as_it_was(base):
    model, tokenizer = base
    names = set(model.state_dict())
    run = events(Settings(rank=3, alpha=16, optimizer="sgd", rule="rslora", steps=5), model, tokenizer)
    assert [next(run)["kind"] for _ in range(2)] == ["start", "step"]
    run.close()
    assert set(model.state_dict()) == names
    assert not model.training


def test_a_run_that_goes_astray_says_what_to_do(base):
    with pytest.raises(ValueError, match=r"(nan|inf|not finite) at step \d+: learning rate 1e\+20 is too high"):
        train_now(Settings(optimizer="sgd", lr=1e20, steps=5), *base)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rule": "plain"}, "rule 'plain'"),
        ({"optimizer": "lion"}, "optimizer 'lion'"),
        ({"rank": 0}, "rank must"),
        ({"steps": 2.5}, "steps must"),
        ({"lr": float("inf")}, "lr must"),
        ({"alpha": -1}, "alpha must"),
    ],
)
def test_settings_outside_their_limits_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)
