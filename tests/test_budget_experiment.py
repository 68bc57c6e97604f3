"""The experiment that holds predictions against a GPU, tried without one: on a CPU, and on the meta device."""

import json
import sys

import pytest
import torch

from lora_lab.budget import budget
from lora_lab.experiments import memory_budget
from lora_lab.experiments.memory_budget import GRID, NOT_ON_META, measure, tiny
from lora_lab.paths import MEASUREMENTS

RUNS = [(index, "cpu") for index in range(len(GRID))]
RUNS += [(index, "meta") for index, setting in enumerate(GRID) if NOT_ON_META.isdisjoint(setting)]


@pytest.mark.parametrize(("index", "device"), RUNS)
def test_every_setting_of_the_grid(index, device):
    found = measure(tiny(GRID[index]), device)
    # Where the foreach optimizer of a GPU is accounted for, a model this small is all optimizer.
    assert abs(found["error_percent"]) < 1
    assert found["measured"]["peak"] == max(found["measured"][phase] for phase in memory_budget.PHASES)


def test_the_file_says_what_made_it(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "memory.json"
    monkeypatch.setattr(sys, "argv", ["x", "--device", "meta", "--tiny", "--only", "0", "3", "--out", str(out)])
    memory_budget.main()
    content = json.loads(out.read_text())
    assert content["settings"]["device"] == "meta"
    assert content["settings"]["tiny"]
    assert "no GPU" in content["settings"]["measured"]
    assert content["hardware"]["gpu"] == "none"
    assert "--device meta --tiny" in content["command"]
    assert len(content["results"]) == 1  # autocast does not reach the meta device
    assert "lora" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_nothing_is_written(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        memory_budget.main()
    assert "no GPU here" in capsys.readouterr().err


def test_the_grid_is_wide_enough():
    assert len(GRID) >= 12
    assert {setting["model"] for setting in GRID} == {"Llama-3.2-1B", "Llama-3.2-3B", "Llama-3-8B"}
    assert {setting["method"] for setting in GRID} == {"full", "lora", "dora", "qlora"}


@pytest.mark.parametrize("path", sorted(MEASUREMENTS.glob("memory_*.json")), ids=lambda path: path.name)
def test_recorded_runs_agree_with_todays_predictions(path):
    content = json.loads(path.read_text())
    assert len(content["results"]) >= 12
    for found in content["results"]:
        device = content["settings"]["device"]
        memory = budget(**found["setting"], device="cuda" if device == "meta" else device).memory
        assert memory.peak == pytest.approx(found["measured"]["peak"], rel=0.05), found["title"]
