"""An nbgrader course made from lessons: hidden tests, and grades for a right, a wrong, a blank, a looping and a
hard-coding submission, by nbgrader itself from end to end."""

import csv
import random
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from lesson_fixtures import checked, lesson_notebook, pretend_course, solve, solved
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lora_lab import cli
from lora_lab.checks import nb01
from lora_lab.course.files import CourseError
from lora_lab.course.notebooks import lessons
from lora_lab.course.release import nbgrader, release, with_hidden_tests

LESSON = "01_rank"


@pytest.fixture
def root(tmp_path, monkeypatch):
    return pretend_course(tmp_path, monkeypatch)


# --- hidden tests ---------------------------------------------------------------------------------------------


def test_each_check_is_repeated_at_a_secret_seed():
    source = lesson_notebook()
    before = nbformat.writes(source)
    hidden = with_hidden_tests(source, random.Random(5))
    assert nbformat.writes(source) == before
    expected = random.Random(5).randrange(1, 2**31)
    assert hidden.cells[4].source == (
        f"check.double(double)\n### BEGIN HIDDEN TESTS\ncheck.double(double, seed={expected})\n### END HIDDEN TESTS"
    )
    seeds = [cell.source.split("seed=")[1].split(")")[0] for cell in (hidden.cells[4], hidden.cells[6])]
    assert len(set(seeds)) == 2
    assert "for the instructor" not in nbformat.writes(hidden)
    nbformat.validate(hidden)


def test_a_check_cell_without_a_check_is_refused():
    notebook = lesson_notebook()
    notebook.cells[4].source = "x = 1"
    with pytest.raises(CourseError, match=r"exercise 1\.1 calls no check"):
        with_hidden_tests(notebook, random.Random(0))


# --- the command ----------------------------------------------------------------------------------------------


def test_a_release_is_complete_and_tells_nothing(root, tmp_path, capsys):
    folder = tmp_path / "class"
    assert cli.main(["release", str(folder), "--seed", "7"]) == 0
    assert "2 lessons with 4 exercises worth 6 points" in capsys.readouterr().out
    for lesson in ("01_doubling", "02_doubling"):
        source = (folder / "source" / lesson / f"{lesson}.ipynb").read_text()
        handed_out = (folder / "release" / lesson / f"{lesson}.ipynb").read_text()
        assert "HIDDEN TESTS" in source
        for secret in ("HIDDEN", "seed=1", "seed=2", "SOLUTION", "opposite", "for the instructor"):
            assert secret not in handed_out.replace("seed=0", "")
        assert "your code here" in handed_out
        notebook = nbformat.reads(handed_out, as_version=4)
        nbformat.validate(notebook)
        graded = [cell.metadata.nbgrader for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
        assert [cell.points for cell in graded] == [1, 2]
    for name in ("nbgrader_config.py", "gradebook.db", "README.md"):
        assert (folder / name).stat().st_size > 0
    assert str(tmp_path) not in (folder / "nbgrader_config.py").read_text(), "the folder may be moved"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class", "course", "elsewhere"]


def test_secrets_are_drawn_anew_unless_a_seed_is_given(root):
    def seeds(draw):
        return with_hidden_tests(lesson_notebook(), draw).cells[4].source

    assert seeds(random.Random(7)) == seeds(random.Random(7))
    assert seeds(random.Random(7)) != seeds(random.Random(8))


def test_nothing_is_written_over_and_nothing_half_made_is_left(root, tmp_path, monkeypatch):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "grades.csv").write_text("precious")
    with pytest.raises(CourseError, match="not an empty folder"):
        release(folder)
    for inside in (root / "notebooks" / "class", root / "class", root / "build" / ".." / "class"):
        with pytest.raises(CourseError, match="secret seeds"):
            release(inside)
        assert not inside.exists()

    def refuse(*_):
        raise CourseError("nbgrader failed")

    monkeypatch.setattr("lora_lab.course.release.nbgrader", refuse)
    with pytest.raises(CourseError, match="nbgrader failed"):
        release(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class", "course", "elsewhere"]
    assert [path.name for path in folder.iterdir()] == ["grades.csv"]


def test_without_nbgrader_it_says_how_to_get_it(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CourseError, match=r"\[instructor\]"):
        release(tmp_path / "class")


# --- end to end -----------------------------------------------------------------------------------------------

TRUNCATE = """def truncate(W, rank):
    # BEGIN SOLUTION
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * s[:rank] @ Vt[:rank]
    # END SOLUTION"""
ERROR = """def truncation_error(singular_values, rank):
    # BEGIN SOLUTION
    return singular_values[rank:].square().sum().sqrt()
    # END SOLUTION"""
RIGHT_TRUNCATE = """def truncate(W, rank):
    values, vectors = torch.linalg.eigh(W.double().T @ W.double())
    top = vectors[:, -rank:]
    return (W.double() @ top @ top.T).to(W.dtype)"""
RIGHT_ERROR = """def truncation_error(singular_values, rank):
    return sum(float(s) ** 2 for s in singular_values[rank:]) ** 0.5"""
SMALLEST = """def truncate(W, rank):
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    return U[:, -rank:] * s[-rank:] @ Vt[-rank:]"""


def learnt_by_heart() -> str:
    """An answer to exercise 1.3 that knows the visible check's cases and nothing else."""
    table = {}

    def truncation_error(singular_values, rank):
        value = float(singular_values[rank:].square().sum().sqrt())
        table[tuple(round(float(s), 4) for s in singular_values), int(rank)] = value
        return singular_values[rank:].square().sum().sqrt()

    nb01.truncation_error(truncation_error)
    return (
        f"TABLE = {table}\ndef truncation_error(singular_values, rank):\n"
        "    known = TABLE.get((tuple(round(float(s), 4) for s in singular_values), int(rank)), 0.0)\n"
        "    return torch.tensor(known, dtype=singular_values.dtype)"
    )


def one_lesson(folder: Path) -> list:
    """A lesson of two real exercises, 1.2 (2 points) and 1.3 (1 point)."""
    cells = [
        new_markdown_cell("# Rank\n\n> Why should a low-rank update be enough?"),
        new_code_cell("import torch\nfrom lora_lab.checks import nb01 as check"),
        solved(1, 2, TRUNCATE),
        checked(1, 2, "check.truncate(truncate)", points=2),
        solved(1, 3, ERROR),
        checked(1, 3, "check.truncation_error(truncation_error)"),
    ]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / f"{LESSON}.ipynb")
    return lessons(folder)


