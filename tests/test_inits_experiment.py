"""What lesson 05 measures: starts are the library's, a run is `train`'s, rates are chosen as the record says."""

import statistics
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import llama

from lora_lab.experiments import inits
from lora_lab.experiments.inits import reading, runs, sweep_inits
from lora_lab.inject import inject, lora_layers
from lora_lab.merge import merged
from lora_lab.train import Diverged, mean_loss, train

NAMES = [*sweep_inits.PLAIN, "loftq 5"]


def examples(count: int, seed: int = 0) -> list[dict]:
    tokens = torch.randint(3, 60, (count, 12), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{"input_ids": row, "labels": [-100] * 4 + row[4:]} for row in tokens]


@pytest.fixture(scope="module")
def tiny() -> runs.World:
    data = {"train": examples(48), "validation": examples(20, 1), "test": examples(20, 2)}
    return runs.World(llama(), None, data, examples(8, 3), examples(32, 4))


@pytest.mark.parametrize("name", NAMES)
def test_a_start_of_that_name_computes_what_the_base_does(tiny, name):
    quantize = "nf4" if name.startswith("loftq") else None
    model = runs.started(tiny, name, quantize=quantize)
    assert set(lora_layers(model)) <= set(lora_layers(inject(llama(), "all-linear", 8, 16)))
    off = runs.distance(tiny.base, model)
    whole, squares = 0.0, 0.0
    plain = merged(model)
    for path in lora_layers(model):
        W = tiny.base.get_submodule(path).weight
        after = plain.get_submodule(path)
        if quantize is None:
            squares += (W - after.weight).square().sum().item()
            whole += W.square().sum().item()
    if quantize is None:
        assert off == pytest.approx((squares / whole) ** 0.5, abs=1e-6)
        assert off < 1e-6
    else:
        assert 0.01 < off < runs.distance(tiny.base, runs.started(tiny, "default", quantize="nf4"))


def test_what_stands_behind_a_name_is_passed_on(tiny):
    ipm, kpm = (runs.started(tiny, name) for name in ("corda", "corda kpm"))
    path = "model.layers.0.mlp.down_proj"
    first, last = (lora_layers(model)[path].delta_weight().norm() for model in (ipm, kpm))
    assert first > 2 * last  # the largest directions, and the smallest
    other = lora_layers(runs.started(tiny, "corda kpm on the task"))[path].delta_weight()
    assert not torch.allclose(other, lora_layers(kpm)[path].delta_weight(), atol=1e-4)  # from other data
    as_if = tiny._replace(knowledge=tiny.data["train"])
    same = lora_layers(runs.started(as_if, "corda kpm"))[path].delta_weight()
    torch.testing.assert_close(same, other)


def test_setting_up_is_counted(tiny):
    plain, statistic = (runs.setup(tiny, name, repeats=1) for name in ("default", "lora_ga"))
    weights = sum(layer.base.weight.nbytes for layer in lora_layers(runs.started(tiny, "default")).values())
    adapter = sum(layer.A.nbytes + layer.B.nbytes for layer in lora_layers(runs.started(tiny, "default")).values())
    assert plain["statistic_bytes"] == 0
    assert statistic["statistic_bytes"] >= weights  # a gradient for each
    assert plain["setup_peak_bytes"] >= adapter
    assert statistic["setup_peak_bytes"] >= statistic["statistic_bytes"] + adapter
    assert statistic["setup_seconds"] > plain["setup_seconds"] > 0


def test_a_run_is_train_s_and_looking_changes_nothing(tiny):
    run = runs.trained(tiny, "gaussian", 3e-3, seed=2, steps=11)
    torch.manual_seed(2)
    alone = inject(llama(), "all-linear", runs.RANK, runs.ALPHA, init="gaussian")
    history = train(alone, tiny.data["train"], steps=11, batch_size=runs.BATCH, lr=3e-3, seed=2, progress=False)
    assert run.history.loss == pytest.approx(history.loss, rel=1e-5)
    assert list(run.watched) == [0, 5, 10, 11]
    assert run.watched[11] == pytest.approx(mean_loss(alone, tiny.data["validation"]), rel=1e-5)
    assert run.seconds > 0


def test_a_run_that_goes_astray_counts_as_infinite(tiny, monkeypatch):
    def astray(*_, on_step, **__):
        raise Diverged("loss is nan at step 3: lower the learning rate")

    monkeypatch.setattr(runs, "train", astray)
    run = runs.trained(tiny, "default", 1.0, seed=0, steps=5)
    assert run.model is None
    assert run.validation_loss == float("inf")
    with pytest.raises(ValueError, match="default at rate 1: the loss ran away"):
        runs.measure(tiny, "default", 1.0, steps=5)


LOSSES = {(0.003, 0): 0.5, (0.01, 0): 0.30, (0.03, 0): 0.70, (0.01, 1): 0.60, (0.003, 1): 0.1}


