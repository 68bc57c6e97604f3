"""The harness: a check ends in one line or in one sentence, whatever the learner's code does, and leaves no trace."""

import io
import random
import subprocess
import sys
import warnings
from types import ModuleType

import nbformat
import numpy
import pytest
import torch
from answers import ANSWERS_BY_EXERCISE, blank
from notebook_rules import HEADING

from lora_lab.checks import Wrong, exercise, exercises, harness
from lora_lab.layer import LoRALinear
from lora_lab.paths import NOTEBOOKS
from lora_lab.spectrum import truncate as right_truncate

TRUNCATE = exercises()["1.2"]

pytestmark = pytest.mark.usefixtures("away")


def said_about(function, **settings):
    with pytest.raises(AssertionError) as caught:
        TRUNCATE(function, **settings)
    return str(caught.value)


def raising(error):
    def truncate(W, rank):
        raise error

    return truncate


class TestNoTrace:
    def test_the_error_is_one_clean_sentence(self):
        with pytest.raises(AssertionError) as caught:
            TRUNCATE(raising(ValueError("no")))
        error = caught.value
        assert type(error) is AssertionError  # its bare name is what graders and `lora-lab check` show
        assert error.__suppress_context__
        assert error.__cause__ is None
        shown = error._render_traceback_()  # what IPython prints
        assert " ".join(shown) == f"\x1b[31m✗ 1.2\x1b[0m  {error}"
        assert max(map(len, shown)) < 120
        assert str(error).count('(stuck? course.hint("1.2"))') == 1
        assert str(error).endswith('(stuck? course.hint("1.2"))')

    @pytest.mark.parametrize("piece", ["A 6 × 6", "b of length 5", "[2, 5]", "rank = 3", "`U @ V`", "(rank 4 × 5 × 6)"])
    def test_no_line_ends_inside_a_shape_or_an_index(self, piece):
        """Wherever the line happens to end."""
        for before in range(60, 110):
            sentence = "x" * before + f" {piece} and more words"
            lines = harness.wrapped(sentence)
            assert " ".join(lines) == sentence
            assert any(piece.strip("()").removeprefix("rank 4 × ") in line for line in lines)
            assert max(map(len, lines)) <= max(100, before)

    def test_warnings_and_prints_of_the_answer(self, capsys):
        def truncate(W, rank):
            warnings.warn("mind the gap", stacklevel=1)
            warnings.simplefilter("always")
            print("rank", rank)
            return right_truncate(W, rank)

        filters = list(warnings.filters)
        TRUNCATE(truncate)
        out, err = capsys.readouterr()
        assert err == ""
        assert out.count("rank ") >= 6
        assert out.splitlines()[-1] == "✓ 1.2  the best rank-r approximation on 7 random shapes (2 points)"
        assert warnings.filters == filters

    @pytest.mark.parametrize("right", [True, False])
    def test_global_state(self, right):
        def truncate(W, rank):
            torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            return right_truncate(W, rank) if right else W

        def state():
            return (
                torch.get_rng_state().tolist(),
                random.getstate(),
                str(numpy.random.get_state()),
                (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            )

        before = state()
        try:
            TRUNCATE(truncate)
        except AssertionError:
            assert not right
        assert state() == before

    def test_the_state_around_does_not_matter(self, capsys):
        """A notebook in float64, without gradients, in inference mode, on another device: the check is the same."""
        layer = exercises()["3.4"]
        torch.set_default_dtype(torch.float64)
        try:
            with torch.inference_mode():
                layer(LoRALinear)
            with torch.no_grad():
                layer(LoRALinear)
            torch.set_default_device("meta")  # any device but the CPU
            layer(LoRALinear)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        assert capsys.readouterr().out.count("✓ 3.4") == 3

    def test_a_console_without_the_tick(self, monkeypatch):
        ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", ascii_only)
        TRUNCATE(right_truncate)
        ascii_only.flush()
        assert ascii_only.buffer.getvalue().startswith(b"? 1.2  the best rank-r")


class TestProgress:
    def recorder(self, monkeypatch, record):
        module = ModuleType("lora_lab.course.progress")
        module.record_pass = record
        monkeypatch.setitem(sys.modules, "lora_lab.course.progress", module)

    def test_a_pass_is_recorded_and_a_failure_is_not(self, monkeypatch):
        passed = []
        self.recorder(monkeypatch, lambda exercise, points: passed.append((exercise, points)))
        TRUNCATE(right_truncate)
        said_about(blank("1.2"))
        assert passed == [("1.2", 2)]

    def test_a_full_disk_does_not_fail_a_right_answer(self, monkeypatch, capsys):
        def full(exercise, points):
            raise OSError(28, "No space left on device")

        self.recorder(monkeypatch, full)
        assert TRUNCATE(right_truncate) is None
        assert capsys.readouterr().err == ""

    def test_without_the_course(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "lora_lab.course.progress", None)
        assert TRUNCATE(right_truncate) is None


class TestSeeds:
    def test_a_remembered_answer_fails_at_another_seed(self):
        """Answers looked up by their place in the visible run pass it, and fail the grader's."""
        seen = []

        def recording(W, rank):
            seen.append(right_truncate(W, rank))
            return seen[-1]

        TRUNCATE(recording)

        def replay():
            answers = iter(seen)
            return lambda W, rank: next(answers)

        assert TRUNCATE(replay()) is None
        for seed in (1, 2024):
            with pytest.raises(AssertionError):
                TRUNCATE(replay(), seed=seed)

    @pytest.mark.parametrize("id", exercises())
    def test_every_right_answer_passes_every_seed(self, id):
        """No check is flaky: the first right answer, the library's own where there is one, at 50 seeds."""
        answer = next(answer for answer in ANSWERS_BY_EXERCISE[id] if not answer.says)
        for seed in range(100, 150):
            exercises()[id](answer.function, seed=seed)


class TestRegistry:
    def test_the_notebooks_announce_all_exercises_in_order(self):
        cells = [cell for path in sorted(NOTEBOOKS.glob("*.ipynb")) for cell in nbformat.read(path, as_version=4).cells]
        headings = [found for cell in cells for found in HEADING.findall(cell.source)]
        announced = [(id, int(points), int(minutes)) for id, points, minutes in headings]
        assert [(id, each.points, each.minutes) for id, each in exercises().items()] == announced

    @pytest.mark.parametrize("id", exercises())
    def test_an_exercise_is_complete(self, id):
        each = exercises()[id]
        assert each.id == id
        assert each.lesson == f"0{id[0]}"
        module = sys.modules[f"lora_lab.checks.nb{each.lesson}"]
        assert getattr(module, each.name) is each
        assert each.run.__func__ is type(each).__call__
        assert len(each.hints) == 3
        for hint in each.hints:
            assert 40 < len(hint) < 350
            assert hint.endswith((".", "?"))
            assert "return " not in hint.split(";")[0]  # never a line of code to copy

    @pytest.mark.parametrize("id", exercises())
    def test_enough_answers_are_tried(self, id):
        answers = ANSWERS_BY_EXERCISE[id]
        mistakes = [answer for answer in answers if answer.says]
        assert len(answers) - len(mistakes) >= 3
        assert len(mistakes) >= (4 if exercises()[id].points == 1 else 8)
        assert len({answer.label for answer in answers}) == len(answers)

    def test_the_checks_need_the_core_only(self):
        """No transformers, PEFT, notebook packages or SciPy are imported, nor SymPy (ten seconds on a slow machine)."""
        code = (
            "import sys, lora_lab.checks as c; from lora_lab.spectrum import truncate; "
            "c.exercises()['1.2'](truncate); "
            "print({m.split('.')[0] for m in sys.modules} & {'transformers', 'peft', 'scipy', 'sympy'})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "set()"
        assert done.stderr == ""

    def test_a_check_of_ones_own(self, capsys):
        @exercise("9.1", takes=("x",), points=1, minutes=1, hints=("a", "b", "c"))
        def double(answer, cases):
            x = cases.integer(1, 9)
            if answer(x) != 2 * x:
                raise Wrong(f"double({x}) is {2 * x}")

        double(lambda x: x + x)
        assert capsys.readouterr().out == "✓ 9.1  double (1 point)\n"
        with pytest.raises(AssertionError, match=r"double\(\d\) is"):
            double.run(lambda x: x, seed=3)
        assert harness.SECONDS == 10
