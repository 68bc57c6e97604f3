"""Every lesson ends in a quiz with one right answer to each question, and what the answers say can be computed."""

from importlib import import_module

import pytest
import torch

from lora_lab.course.notebooks import lessons
from lora_lab.layer import LoRALinear
from lora_lab.spectrum import energy_rank, numerical_rank, random_low_rank, singular_values

NUMBERS = [f"{lesson.number:02d}" for lesson in lessons()]


def asked(number: str) -> list[tuple[str, list[tuple[str, bool, str]]]]:
    return import_module(f"lora_lab.quizzes.nb{number}").QUESTIONS


@pytest.mark.parametrize("number", NUMBERS)
def test_every_lesson_has_a_quiz(number):
    assert len(asked(number)) >= 2
    (lesson,) = (each for each in lessons() if each.number == int(number))
    shown = "\n".join(cell.source for cell in lesson.read().cells if cell.cell_type == "code")
    assert f'questions("{number}")' in shown


@pytest.mark.parametrize("number", NUMBERS)
def test_one_answer_is_right_and_every_answer_is_explained(number):
    for question, options in asked(number):
        assert question.strip()
        assert len(options) >= 2
        assert [right for _, right, _ in options].count(True) == 1, question
        assert len({text for text, _, _ in options}) == len(options)
        for text, _, why in options:
            assert text.strip(), question
            assert why.strip().endswith((".", ")")), text


def right_answer(number: str, part: str) -> str:
    """The right answer to the one question that contains `part`."""
    (options,) = (options for question, options in asked(number) if part in question)
    return next(text for text, right, _ in options if right)


@pytest.mark.parametrize("seed", range(3))
def test_noise_has_full_numerical_rank(seed):
    """Rank 8 with entries of 1e-3, noise of 1e-4: numerical rank 300, a threshold near 1e-5, energy rank at most 8."""
    generator = torch.Generator().manual_seed(seed)
    noise = 1e-4 * torch.randn(500, 300, generator=generator)
    matrix = 1e-3 * random_low_rank(500, 300, 8, generator) + noise
    answer = right_answer("01", "entries of about 1e-3 and noise of about 1e-4")
    assert numerical_rank(matrix) == int(torch.linalg.matrix_rank(matrix)) == int(answer)
    s = singular_values(matrix)
    assert energy_rank(s, 0.9) <= 8
    assert 500 * torch.finfo(torch.float32).eps * float(s[0]) == pytest.approx(1e-5, rel=0.5)


def steps_that_move(zero: str) -> dict[str, list[bool]]:
    """For each factor, whether it moved in the first and in the second step, if the factors in `zero` start at zero."""
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(7, 5), rank=2, alpha=6)
    factors, moved = {"A": layer.A, "B": layer.B}, {"A": [], "B": []}
    for name, factor in factors.items():
        torch.nn.init.zeros_(factor) if name in zero else torch.nn.init.normal_(factor)
    optimizer = torch.optim.SGD(factors.values(), lr=0.01)
    for _ in range(2):
        before = {name: factor.detach().clone() for name, factor in factors.items()}
        optimizer.zero_grad()
        layer(torch.randn(4, 7)).square().sum().backward()
        optimizer.step()
        for name, factor in factors.items():
            moved[name].append(not torch.equal(before[name], factor))
    return moved


def test_which_factor_moves_when():
    assert right_answer("03", "A = 0 and B = 0") == "Nothing ever changes."
    assert steps_that_move("AB") == {"A": [False, False], "B": [False, False]}
    assert steps_that_move("A") == {"A": [True, True], "B": [False, True]}
    assert steps_that_move("B") == {"A": [False, True], "B": [True, True]}
