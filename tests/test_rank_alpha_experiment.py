"""The sweeps over rank, alpha and rates, tried on a tiny model: how a grid grows, equal budgets, going on, and the rows
against plain torch."""

import json
import math
from dataclasses import replace

import pytest
import torch
from models_for_tests import TRAIN_EXAMPLES, llama
from transformers import AutoConfig, AutoModelForCausalLM

from lora_lab import count, inject, lora_layers, merge_, train
from lora_lab.experiments import rank_alpha
from lora_lab.experiments.rank_alpha import record as record_module
from lora_lab.experiments.rank_alpha import steps, sweeps
from lora_lab.experiments.rank_alpha.health import CASES, health
from lora_lab.experiments.rank_alpha.record import Record
from lora_lab.experiments.rank_alpha.runs import TARGETS, Setting, World, curve, measure, started, trained, update_norm
from lora_lab.paths import BASE
from lora_lab.train import mean_loss

TINY = Setting(rank=2, alpha=5, steps=6, batch_size=4, lr=0.02)
WORLD = World(llama(), {"train": TRAIN_EXAMPLES, "validation": TRAIN_EXAMPLES[:3], "test": TRAIN_EXAMPLES[3:6]})


def tiny(task: str) -> World:
    return WORLD


def recorder(path, settings=None) -> Record:
    return Record(path / "tiny.json", settings or {"of": "a test"}, tiny)


@pytest.mark.parametrize("choosing", [1, 2])
def test_a_cell_holds_its_grid_and_every_seed_and_nothing_is_run_twice(choosing, tmp_path):
    record = recorder(tmp_path)
    cell = record.tuned(TINY, seeds=2, choosing=choosing)
    rates = [float(rate) for rate in cell["validation"]]
    made = 2 * len(rates) if choosing == 2 else len(rates) + 1
    assert len(record.runs) == made
    assert min(rates) < cell["lr"] < max(rates)
    assert cell["validation"][f"{cell['lr']:g}"] == min(cell["validation"].values())
    of_cell = [row for row in record.runs if row["lr"] == cell["lr"]]
    losses = [row["validation_loss"] for row in of_cell]
    assert cell["validation"][f"{cell['lr']:g}"] == pytest.approx(sum(losses[:choosing]) / choosing, rel=1e-4)
    assert cell["test_loss"] == [row["test_loss"] for row in of_cell]
    assert of_cell[0]["test_loss"] != of_cell[1]["test_loss"]
    record.tuned(TINY, seeds=2, choosing=choosing)
    record.fixed(replace(TINY, lr=cell["lr"]), seeds=2)
    assert len(record.runs) == made
    assert [entry["tuned"] for entry in record.content["cells"]] == [True, False]


def test_an_interrupted_sweep_goes_on_and_ends_with_the_same_file(tmp_path, monkeypatch):
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    made = []

    def counted(where, setting):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(setting)
        return measure(where, setting)

    monkeypatch.setattr(record_module, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path / "cut").tuned(TINY, seeds=2)
    assert len(json.loads((tmp_path / "cut/tiny.json").read_text())["runs"]) == len(made) == 2
    monkeypatch.undo()
    again = recorder(tmp_path / "cut")
    again.tuned(TINY, seeds=2)
    whole = recorder(tmp_path / "whole")
    whole.tuned(TINY, seeds=2)
    assert [again.content[key] for key in ("runs", "cells")] == [whole.content[key] for key in ("runs", "cells")]
    assert recorder(tmp_path / "cut").content == again.content
    assert recorder(tmp_path / "cut", {"of": "another"}).runs == []


