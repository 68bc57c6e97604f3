"""The checks of notebook 01 accept every right answer and name the mistake of every wrong one."""

import pytest
from answers import assert_accepted, assert_rejected, blank, each, sentence, wrong
from answers.nb01_matrix import LOW_RANK, TRUNCATE
from answers.nb01_subspace import SUBSPACE
from answers.nb01_values import EFFECTIVE, ENERGY, ERROR

ANSWERS = LOW_RANK + TRUNCATE + ERROR + EFFECTIVE + ENERGY + SUBSPACE


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


@pytest.mark.parametrize("exercise", ["1.1", "1.2", "1.3", "1.4", "1.5", "1.6"])
def test_blank(exercise):
    said = sentence(wrong(exercise, "blank", "blank", blank(exercise)))
    assert said == f"{exercise} is still blank: replace the raise line with your code"


def test_numbers_of_the_case_stand_in_the_sentence():
    doubled = next(answer for answer in ERROR if answer.label == "no root")
    said = sentence(doubled)
    got, want = (
        float(word) for word in said.split("you have ")[1].rstrip(")").removesuffix(" is right").split(", and ")
    )
    assert got == pytest.approx(want**2, rel=1e-3)
