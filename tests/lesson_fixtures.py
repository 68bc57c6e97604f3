"""Small lessons for the tests of the course's machinery, in the notebooks' own format. They import nothing heavy."""

import os
import shutil
import traceback
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lora_lab import paths
from lora_lab.course.notebooks import Lesson, lessons

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
DOUBLE = '''def double(x):
    """Twice x."""
    # BEGIN SOLUTION
    return 2 * x
    # END SOLUTION'''
# Stands in for `from lora_lab.checks import nb01 as check`: takes an answer and a seed, as every real check does.
CHECKS = """class check:
    @staticmethod
    def double(answer, seed=0):
        x = 3 + seed
        assert answer(x) == 2 * x, f"double({x}) should be {2 * x}"
    @staticmethod
    def negate(answer, seed=0):
        x = 5 + seed
        assert answer(x) == -x, f"negate({x}) should be {-x}"
"""
NEGATE = """class Sign:
    def negate(self, x):
        # BEGIN SOLUTION
        opposite = -x
        return opposite
        # END SOLUTION"""


def solved(lesson: int, exercise: int, source: str):
    """A solution cell."""
    return new_code_cell(source, metadata={"nbgrader": _metadata(f"ex-{lesson}-{exercise}", solution=True)})


def checked(lesson: int, exercise: int, source: str, points: int = 1):
    """A check cell."""
    graded = _metadata(f"check-{lesson}-{exercise}", grade=True, locked=True) | {"points": points}
    return new_code_cell(source, metadata={"nbgrader": graded})


def lesson_notebook(number: int = 1, title: str = "Doubling", extra: str = "Some prose."):
    """A solved lesson: two exercises worth 1 and 2 points, outputs as after a run, one cell for instructors."""
    shown = new_output("stream", text="solved output\n")
    cells = [
        new_markdown_cell(f"# {number:02d} · {title}\n\n> How does one double a number?\n\n{extra}"),
        new_code_cell(CHECKS, metadata={"tags": ["setup"], "execution": {"shell.execute_reply": "2031"}}),
        new_markdown_cell("### Exercise 1 · 1 point · about 2 minutes\n\n> not the question"),
        solved(number, 1, DOUBLE),
        checked(number, 1, "check.double(double)"),
        solved(number, 2, NEGATE),
        checked(number, 2, "check.negate(Sign().negate)", points=2),
        new_code_cell("secret = 'for the instructor'", metadata={"tags": ["instructor"]}),
        new_code_cell("print(1)", outputs=[shown], execution_count=7),
    ]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{number}-{index}"
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "widgets": {"state": {}}})


def write_lessons(folder: Path, count: int = 2, extra: str = "Some prose.") -> list[Lesson]:
    """`count` lessons, 01_doubling, 02_doubling, ..., in `folder`; `extra` is what an update of the course changes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        nbformat.write(lesson_notebook(number, extra=extra), folder / f"{number:02d}_doubling.ipynb")
    return lessons(folder)


def updated(tmp_path):
    """The same lessons after an update of the course."""
    return write_lessons(tmp_path / "notebooks", extra="Prose that was improved.")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def solve(path: Path, *answers: str) -> None:
    """Write the learner's answers into the solution cells of a blank, as JupyterLab would save them."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    for cell, answer in zip(cells, answers, strict=False):
        cell.source = answer
    nbformat.write(notebook, path)


RIGHT = ("def double(x):\n    return x + x", "class Sign:\n    def negate(self, x):\n        return 0 - x")


def children(*actions) -> list[int]:
    """Run each action in a child process, all starting at the same moment; their exit codes (0: no exception)."""
    starts, pids = os.pipe(), []
    for action in actions:
        pid = os.fork()
        if pid == 0:
            try:
                os.close(starts[1])
                os.read(starts[0], 1)  # returns when the parent closes its end
                action()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        pids.append(pid)
    os.close(starts[0])
    os.close(starts[1])
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _metadata(grade_id: str, grade: bool = False, locked: bool = False, solution: bool = False) -> dict:
    kind = {"grade": grade, "locked": locked, "solution": solution}
    return {"grade_id": grade_id, "schema_version": 3, "task": False, **kind}


def pretend_course(tmp_path: Path, monkeypatch) -> Path:
    """Put a course of two small lessons in the real one's place, and us in a folder outside any workspace; its root."""
    course = tmp_path / "course"
    write_lessons(course / "notebooks")
    shutil.copy(paths.ROOT / "pyproject.toml", course)
    monkeypatch.setattr("lora_lab.paths.ROOT", course)
    monkeypatch.setattr("lora_lab.paths.NOTEBOOKS", course / "notebooks")
    monkeypatch.setenv("LORA_LAB_ROOT", str(course))  # for child processes
    monkeypatch.delenv("LORA_LAB_WORKSPACE", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return course
