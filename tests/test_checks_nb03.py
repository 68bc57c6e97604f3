"""The checks of notebook 03 accept every right answer and name the mistake of every wrong one."""

import re

import pytest
import torch
from answers import assert_accepted, assert_rejected, blank, each, sentence, wrong
from answers.nb03_init import INIT
from answers.nb03_layer import LAYER
from answers.nb03_maths import FORWARD, GRADIENTS
from answers.nb03_model import ADAPT
from answers.nb03_names import MATCHES
from answers.nb03_save import MERGE, STATE
from answers.nb03_start import START

from lora_lab.checks import exercises
from lora_lab.checks.harness import Cases
from lora_lab.checks.nb03_toy import Toy

ANSWERS = FORWARD + INIT + GRADIENTS + LAYER + START + MATCHES + ADAPT + MERGE + STATE


@pytest.fixture(autouse=True)
def no_workspace(tmp_path, monkeypatch):
    """Passing a check here must not count as a learner's progress."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORA_LAB_WORKSPACE", raising=False)


@each([answer for answer in ANSWERS if not answer.says])
def test_accepts(answer, capsys):
    assert_accepted(answer, capsys)


@each([answer for answer in ANSWERS if answer.says])
def test_rejects(answer, capsys):
    assert_rejected(answer, capsys)


@pytest.mark.parametrize("exercise", [f"3.{number}" for number in range(1, 9)])
def test_blank(exercise):
    said = sentence(wrong(exercise, "blank", "blank", blank(exercise)))
    # A function in place of the class is noticed before it is called.
    expected = "should be a class" if exercise == "3.4" else f"{exercise} is still blank: replace the raise line"
    assert expected in said


def test_blank_class():
    class MyLoRALinear(torch.nn.Module):
        def __init__(self, base, rank, alpha):
            raise NotImplementedError("exercise 3.4: your code here")

    assert sentence(wrong("3.4", "blank", "blank", MyLoRALinear)).startswith("3.4 is still blank")


def test_an_exercise_that_uses_a_blank_one_names_it():
    def adapt(model, targets, rank, alpha):
        return blank("3.5")("name", targets)

    said = sentence(wrong("3.6", "uses 3.5", "blank", adapt))
    assert said == (
        "your adapt, or something it calls, is still blank (exercise 3.5): replace the raise line with your code"
    )


def test_columns_are_shown_on_a_shape_that_is_not_square():
    """5 × 5 everywhere would say nothing about rows and columns."""
    said = sentence(next(answer for answer in FORWARD if answer.label == "one column"))
    rows, columns = re.search(r"x (\d+) × (\d+)", said).groups()
    assert rows != columns
    assert "W @ x and B @ (A @ x)" in said


def test_no_hint_of_the_later_exercises_names_one_class():
    for exercise in ("3.6", "3.8"):
        hints = " ".join(exercises()[exercise].hints)
        assert "any module with an A and a B" in hints or "a module has an A and a B" in hints
        assert " LoRALinear" not in hints


def test_the_scale_of_the_case_stands_in_the_sentence():
    unscaled = next(answer for answer in GRADIENTS if answer.label == "no scale")
    said = sentence(unscaled)
    factor = said.split("except for a factor of ")[1].split(",")[0]
    assert f"scale = {factor}" in said


def test_the_toy_model_holds_the_names_that_careless_matching_confuses():
    names = Toy(Cases(0)).linears()
    for careless in (lambda n: n.endswith("q_proj"), lambda n: "q_proj" in n, lambda n: n.endswith("v_proj")):
        caught = {name for name in names if careless(name)}
        assert caught > {name for name in names if name.endswith((".q_proj", ".v_proj")) and careless(name)}