def test_a_run_that_another_experiment_has_made_is_taken_over(tmp_path, monkeypatch):
    first = recorder(tmp_path)
    first.fixed(TINY, seeds=1)
    monkeypatch.setattr(record_module, "measure", lambda where, setting: {**vars(setting), "made": "anew"})
    other = Record(tmp_path / "other.json", {}, tiny)
    assert other.get(TINY) == first.runs[0]
    assert json.loads(other.path.read_text())["runs"] == first.runs
    assert other.get(replace(TINY, seed=9))["made"] == "anew"
    first.path.write_text(first.path.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    assert Record(tmp_path / "third.json", {}, tiny).get(replace(TINY, seed=8))["made"] == "anew"


def test_a_row_is_what_training_by_hand_gives(monkeypatch):
    setting = replace(TINY, rule="alpha/sqrt(r)", lr_ratio=3.0, examples=7, watch=3, seed=4)
    row = measure(WORLD, setting)
    assert measure(WORLD, setting) == row
    torch.manual_seed(4)
    model = inject(llama(), "all-linear", 2, 5, rslora=True)
    history = train(model, TRAIN_EXAMPLES[:7], steps=6, lr=0.02, lr_ratio=3.0, batch_size=4, seed=4, progress=False)
    assert row["loss"] == pytest.approx(history.loss, rel=1e-4)
    assert row["test_loss"] == pytest.approx(mean_loss(model, TRAIN_EXAMPLES[3:6]), rel=1e-4)
    assert row["validation_loss"] == pytest.approx(mean_loss(model, TRAIN_EXAMPLES[:3]), rel=1e-4)
    assert row["watched"]["6"] == pytest.approx([sum(history.loss[3:]) / 3, row["validation_loss"]], rel=1e-4)
    merge_(model)
    deltas = [m.base.weight - llama().get_submodule(path).weight for path, m in lora_layers(model).items()]
    assert row["update_norm"] == pytest.approx(torch.cat([d.flatten() for d in deltas]).norm().item(), rel=1e-3)
    assert row["score"] is None
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(
    ("method", "trains"), [("full", "all"), ("full, linear layers", "linear"), ("lora", "factors")]
)
def test_what_trains(method, trains):
    setting = replace(TINY, method=method)
    model = trained(WORLD, setting).model
    before = dict(started(WORLD.base, setting).named_parameters())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    linear = {name for name in before if "_proj" in name and name.endswith("weight")}
    factors = {name for name in before if name.endswith((".A", ".B"))}
    assert changed == {"all": set(before), "linear": linear, "factors": factors}[trains]
    if method != "lora":
        norm = torch.cat([(dict(model.named_parameters())[n] - before[n]).flatten() for n in linear]).norm()
        assert update_norm(WORLD.base, model) == pytest.approx(norm.item(), rel=1e-5)
        assert (setting.rank, setting.rule) == (None, None)


def test_the_thread_count_and_the_random_state_are_left_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    measure(WORLD, TINY)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_that_goes_astray_is_recorded_and_not_chosen(tmp_path):
    row = measure(WORLD, replace(TINY, lr=1e20))
    assert "at step" in row["stopped"]
    assert row["test_loss"] is row["validation_loss"] is row["update_norm"] is None
    cell = recorder(tmp_path).tuned(TINY, seeds=1, near=1e20 / 2**9)
    assert None in cell["validation"].values() or max(map(float, cell["validation"])) < 1e20
    assert cell["test_loss"][0] is not None


@pytest.mark.parametrize("wrong", [{"method": "half"}, {"rule": "alpha"}, {"targets": "everything"}])
def test_unknown_words_are_refused(wrong):
    with pytest.raises(ValueError, match="one of"):
        Setting(**wrong)


def test_a_wrong_call_is_not_taken_for_a_run_astray():
    with pytest.raises(ValueError, match="steps"):
        measure(WORLD, replace(TINY, steps=0))


@pytest.mark.parametrize("length", [3, 20, 61])
def test_a_curve_is_made_of_means_over_all_steps(length):
    losses = [float(i) for i in range(length)]
    assert len(curve(losses)) == min(length, 20)
    assert curve(losses, points=1) == [pytest.approx(sum(losses) / length)]


def test_budgets_are_equal():
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE))
        trainable = {}
        for name, rank in sweeps.EQUAL_BUDGET.items():
            trainable[name] = count(inject(base, TARGETS[name], rank, 16)).trainable
            base = AutoModelForCausalLM.from_config(base.config)
    assert max(trainable.values()) / min(trainable.values()) < 1.025
    assert all(sweeps.SEEN % size == 0 for size in sweeps.BATCHES)