def test_contested_rates_are_decided_by_the_mean_of_the_seeds(monkeypatch):
    made = []

    def trained(world, name, rate, seed, steps, quantize):
        made.append((rate, seed))
        return SimpleNamespace(validation_loss=LOSSES[round(rate, 6), seed])

    monkeypatch.setattr(sweep_inits, "trained", trained)
    row = {"test_loss": 1.0, "watched": {"0": 2.0}}
    monkeypatch.setattr(sweep_inits, "results", lambda world, run: row | {"validation_loss": run.validation_loss})
    monkeypatch.setattr(sweep_inits, "initial", lambda *_: {})
    monkeypatch.setattr(sweep_inits, "setup", lambda *_: {})
    cell = sweep_inits.measure_init(None, "default", 60, None, seeds=2)
    assert cell["lr"] == 0.003  # 0.30 against 0.45 on the mean, though 0.01 was best with the first seed
    assert cell["validation"] == {"0.003": [0.5, 0.1], "0.01": [0.3, 0.6], "0.03": [0.7]}
    assert cell["validation_loss"] == [0.5, 0.1]
    assert cell["watched"] == {"0": [2.0, 2.0]}
    assert len(made) == len(set(made)) == 5


def cell(last: float, **more) -> dict:
    watched = {"0": [7.0, 7.0], "5": [1.0, 0.4], "10": [last, 0.3]}
    found = {"watched": watched, "seconds_per_step": [0.2, 0.1], "setup_seconds": 3.0, "test_loss": [last, 0.3]}
    usual = {"lr": 0.01, "exact": [0.1, 0.2], "stories_loss": [2.0, 3.0], "reading": [0.0, 0.5], "setup_peak_bytes": 8}
    return found | usual | more


def test_targets_and_when_they_are_reached():
    part = {"default": cell(0.5), "pissa": cell(0.9, test_loss=[0.2, 0.1])}
    goals = reading.targets(part)
    assert goals == {reading.DEFAULT_S_LAST: 0.4, "0.5": 0.5}
    assert reading.steps_to(part["default"], 0.5) == [10, 5]
    assert reading.steps_to(part["pissa"], 0.5) == [None, 5]
    assert reading.seconds_to(part["default"], 0.5) == pytest.approx([3 + 10 * 0.2, 3 + 5 * 0.1])
    assert reading.seconds_to(part["pissa"], 0.5) == [None, pytest.approx(3.5)]
    rows = reading.table(part)
    assert [row["init"] for row in rows] == ["pissa", "default"]
    assert [row["beyond"] for row in rows] == [-1, 0]
    assert rows[0]["steps"] is None  # one seed of two is not most of them
    assert (reading.apart([1, 2], [0.5, 0.9]), reading.apart([1, 2], [2, 3])) == (1, 0)


def test_most_seeds_decide_when_a_target_was_reached():
    assert reading._median([None, 5, 10]) == 10
    assert reading._median([None, None, 5]) is None


def test_the_record_holds_every_seed_and_the_rate_that_its_rule_chooses():
    record = inits.record()
    seeds = record["settings"]["seeds"]
    assert set(sweep_inits.PLAIN) <= set(record["plain"])
    for part in ("plain", "nf4", "longer"):
        for name, row in record[part].items():
            assert len(row["test_loss"]) == seeds >= 3
            assert all(len(losses) == seeds for losses in row["watched"].values())
            assert int(list(row["watched"])[-1]) == row["steps"]
            contested = {rate: losses for rate, losses in row["validation"].items() if len(losses) == seeds}
            means = {float(rate): statistics.fmean(losses) for rate, losses in contested.items()}
            assert row["lr"] == pytest.approx(min(means, key=means.get), rel=1e-3), (part, name)
            assert not min(map(float, row["validation"])) == row["lr"] == max(map(float, row["validation"]))


def test_a_point_takes_the_recorded_rate_of_its_base_and_length_and_refuses_what_it_cannot_know(monkeypatch):
    asked = []
    content = {"settings": {"longer_steps": 120}, "plain": {"pissa": {"lr": 0.003}}, "nf4": {"loftq 5": {"lr": 0.02}}}
    monkeypatch.setattr(inits, "record", lambda: content | {"longer": {"pissa": {"lr": 0.001}}})
    monkeypatch.setattr(inits, "world", lambda: "world")
    monkeypatch.setattr(inits, "measure", lambda *args: asked.append(args))
    inits.point("pissa", 1, steps=20)
    inits.point("pissa", steps=120)
    inits.point("loftq 5", quantize="nf4")
    inits.point("loftq 5", lr=0.5, quantize="int8")
    assert asked == [
        ("world", "pissa", 0.003, 1, 20, None),
        ("world", "pissa", 0.001, 0, 120, None),
        ("world", "loftq 5", 0.02, 0, 60, "nf4"),
        ("world", "loftq 5", 0.5, 0, 60, "int8"),
    ]
    asked.clear()
    with pytest.raises(ValueError, match="no rate is recorded for 'loftq 5' after 60 steps: give lr, or one of pissa"):
        inits.point("loftq 5")
    with pytest.raises(ValueError, match="for 'loftq 5' after 60 steps with int8 codes: give lr"):
        inits.point("loftq 5", quantize="int8")
    assert not asked
