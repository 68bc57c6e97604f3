"""Every check accepts every right answer, and names the mistake of every wrong one. The answers are in `answers`."""

import pytest
from answers import ANSWERS_BY_EXERCISE, assert_accepted, assert_rejected, blank, each, sentence, wrong

from lora_lab.checks import exercises

ANSWERS = [answer for answers in ANSWERS_BY_EXERCISE.values() for answer in answers]
BLANK_CLASS = {"3.4"}  # a function in place of the class is noticed before it is called

pytestmark = pytest.mark.usefixtures("away")


@each([answer for answer in ANSWERS if not answer.says])
def test_accepts(answer, capsys):
    assert_accepted(answer, capsys)


@each([answer for answer in ANSWERS if answer.says])
def test_rejects(answer, capsys):
    assert_rejected(answer, capsys)


@pytest.mark.parametrize("exercise", [id for id in exercises() if id not in BLANK_CLASS])
def test_blank(exercise):
    said = sentence(wrong(exercise, "blank", "blank", blank(exercise)))
    assert f"{exercise} is still blank: replace the raise line" in said


@pytest.mark.parametrize("exercise", sorted(BLANK_CLASS))
def test_function_for_a_class(exercise):
    assert "should be a class" in sentence(wrong(exercise, "blank", "blank", blank(exercise)))
