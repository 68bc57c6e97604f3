"""What the checks of notebook 04 take for right, and cases of their own. The answers: `test_checks_answers`."""

import pytest
import torch

from lora_lab import inject
from lora_lab.adapter import scale_of
from lora_lab.checks import exercises
from lora_lab.checks.harness import Cases
from lora_lab.checks.nb03_toy import Toy
from lora_lab.checks.nb04_diagnose import KINDS, MAKE, VARIANTS, reference
from lora_lab.checks.nb04_groups import lora_plus_groups
from lora_lab.checks.nb04_scale import effective_scale
from lora_lab.checks.nb04_step import right_growth
from lora_lab.quizzes.nb04 import QUESTIONS
from lora_lab.variants import parameter_groups

pytestmark = pytest.mark.usefixtures("away")


def test_the_librarys_scale_passes(capsys):
    effective_scale(lambda alpha, rank, rule: scale_of(rank, alpha, rule == "rslora"))
    assert capsys.readouterr().out.startswith("✓ 4.1")


def test_the_librarys_groups_have_the_rates_of_the_exercise():
    """The toy's layers are of another class, so the library's function is asked about a model of its own."""
    model = inject(Toy(Cases(0)), ["q_proj", "v_proj"], rank=2, alpha=5)
    slow, fast = parameter_groups(model, lr=0.01, ratio=4)
    assert (slow["lr"], fast["lr"]) == (0.01, 0.04)
    assert lora_plus_groups.points == 2


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", KINDS)
def test_the_curves_are_what_they_are_called_at_every_seed(kind, seed):
    for variant in range(VARIANTS[kind]):
        assert reference(MAKE[kind](Cases(seed), variant)) == kind


def test_every_exercise_has_three_hints_of_growing_help():
    mine = [exercise for exercise in exercises().values() if exercise.lesson == "04"]
    assert len(mine) == 8
    for exercise in mine:
        assert len(set(exercise.hints)) == 3


def right_answer(part):
    """The right answer to the one question of the quiz that contains `part`."""
    (options,) = (options for question, options in QUESTIONS if part in question)
    return next(text for text, right, _ in options if right)


def test_the_quiz_says_what_arithmetic_says():
    assert scale_of(16, int(right_answer("Which alpha gives the same layer?"))) == scale_of(16, 16, rslora=True)
    assert right_growth(8, 32, "lora", "adam") == pytest.approx(1)
    assert right_answer("What happens to the gain") == "It stays about the same."


@pytest.mark.parametrize("factor", [2.0, 5.0])
def test_alpha_is_the_learning_rate_of_B_under_adam(factor):
    """What the lesson and its quiz say: alpha times k is the same run as the rate of B times k, and not as both."""

    def losses(alpha, lr, ratio):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(7, 9), torch.nn.Tanh(), torch.nn.Linear(9, 5)).double()
        inject(model, "all-linear", rank=3, alpha=alpha)
        x, y = torch.randn(16, 7, dtype=torch.float64), torch.randn(16, 5, dtype=torch.float64)
        optimizer = torch.optim.Adam(parameter_groups(model, lr, ratio), eps=1e-20)
        seen = []
        for _ in range(12):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen

    assert right_answer("With Adam you double alpha") == "a LoRA+ ratio twice as high."
    plain = losses(4 * factor, 0.01, 1.0)
    assert losses(4, 0.01, factor) == pytest.approx(plain, rel=1e-9)
    assert losses(4, 0.01 * factor, 1.0) != pytest.approx(plain, rel=1e-3)