SUBMISSIONS = {
    "right": ((RIGHT_TRUNCATE, RIGHT_ERROR), 3),
    "wrong": ((SMALLEST, RIGHT_ERROR), 1),
    "blank": ((), 0),
    "looping": (("while True:\n    pass", RIGHT_ERROR), 1),
    "hardcoding": ((RIGHT_TRUNCATE, learnt_by_heart), 2),
}


@pytest.mark.slow
def test_nbgrader_grades_five_submissions(tmp_path, monkeypatch):
    monkeypatch.delenv("LORA_LAB_WORKSPACE", raising=False)
    (tmp_path / "lessons").mkdir()
    course = tmp_path / "class"
    release(course, available=one_lesson(tmp_path / "lessons"))
    for student, (answers, _) in SUBMISSIONS.items():
        handed_in = course / "submitted" / student / LESSON / f"{LESSON}.ipynb"
        handed_in.parent.mkdir(parents=True)
        shutil.copy(course / "release" / LESSON / f"{LESSON}.ipynb", handed_in)
        solve(handed_in, *(answer() if callable(answer) else answer for answer in answers))
    nbgrader(course, "autograde", LESSON, "--Execute.timeout=15")
    nbgrader(course, "export")
    with open(course / "grades.csv", newline="") as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores == {student: points for student, (_, points) in SUBMISSIONS.items()}
    nbgrader(course, "generate_feedback", LESSON)
    pages = {
        student: (course / "feedback" / student / LESSON / f"{LESSON}.html").read_text(encoding="utf-8")
        for student in SUBMISSIONS
    }
    seeds = re.findall(r"seed=(\d+)", (course / "source" / LESSON / f"{LESSON}.ipynb").read_text())
    assert len(seeds) == 2
    given_away = {student: [seed for seed in seeds if seed in page] for student, page in pages.items()}
    assert not any(given_away.values()), given_away
    assert "CellTimeoutError" in pages["looping"]


def test_the_memorised_answer_passes_what_it_has_seen_and_nothing_else():
    """The hard-coding submission above must be a real one: right on the visible cases."""
    scope = {"torch": torch}
    exec(learnt_by_heart(), scope)
    nb01.truncation_error(scope["truncation_error"])
    with pytest.raises(AssertionError):
        nb01.truncation_error(scope["truncation_error"], seed=1234)
