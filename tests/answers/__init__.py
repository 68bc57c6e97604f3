"""Answers to the exercises, right and wrong, and what happens when they are checked.

An answer is right (differently written from the course's solution), or wrong with a part of the sentence it must get.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lora_lab.checks import exercises

SEEDS = (0, 1, 12)


@dataclass(frozen=True)
class Answer:
    """`function` for exercise `exercise`. `says` is part of the sentence that rejects it; empty if it is right."""

    exercise: str
    label: str
    function: Any
    says: str = ""

    def __str__(self) -> str:
        return f"{self.exercise}-{self.label.replace(' ', '_')}"


def right(exercise: str, label: str, function: Any) -> Answer:
    """An answer that must pass."""
    return Answer(exercise, label, function)


def wrong(exercise: str, label: str, says: str, function: Any) -> Answer:
    """An answer that must be rejected with `says` in the sentence."""
    assert says
    return Answer(exercise, label, function, says)


def blank(exercise: str) -> Callable:
    """The stub of the notebook: takes anything, and raises as the blanks do."""

    def stub(*args: Any) -> None:
        raise NotImplementedError(f"exercise {exercise}: your code here")

    return stub


def each(answers: list[Answer]) -> pytest.MarkDecorator:
    """Parametrise a test with answers, under readable ids."""
    return pytest.mark.parametrize("answer", answers, ids=str)


def assert_accepted(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    """The check prints one line about the exercise and nothing on stderr, and returns None, at every seed."""
    exercise = exercises()[answer.exercise]
    for seed in SEEDS:
        assert exercise(answer.function, seed=seed) is None
        out, err = capsys.readouterr()
        points = f"({exercise.points} point{'s' if exercise.points > 1 else ''})"
        assert out.startswith(f"✓ {answer.exercise}  ")
        assert out.endswith(f"{points}\n")
        assert out.count("\n") == 1
        assert err == ""


def sentence(answer: Answer, seed: int = 0) -> str:
    """The sentence with which a wrong answer is rejected, without the pointer to the hint at its end."""
    with pytest.raises(AssertionError) as caught:
        exercises()[answer.exercise](answer.function, seed=seed)
    assert type(caught.value) is AssertionError
    assert caught.value.__suppress_context__
    said, pointer, end = str(caught.value).partition(f' (stuck? course.hint("{answer.exercise}"))')
    assert pointer
    assert end == ""
    assert "stuck?" not in said
    return said


def assert_rejected(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    """The check raises one sentence, the one that names this mistake, at every seed, and prints nothing."""
    for seed in SEEDS:
        said = sentence(answer, seed)
        assert answer.says in said
        assert "\n" not in said
    assert capsys.readouterr() == ("", "")


def _all() -> dict[str, list[Answer]]:
    """Every answer of every module here, by exercise."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("nb*.py"))
    found: dict[str, list[Answer]] = {}
    for name in modules:
        for value in vars(import_module(f"{__name__}.{name}")).values():
            for answer in value if isinstance(value, list) else []:
                found.setdefault(answer.exercise, []).append(answer)
    return found


ANSWERS_BY_EXERCISE = _all()
