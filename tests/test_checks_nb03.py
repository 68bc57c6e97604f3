"""What the checks of notebook 03 take for right, and cases of their own. The answers: `test_checks_answers`."""

import re

import pytest
import torch
from answers import blank, sentence, wrong
from answers.nb03_maths import FORWARD, GRADIENTS

from lora_lab.checks import exercises
from lora_lab.checks.harness import Cases
from lora_lab.checks.nb03_toy import Toy

pytestmark = pytest.mark.usefixtures("away")


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
