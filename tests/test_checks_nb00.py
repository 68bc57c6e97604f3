"""The checks of notebook 00 accept every right answer and name the mistake of every wrong one."""

import pytest
from answers import assert_accepted, assert_rejected, blank, each, sentence, wrong
from answers.nb00 import EXACT_MATCH, SHARE

ANSWERS = EXACT_MATCH + SHARE


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


@pytest.mark.parametrize("exercise", ["0.1", "0.2"])
def test_blank(exercise):
    said = sentence(wrong(exercise, "blank", "blank", blank(exercise)))
    assert said == f"{exercise} is still blank: replace the raise line with your code"
