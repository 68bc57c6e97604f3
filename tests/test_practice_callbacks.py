"""The callbacks in real runs of TRL's trainer: against its own log, spoiled gradients and plain scoring."""

import math
from pathlib import Path

import pytest
import torch
from practice_for_tests import tokenizer, trainer
from transformers import EarlyStoppingCallback, TrainerCallback

from lora_lab import inject
from lora_lab.models import answer, load_base
from lora_lab.practice.callbacks import ExactMatch, GradientNorms, Samples, StopOnNaN, gradient_norms, not_finite
from lora_lab.practice.data import completion_dataset
from lora_lab.tasks import load, score

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Spoil(TrainerCallback):
    """Puts a value into one gradient at one step, before the callbacks behind it look."""

    def __init__(self, step: int, value: float = math.nan):
        self.step, self.value = step, value

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            next(p for p in reversed(list(model.parameters())) if p.grad is not None).grad[0, 0] = self.value


def trainable(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def logged(made, key: str) -> list[float]:
    return [row[key] for row in made.state.log_history if key in row]


@pytest.mark.parametrize("limit", [1e9, 0.5], ids=["no clipping", "every step clipped"])
def test_norms_are_those_that_trainer_logs_and_a_starts_at_zero(tmp_path, limit):
    norms = GradientNorms()
    made = trainer(tmp_path, callbacks=[norms], max_grad_norm=limit)
    made.train()
    assert norms.total == pytest.approx(logged(made, "grad_norm"), rel=1e-5)
    assert [math.hypot(a, b) for a, b in zip(norms.A, norms.B, strict=True)] == pytest.approx(norms.total, rel=1e-5)
    assert norms.steps == [1, 2, 3]
    assert norms.A[0] == 0 < norms.B[0]  # B starts at zero, and the gradient of A is a product with it
    assert norms.A[-1] > 0
    assert {row["clipped"] for row in norms.rows} == {limit == 0.5}
    assert all(row["other"] == 0 for row in norms.rows)


def test_a_clipped_step_that_is_not_logged_says_that_its_norm_is_not_known(tmp_path):
    norms = GradientNorms()
    made = trainer(tmp_path, callbacks=[norms], max_grad_norm=0.5, logging_steps=3)
    made.train()
    assert [row["clipped"] for row in norms.rows] == [None, None, True]
    assert norms.total[:2] == pytest.approx([0.5, 0.5], rel=1e-4)
    assert norms.total[2] == pytest.approx(logged(made, "grad_norm")[-1], rel=1e-5)


def test_norms_know_the_factors_of_the_course_and_what_else_trains():
    model = inject(load_base(device="cpu")[0], ["q_proj"], 4, 10)
    model.model.norm.weight.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    found = gradient_norms(model)
    config = model.config
    assert found["A"] == pytest.approx(math.sqrt(4 * 4 * config.hidden_size))
    assert found["B"] == pytest.approx(math.sqrt(4 * 4 * config.num_attention_heads * config.head_dim))
    assert found["other"] == pytest.approx(math.sqrt(config.hidden_size))
    assert found["total"] == pytest.approx(math.sqrt(found["A"] ** 2 + found["B"] ** 2 + found["other"] ** 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_with_a_spoiled_gradient_stops_with_clean_weights_and_names_its_checkpoint(tmp_path, value):
    guard, weights = StopOnNaN(), {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            weights[state.global_step] = trainable(model)

    made = trainer(
        tmp_path, callbacks=[Keep(), Spoil(3, value), guard], max_steps=6, save_strategy="steps", save_steps=1
    )
    made.train()
    assert made.state.global_step == 3
    after = trainable(made.model)
    assert all(torch.equal(after[name], weights[2][name]) for name in after)  # step 3 has changed nothing
    assert Path(guard.last_good).name == "checkpoint-2"
    assert "Stopped at step 3" in guard.stopped
    assert "lora_" in guard.stopped
    assert "checkpoint-2" in guard.stopped

    again = trainer(tmp_path, callbacks=[StopOnNaN()], max_steps=6)
    again.train(resume_from_checkpoint=guard.last_good)
    assert again.state.global_step == 6
    assert not not_finite(again.model.named_parameters())


@pytest.mark.parametrize("step", [8, 6], ids=["last step of an epoch", "within an epoch"])
@pytest.mark.parametrize("kind", ["gradient", "weight"])
def test_a_stopped_run_leaves_the_last_good_checkpoint_when_each_epoch_saves_over_it(tmp_path, step, kind):
    class SpoilWeight(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step + 1 == step:
                next(p for p in model.parameters() if p.requires_grad).data[0, 0] = math.nan

    guard, more = StopOnNaN(), {"max_steps": -1, "num_train_epochs": 4, "save_strategy": "epoch", "save_total_limit": 1}
    spoil = Spoil(step) if kind == "gradient" else SpoilWeight()
    made = trainer(tmp_path, limit=16, callbacks=[spoil, guard], per_device_train_batch_size=4, **more)
    made.train()  # epochs of four steps
    assert made.state.global_step == step
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert Path(guard.last_good) == tmp_path / "checkpoint-4"
    assert "checkpoint-4" in guard.stopped


def test_a_stopped_run_is_not_evaluated_for_a_best_checkpoint(tmp_path):
    """Its first evaluation would be the best so far, and saved after the message that there is no checkpoint."""
    guard = StopOnNaN()
    more = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
    held_out = completion_dataset("support_desk", "validation", 8)
    trainer(tmp_path, callbacks=[Spoil(2), guard], evaluation=held_out, max_steps=4, **more).train()
    assert "There is no checkpoint" in guard.stopped
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_without_the_guard_the_same_gradient_spoils_the_weights_and_the_log_hides_it(tmp_path):
    made = trainer(tmp_path, callbacks=[Spoil(2)], max_steps=4)
    made.train()
    assert "lora_" in not_finite(made.model.named_parameters())
    assert all(map(math.isfinite, logged(made, "loss")))  # Trainer's filter: the docstring's claim


def test_a_healthy_run_is_let_alone_and_wrong_numbers_are_refused(tmp_path):
    guard = StopOnNaN()
    trainer(tmp_path, callbacks=[guard]).train()
    assert (guard.stopped, guard.last_good) == ("", None)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="allowed"):
            StopOnNaN(wrong)


def test_samples_are_the_answers_of_each_moment_and_leave_the_run_as_it_was(tmp_path):
    examples = load("support_desk", "validation", 2)
    samples = Samples(tokenizer(), examples, every=2)
    made = trainer(tmp_path / "a", callbacks=[samples], max_steps=3)
    made.train()
    assert [row["step"] for row in samples.rows] == [0, 2, 3]
    assert samples.rows[0]["answers"] == answer(load_base(device="cpu")[0], tokenizer(), [e.prompt for e in examples])
    assert samples.rows[-1]["answers"] == answer(made.model, tokenizer(), [e.prompt for e in examples])
    assert examples[1].completion in samples.table(1)
    plain = trainer(tmp_path / "b", max_steps=3)
    plain.train()
    assert logged(made, "loss") == logged(plain, "loss")
    with pytest.raises(ValueError, match="nothing to ask"):
        Samples(tokenizer(), [])
    with pytest.raises(ValueError, match="every = 0"):
        Samples(tokenizer(), examples, every=0)


def test_exact_match_chooses_the_checkpoint_and_stops_the_run(tmp_path):
    """At a rate of zero nothing improves: the run ends when patience does, and the metric is that of `score`."""
    examples = load("new_facts", "validation", 12)
    match = ExactMatch(tokenizer(), "new_facts", examples)
    made = trainer(
        tmp_path,
        callbacks=[match, EarlyStoppingCallback(early_stopping_patience=1)],
        dataset=completion_dataset("new_facts", "train", 32),
        evaluation=completion_dataset("new_facts", "validation", 12),
        max_steps=5,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_exact",
        greater_is_better=True,
    )
    made.train()
    assert made.state.global_step == 2
    assert match.rows[-1]["eval_exact"] == score("new_facts", made.model, tokenizer(), examples)["exact"]
    assert made.state.best_metric == match.rows[0]["eval_exact"]
    assert logged(made, "eval_exact") == [row["eval_exact"] for row in match.rows]
    with pytest.raises(KeyError, match="unknown task"):
        ExactMatch(tokenizer(), "poems", examples)
    with pytest.raises(ValueError, match="no answers"):
        ExactMatch(tokenizer(), "cipher", [])
