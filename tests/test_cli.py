"""The commands as a person meets them: what they print, how they exit, and that JupyterLab comes up and really goes."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from lesson_fixtures import RIGHT, pretend_course, solve

from lora_lab import cli
from lora_lab.course.files import CourseError
from lora_lab.course.run_checks import find_notebook, run
from lora_lab.course.workspace import lay_out

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A course of two small lessons in place of the real one."""
    return pretend_course(tmp_path, monkeypatch)


@pytest.fixture
def desk(root):
    """The default workspace, laid out."""
    lay_out(root / "workspace")
    return root / "workspace"


# --- words and exit codes -------------------------------------------------------------------------------------


def test_without_a_command_the_help_is_shown(capsys):
    assert cli.main([]) == 2
    shown = capsys.readouterr().err
    for command in ("start", "check", "hint", "solution", "progress", "doctor", "release"):
        assert f"    {command} " in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["start", "--port", "80000"],
        ["start", "--port", "80"],
        ["start", "--port", "x"],
        ["check"],
        ["hint", "1.1", "x"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments, root):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert not (root / "workspace").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "1"], "no workspace yet"),
        (["check", "nope"], "There is no notebook nope"),
        (["solution", "9.9", "--yes"], "There is no exercise 9.9"),
        (["hint", "9.9"], "There is no exercise 9.9"),
        (["progress", "--workspace", "nowhere"], "There is no folder"),
        (["release", "."], ""),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exits_with_2(arguments, sentence, root, capsys):
    (Path.cwd() / "a file").touch()  # `release` wants an empty folder
    assert cli.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("lora-lab: ")
    assert sentence in told.err
    assert "Traceback" not in told.err


def test_progress_with_and_without_a_workspace(root, capsys):
    assert cli.main(["progress"]) == 0
    assert "lora-lab start makes one" in capsys.readouterr().out
    lay_out(root / "workspace")
    assert cli.main(["progress"]) == 0
    told = capsys.readouterr().out
    assert "0 of 4 exercises passed" in told
    assert "lora-lab start makes one" not in told


def test_the_solution_is_asked_for_first(root, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    assert cli.main(["solution", "1.1"]) == 0
    assert "return 2 * x" not in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    assert cli.main(["solution", "1.1"]) == 0
    assert "return 2 * x" in capsys.readouterr().out
    assert cli.main(["solution", "1.1", "--yes"]) == 0
    assert "return 2 * x" in capsys.readouterr().out


def test_nobody_there_to_answer(root, capsys, monkeypatch):
    def nobody(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    assert cli.main(["solution", "1.1"]) == 2
    assert "--yes" in capsys.readouterr().err


def test_hints_are_remembered_in_the_default_workspace(desk, capsys):
    from lora_lab.checks import exercises

    known = next(iter(exercises().values()))
    for seen in (1, 2, 3, 3):
        assert cli.main(["hint", known.id]) == 0
        told = capsys.readouterr().out
        assert [hint in told for hint in known.hints] == [number <= seen for number in (1, 2, 3)]


def test_it_is_a_program(root):
    done = subprocess.run(
        [sys.executable, "-m", "lora_lab.cli", "progress"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Doubling" in done.stdout


# --- check ----------------------------------------------------------------------------------------------------


def test_a_notebook_is_found_by_number_name_or_path(desk, root):
    assert find_notebook("1", desk) == desk / "01_doubling.ipynb"
    assert find_notebook("02", desk) == desk / "02_doubling.ipynb"
    assert find_notebook("02_doubling", desk) == desk / "02_doubling.ipynb"
    path = root / "notebooks" / "01_doubling.ipynb"
    assert find_notebook(str(path), None) == path
    with pytest.raises(CourseError, match=r"1, 2"):
        find_notebook("7", desk)


def test_right_answers_pass(desk, capsys):
    path = desk / "01_doubling.ipynb"
    solve(path, *RIGHT)
    before = path.read_bytes()
    assert cli.main(["check", "1"]) == 0
    assert "3 of 3 points" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert not psutil.Process().children(recursive=True), "the kernel is still there"


def test_wrong_blank_and_tampered(desk, capsys):
    """A wrong answer is told its sentence, a blank that it is one, and an emptied check is run all the same."""
    path = desk / "01_doubling.ipynb"
    solve(path, "def double(x):\n    return 3 * x")
    path.write_text(path.read_text().replace("check.double(double)", "pass"))
    assert cli.main(["check", str(path)]) == 1
    told = capsys.readouterr().out
    assert "✗ 1.1   0 of 1  double(3) should be 6" in told
    assert "✗ 1.2   0 of 2  not written yet" in told


def test_a_loop_is_interrupted_and_the_rest_judged(desk):
    path = desk / "01_doubling.ipynb"
    solve(path, "def double(x):\n    while True:\n        print(x)", RIGHT[1])
    report = run(path, cell_seconds=2)
    assert [verdict.passed for verdict in report.verdicts] == [False, True]
    assert "had not ended after 2 s" in report.verdicts[0].message


@pytest.mark.slow
def test_a_loop_that_refuses_to_end_ends_the_run(desk):
    path = desk / "01_doubling.ipynb"
    swallow = "try:\n            time.sleep(1)\n        except BaseException:\n            pass"
    stubborn = f"import time\ndef double(x):\n    while True:\n        {swallow}"
    solve(path, stubborn, RIGHT[1])
    report = run(path, cell_seconds=2)
    assert [verdict.message for verdict in report.verdicts][1:] == ["not reached"]
    assert "could not be stopped" in str(report)
    assert not psutil.Process().children(recursive=True), "the kernel is still there"


def test_a_kernel_that_dies_ends_the_run(desk):
    path = desk / "01_doubling.ipynb"
    solve(path, "import os\ndef double(x):\n    os._exit(1)", RIGHT[1])
    report = run(path, cell_seconds=30)
    assert [verdict.message for verdict in report.verdicts] == ["the kernel died in this cell", "not reached"]


def test_a_lost_check_cell_is_named_and_other_errors_are_told(desk):
    path = desk / "01_doubling.ipynb"
    notebook = json.loads(path.read_text())
    del notebook["cells"][4]
    notebook["cells"][-1]["source"] = "1 / 0"
    path.write_text(json.dumps(notebook))
    report = run(path, cell_seconds=30)
    assert "no longer in this notebook" in report.verdicts[0].message
    assert "ZeroDivisionError" in str(report)


def test_the_solved_notebooks_pass_their_own_checks(root):
    assert run(root / "notebooks" / "01_doubling.ipynb", cell_seconds=30).passed
