"""Every committed lesson keeps the rules of notebook_rules.py, and every rule can be broken."""

import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_rules import RULES, exercises_are_whole

from lora_lab.course.execute import WIDGET, normalise, pictures
from lora_lab.paths import NOTEBOOKS, PICTURES, ROOT

LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
FEWEST_EXERCISES = {
    "00_start_here": 2,
    "01_rank_intuition": 5,
    "02_parameter_math": 6,
    "03_lora_from_scratch": 6,
    "04_rank_alpha_scaling": 7,
    "05_initialization": 8,
    "06_training_with_peft": 6,
    "07_merging_and_validation": 7,
}
LARGEST = 12_000_000  # bytes, all lessons together: a clone stays quick

lessons = pytest.mark.skipif(not LESSONS, reason="no lessons yet")


@lessons
def test_the_first_lessons_are_there() -> None:
    assert set(FEWEST_EXERCISES) <= {path.stem for path in LESSONS}


@lessons
def test_the_lessons_are_small() -> None:
    assert sum(path.stat().st_size for path in LESSONS) < LARGEST


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_lesson_keeps(rule, path: Path) -> None:
    assert not list(rule(nbformat.read(path, as_version=4)))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_has_its_exercises(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    names = [cell.metadata.get("nbgrader", {}).get("grade_id", "") for cell in notebook.cells]
    checks = [name for name in names if name.startswith("check-")]
    assert all(name.startswith(f"check-{int(path.stem[:2])}-") for name in checks)
    assert len(checks) >= FEWEST_EXERCISES.get(path.stem, 0)


# Each rule, broken


def graded(kind: str, **more: object) -> dict:
    """nbgrader's metadata for exercise 1.2."""
    solution = kind == "ex"
    meta = {"grade": not solution, "grade_id": f"{kind}-1-2", "locked": not solution, "schema_version": 3}
    return {"nbgrader": meta | {"solution": solution, "task": False} | ({} if solution else {"points": 2}) | more}


@pytest.fixture
def lesson() -> NotebookNode:
    """A lesson in good order, with one exercise and one picture."""
    picture = new_output("display_data", data={"image/png": "aGVsbG8=", "text/plain": "a line that rises"})
    picture.metadata = {"image/png": {"alt": "A line that rises from 0 to 1 over ten steps."}}
    cells = [
        new_markdown_cell("# Rank\n\n![the course's first picture](a.png)"),
        new_code_cell("draw()", execution_count=1, outputs=[picture]),
        new_markdown_cell("### Exercise 1.2 · 2 points · about 8 minutes\n\nHalve."),
        new_code_cell(
            "def halve(x):\n    # BEGIN SOLUTION\n    return x / 2\n    # END SOLUTION",
            execution_count=2,
            metadata=graded("ex"),
        ),
        new_code_cell(
            "check.halve(halve)",
            execution_count=3,
            outputs=[new_output("stream", name="stdout", text="exercise 1.2 passed\n")],
            metadata=graded("check"),
        ),
    ]
    return normalise(new_notebook(cells=cells))


def problems(notebook: NotebookNode) -> str:
    return "\n".join(problem for rule in RULES for problem in rule(notebook))


def test_a_lesson_in_order_has_no_problems(lesson: NotebookNode) -> None:
    assert problems(lesson) == ""


def printed(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


BROKEN = {
    "format 4.4": lambda n: n.update(nbformat_minor=4),
    "stands 2 times": lambda n: n.cells[1].update(id=n.cells[0].id),
    "invalid": lambda n: n.cells[1].metadata.update(tags="not a list"),
    "stale: a code cell has changed": lambda n: n.cells[1].update(source="draw(2)"),
    "stale: its outputs were never made": lambda n: n.metadata.pop("lora_lab"),
    "stale: cells [1] were never run": lambda n: n.cells[1].update(execution_count=None),
    "error ValueError": lambda n: n.cells[1].outputs.append(new_output("error", ename="ValueError")),
    "stderr 'oh'": lambda n: n.cells[1].outputs.append(printed("oh", "stderr")),
    "a warning in": lambda n: n.cells[1].outputs.append(printed("x.py:3: UserWarning: old")),
    "path '/home/'": lambda n: n.cells[1].outputs.append(printed("read /home/ada/course")),
    "path 'C:\\\\U'": lambda n: n.cells[1].outputs.append(printed("read C:\\Users\\ada")),
    "path 'site-packages'": lambda n: n.cells[1].outputs.append(printed("lib/site-packages/torch")),
    "path '/tmp/'": lambda n: n.cells[0].update(source="see '/tmp/x'"),
    "memory address": lambda n: n.cells[1].outputs.append(printed("<function f at 0x7f30a1b2c3d0>")),
    "image/png with alt text ''": lambda n: n.cells[1].outputs[0].update(metadata={}),
    "image/png with alt text 'a plot'": lambda n: n.cells[1].outputs[0].metadata["image/png"].update(alt="a plot"),
    "a live widget was kept": lambda n: n.cells[1].outputs[0].data.update({WIDGET: {"model_id": "x"}}),
    "without lora_lab.plots.show": lambda n: n.cells[1].outputs[0].data.update({"text/plain": "<Figure size 640x480>"}),
    "a picture without alt text": lambda n: n.cells[0].update(source="![](a.png)"),
    "cell 0: a picture without": lambda n: n.cells[0].update(source='<img src="a.png">'),
    "31 lines of code": lambda n: n.cells[1].update(source="x = 1\n" * 31),
    "is not 'Exercise": lambda n: n.cells[2].update(source="### Exercise 1.2 (2 points)"),
    "3 points in the heading, 2 in the check": lambda n: n.cells[2].update(
        source="### Exercise 1.2 · 3 points · about 8 minutes"
    ),
    "exercise 1.2 has 0 of: check cell": lambda n: n.cells.pop(4),
    "exercise 1.2 has 0 of: solution cell": lambda n: n.cells.pop(3),
    "has no heading before it": lambda n: n.cells.pop(2),
    "stands before its solution": lambda n: n.cells.insert(3, n.cells.pop(4)),
    "exercise 1.2 has 2 of: solution cell": lambda n: n.cells.insert(3, copy.deepcopy(n.cells[3])),
    "calls no check": lambda n: n.cells[4].update(source="print('passed')"),
    "has 0 BEGIN SOLUTION": lambda n: n.cells[3].update(source="def halve(x):\n    return x / 2"),
    "and 2 END SOLUTION": lambda n: n.cells[3].update(source=n.cells[3].source + "\n    # END SOLUTION"),
    "not marked as a solution": lambda n: n.cells[3].metadata.nbgrader.update(locked=True),
    "not marked as a locked test": lambda n: n.cells[4].metadata.nbgrader.update(locked=False),
    "is neither ex-N-N": lambda n: n.cells[4].metadata.nbgrader.update(grade_id="cell-3f"),
}


@pytest.mark.parametrize("word", BROKEN)
def test_a_broken_lesson_is_told(lesson: NotebookNode, word: str) -> None:
    BROKEN[word](lesson)
    assert word in problems(lesson)


def test_addresses_and_words_that_only_look_like_paths_pass(lesson: NotebookNode) -> None:
    lesson.cells[0].source = "https://example.org/home/x, data/tasks/tmp/y, one and/or two, a ratio of 3:\\n"
    lesson.cells[1].outputs.append(printed("Warnings were not raised; 1/2 home/away"))
    assert problems(lesson) == ""


def test_no_exercises_are_fine_too(lesson: NotebookNode) -> None:
    del lesson.cells[2:]
    assert not list(exercises_are_whole(lesson))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_pictures_kept_for_other_pages_are_those_of_the_lesson(path: Path) -> None:
    for name, content in pictures(nbformat.read(path, as_version=4)).items():
        assert (PICTURES / name).read_bytes() == content, f"{name}: run python -m lora_lab.course.execute {path.name}"


def test_pictures_of_the_readme_are_there() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown
    assert all((ROOT / picture).is_file() for picture in shown)
