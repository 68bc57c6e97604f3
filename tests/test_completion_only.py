"""The comparison of losses on answers and on prompts: the record is whole, fair, and says what lesson 06 says of it."""

import json
from statistics import fmean

import pytest

from lora_lab.experiments import completion_only as study
from lora_lab.paths import MEASUREMENTS
from lora_lab.tasks import load

RECORD = json.loads((MEASUREMENTS / "completion_only.json").read_text(encoding="utf-8"))


def losses(side, lr):
    return [run["validation_loss"] for run in RECORD["runs"] if (run["side"], run["lr"]) == (side, lr)]


def test_every_run_is_there_once():
    asked = {(side, lr, seed) for side in study.SIDES for lr in study.RATES for seed in study.SEEDS}
    assert sorted((run["side"], run["lr"], run["seed"]) for run in RECORD["runs"]) == sorted(asked)
    assert (RECORD["steps"], RECORD["settings"]) == (study.STEPS, study.settings())


def test_what_the_lesson_says():
    """Lower at every rate for every seed; about a factor of two between the best rates, which are inside the grid."""
    for lr in study.RATES:
        assert max(losses("answer only", lr)) < min(losses("prompt and answer", lr))
    best = {side: min(study.RATES, key=lambda lr: fmean(losses(side, lr))) for side in study.SIDES}
    assert set(best.values()) <= set(study.RATES[1:-1])
    ratio = fmean(losses("prompt and answer", best["prompt and answer"])) / fmean(
        losses("answer only", best["answer only"])
    )
    assert 1.7 < ratio < 2.5
    right = [run["exact"] for run in RECORD["runs"] if run["side"] == "prompt and answer"]
    assert max(right) <= 0.01


@pytest.mark.filterwarnings("ignore")
def test_the_two_sides_learn_different_tokens():
    pytest.importorskip("trl")
    found = {only: study.point(only, lr=0.01, seed=0, steps=2, answers=0) for only in (True, False)}
    assert found[True].keys() == {"validation_loss"}
    assert found[True] != found[False]
    assert found[True] == study.point(True, lr=0.01, seed=0, steps=2, answers=0)


def test_the_training_is_that_of_the_settings(monkeypatch):
    """What reaches TRL, and which examples are looked at, is what the record says."""
    trl = pytest.importorskip("trl")
    seen = {}

    def caught(**given):
        seen.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(trl, "SFTTrainer", caught)
    with pytest.raises(KeyboardInterrupt):
        study.point(False, lr=0.03, seed=5, steps=7)
    told, args, adapter = study.settings(), seen["args"], seen["peft_config"]
    assert (adapter.r, adapter.lora_alpha, adapter.target_modules) == tuple(
        told[k] for k in ("rank", "alpha", "targets")
    )
    assert {name: getattr(args, name) for name in study.TRAINING} == {name: told[name] for name in study.TRAINING}
    assert (args.learning_rate, args.seed, args.max_steps, args.completion_only_loss) == (0.03, 5, 7, False)
    assert (args.bf16, args.use_cpu, args.weight_decay, args.max_grad_norm) == (False, True, 0.0, 1.0)
    first = load(told["task"], "train")[0]
    assert seen["train_dataset"][0]["completion"][0]["content"] == first.completion
