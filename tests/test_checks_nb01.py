"""What the checks of notebook 01 take for right, and cases of their own. The answers: `test_checks_answers`."""

import pytest
from answers import sentence
from answers.nb01_values import ERROR

pytestmark = pytest.mark.usefixtures("away")


def test_numbers_of_the_case_stand_in_the_sentence():
    doubled = next(answer for answer in ERROR if answer.label == "no root")
    said = sentence(doubled)
    got, want = (
        float(word) for word in said.split("you have ")[1].rstrip(")").removesuffix(" is right").split(", and ")
    )
    assert got == pytest.approx(want**2, rel=1e-3)