SWEEPS = {
    "ranks": lambda record: sweeps.ranks(record, 1, (1, 4), TINY),
    "batches": lambda record: sweeps.batches(record, 1),
    "lora_plus": lambda record: sweeps.lora_plus(record, 1),
    "targets": lambda record: sweeps.targets(record, 1),
    "overfitting": lambda record: sweeps.overfitting(record, 1),
    "against_full": lambda record: sweeps.against_full(record, 1),
    "longer": lambda record: sweeps.longer(record, 1),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_side_of_a_sweep_sees_as_many_examples_and_tunes_its_own_rate(name, tmp_path, monkeypatch):
    """In place of the runs: a loss that grows with the distance to a best rate, which differs from cell to cell."""

    def instead(where, setting):
        optimum = 1e-3 * (setting.rank or 3) * (setting.lr_ratio or 1) * setting.batch_size
        loss = abs(math.log(setting.lr / optimum))
        return vars(setting) | dict.fromkeys(record_module.OF_EVERY_SEED, loss) | {"stopped": ""}

    monkeypatch.setattr(record_module, "measure", instead)
    record = recorder(tmp_path)
    SWEEPS[name](record)
    cells = record.content["cells"]
    seen: dict[tuple, set] = {}
    for cell in cells:
        seen.setdefault((cell["task"], cell["examples"]), set()).add(cell["steps"] * cell["batch_size"])
        if cell["tuned"]:
            optimum = 1e-3 * (cell["rank"] or 3) * (cell["lr_ratio"] or 1) * cell["batch_size"]
            assert abs(math.log2(cell["lr"] / optimum)) <= 0.5 + 1e-9
    assert all(len(numbers) == 1 for numbers in seen.values())
    assert any(cell["tuned"] for cell in cells) or name == "overfitting"


@pytest.mark.parametrize("rule", ["alpha/r", "alpha/sqrt(r)"])
def test_one_step_is_what_the_formulas_say(rule):
    setting = Setting(rank=4, alpha=10, rule=rule, lr=2e-5, batch_size=10, dtype="float64")
    sgd = steps.measure_steps(WORLD, setting, "SGD", 1)
    adam = steps.measure_steps(WORLD, setting, "Adam", 1)
    model = started(WORLD.base, setting)
    dense = llama(torch.float64)
    of_tokens = []
    for example in TRAIN_EXAMPLES:  # one by one, without padding
        logits = dense(input_ids=torch.tensor([example["input_ids"]])).logits[0, 1:-1]  # two tokens have no label
        of_tokens.append(
            torch.nn.functional.cross_entropy(logits, torch.tensor(example["labels"][2:]), reduction="none")
        )
    torch.cat(of_tokens).mean().backward()
    s = 10 / 4 if rule == "alpha/r" else 10 / 2
    squares = dict.fromkeys(("W", "B", "sgd", "adam"), 0.0)
    drops = {"sgd": 0.0, "adam": 0.0}
    for path, layer in lora_layers(model).items():
        G, A = dense.get_submodule(path).weight.grad, layer.A.detach()
        squares["W"] += G.square().sum().item()
        squares["B"] += (s * G @ A.T).square().sum().item()
        squares["sgd"] += (2e-5 * s**2 * G @ A.T @ A).square().sum().item()
        squares["adam"] += (2e-5 * s * (G @ A.T).sign() @ A).square().sum().item()
        drops["sgd"] += 2e-5 * s**2 * (G @ A.T).square().sum().item()
        drops["adam"] += 2e-5 * s * (G @ A.T).abs().sum().item()
    assert sgd["gradient_W"] == pytest.approx(squares["W"] ** 0.5, rel=1e-4)
    assert sgd["gradient_B"] == pytest.approx(squares["B"] ** 0.5, rel=1e-4)
    assert sgd["expected_ratio"] == pytest.approx(sgd["gradient_B"] / sgd["gradient_W"], rel=0.3)
    for found, name in ((sgd, "sgd"), (adam, "adam")):
        assert found["after 1"]["update_norm"] == pytest.approx(squares[name] ** 0.5, rel=1e-2)
        assert found["after 1"]["loss_drop"] == pytest.approx(drops[name], rel=1e-2)


def test_steps_and_histories_go_on_where_they_stopped(tmp_path):
    record = recorder(tmp_path)
    steps.steps(record, seeds=1, all_ranks=(1, 4))
    assert len(record.runs) == 2 * 2 * (2 + 2)
    kept = json.dumps(record.runs)
    steps.steps(record, seeds=1, all_ranks=(1, 4))
    assert json.dumps(record.runs) == kept
    assert f"after {steps.LATER}" in record.runs[1]
    other = Record(tmp_path / "health.json", {}, tiny)
    cases = {"well": TINY, "too high": replace(TINY, lr=1e20)}
    health(other, cases)
    health(other, cases)
    well, high = other.runs
    assert len(well["loss"]) == len(well["grad_norm"]) == len(well["lr"]) == 6
    assert "at step" in high["stopped"]
    assert len(high["loss"]) < 6
    assert set(CASES) == {"healthy", "rate too high", "rate too low", "overfitting", "fp16 overflow", "bf16"}


def test_unknown_experiments_are_named():
    with pytest.raises(ValueError, match="unknown experiment 'x': one of ranks"):
        rank_alpha.path_of("x")


FILES = [name for name in rank_alpha.EXPERIMENTS if rank_alpha.path_of(name).exists()]


@pytest.mark.parametrize("name", FILES)
def test_recorded_files_keep_the_rules_of_the_experiment(name):
    content = rank_alpha.recorded(name)
    assert content["command"] == "python -m lora_lab.experiments.rank_alpha"
    assert {"date", "versions", "hardware", "settings", "cpu_seconds"} <= set(content)
    assert content["runs"]
    for cell in content["cells"]:
        assert len(cell["test_loss"]) == content["settings"]["seeds"]
        if cell["tuned"]:
            rates = {float(rate): loss for rate, loss in cell["validation"].items() if loss is not None}
            assert min(rates, key=rates.get) == pytest.approx(cell["lr"])
            tried = sorted(map(float, cell["validation"]))
            assert tried[0] < cell["lr"] * 0.99
            assert cell["lr"] * 1.01 < tried[-1]
