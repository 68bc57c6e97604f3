"""An nbgrader course, made from the lessons: source with hidden tests, release for the class, configuration, README.

    DIR/source/NN_name/NN_name.ipynb     solved, each check followed by the same check at a secret seed
    DIR/release/NN_name/NN_name.ipynb    what the class gets (made by `nbgrader generate_assignment`)
    DIR/nbgrader_config.py, gradebook.db, README.md

The secret seeds are drawn at random for each release and stand nowhere but in DIR. A submission that has learnt the
answers of the visible checks by heart meets other shapes and other numbers there.
"""

import ast
import copy
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab import paths
from lora_lab.checks.stub import STUB
from lora_lab.course.files import CourseError, explain
from lora_lab.course.notebooks import INSTRUCTOR, Lesson, exercise_of, lessons

if TYPE_CHECKING:
    from nbformat import NotebookNode

BEGIN, END = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"
BARE_STUB = STUB.partition(": ")[2]  # nbgrader has one text for all exercises, hence without a number

_CONFIG = f'''"""nbgrader's configuration. Run nbgrader in this folder, with the course's environment active."""

c = get_config()  # noqa: F821 (nbgrader provides it)

c.CourseDirectory.course_id = "lora-lab"
c.ClearSolutions.code_stub = {{"python": 'raise NotImplementedError("{BARE_STUB}")'}}

# A cell that does not end is interrupted, fails, and the next one runs.
c.Execute.timeout = 300
c.Execute.interrupt_on_timeout = True
# Times written into the cells would make every execution differ from the one before.
c.Execute.record_timing = False
# Feedback shows a class what failed, but not the hidden tests.
c.GenerateFeedback.preprocessors = [
    "nbgrader.preprocessors.GetGrades",
    "lora_lab.course.feedback.HideSeeds",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
'''

_README = """# LoRA Lab, for grading

{table}

- `release/` is what you hand out. `source/` holds the solutions and the hidden tests: keep it, and `gradebook.db`, to
  yourself.
- Every check is repeated at a secret seed when you grade. Those seeds exist in this folder only.
- The notebooks import `lora_lab` and read its data through it: the machine that grades needs the course installed
  (`python3 course.py start` once, then `pip install -e ".[instructor]"` in its environment). Your class needs the
  course, too.

Activate the course's environment first (nbgrader calls other programs by name), then, in this folder:

    nbgrader autograde LESSON            grades submitted/STUDENT/LESSON/LESSON.ipynb of everyone
    nbgrader generate_feedback LESSON    writes feedback/STUDENT/LESSON/LESSON.html
    nbgrader export                      writes grades.csv

LESSON is a name from the table. Grade on a machine that you can afford to lose: submissions are programs.
After an update of the course make a new release in a new folder; grades stay with the release that gave them.
"""


def release(folder: Path, seed: int | None = None, available: list[Lesson] | None = None) -> list[str]:
    """Write the nbgrader course into `folder`, which must be new or empty; sentences that say what was made.

    seed: makes the hidden tests repeatable; by default they are drawn at random. Raises CourseError, and leaves no
    half-made course behind, if nbgrader is missing or refuses, or if the folder cannot be used.
    """
    folder = Path(folder).expanduser().absolute()
    _refuse_unfit(folder)
    graded = [lesson for lesson in (lessons() if available is None else available) if lesson.exercises]
    if not graded:
        raise CourseError("No lesson has an exercise to release.")
    draw = random.Random(secrets.randbits(64) if seed is None else seed)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            course = Path(scratch) / "course"
            for lesson in graded:
                _write_source(course, lesson, draw)
            (course / "nbgrader_config.py").write_text(_CONFIG, encoding="utf-8")
            (course / "README.md").write_text(_README.format(table=_table(graded)), encoding="utf-8")
            for lesson in graded:
                nbgrader(course, "generate_assignment", lesson.stem)
            if folder.exists():
                folder.rmdir()
            os.replace(course, folder)
    except OSError as error:
        raise CourseError(explain(error, error.filename or folder)) from error
    count, points = (sum(numbers) for numbers in zip(*((len(x.exercises), x.points) for x in graded), strict=True))
    return [
        f"Released {len(graded)} lessons with {count} exercises worth {points} points to {folder}.",
        f"Hand out {folder / 'release'}. Keep the rest to yourself: it holds the solutions and the hidden tests.",
        f"How to grade: {folder / 'README.md'}",
    ]


def with_hidden_tests(notebook: "NotebookNode", draw: random.Random) -> "NotebookNode":
    """A copy of a solved notebook whose check cells repeat their checks at seeds from `draw`, hidden from the class."""
    result = copy.deepcopy(notebook)
    result.cells = [cell for cell in result.cells if INSTRUCTOR not in cell.metadata.get("tags", [])]
    for cell in result.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        exercise = exercise_of(cell, "check")
        if exercise:
            hidden = "\n".join(_reseeded(cell.source, exercise, draw))
            cell.source = f"{cell.source.rstrip()}\n{BEGIN}\n{hidden}\n{END}"
    result.metadata.pop("widgets", None)
    return result


def nbgrader(course: Path, *arguments: str) -> str:
    """Run one nbgrader command in the course's folder; what it said. Raises CourseError with its last words."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER_")}
    # nbgrader starts alembic, and the kernel, by name; our interpreter's kernel comes before any other of that name.
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    variables["JUPYTER_PREFER_ENV_PATH"] = "1"
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(
        command, cwd=course, env=variables, capture_output=True, text=True, errors="replace", check=False
    )
    said = done.stdout + done.stderr
    if done.returncode != 0:
        last = "\n".join(said.strip().splitlines()[-6:])
        raise CourseError(f"nbgrader {' '.join(arguments)} failed:\n{last}")
    return said


def _refuse_unfit(folder: Path) -> None:
    from importlib.util import find_spec

    if find_spec("nbgrader") is None or shutil.which("alembic", path=str(Path(sys.executable).parent)) is None:
        raise CourseError(
            'nbgrader is not installed. In the course\'s folder: .venv/bin/python -m pip install -e ".[instructor]"'
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CourseError(f"{folder} is not an empty folder. A release is never written over another: name a new one.")
    clone = paths.ROOT.resolve()
    if clone in (folder.resolve(), *folder.resolve().parents):
        raise CourseError(
            f"{folder} lies in the course's own folder, where one `git add` could publish the solutions and the "
            f"secret seeds. Name a folder outside {clone}."
        )


def _write_source(course: Path, lesson: Lesson, draw: random.Random) -> None:
    import nbformat

    target = course / "source" / lesson.stem / lesson.path.name
    target.parent.mkdir(parents=True)
    nbformat.write(with_hidden_tests(lesson.read(), draw), target)


def _reseeded(source: str, exercise: str, draw: random.Random) -> Iterator[str]:
    """Each `check.name(answer)` of a check cell once more, as `check.name(answer, seed=SECRET)`."""
    calls = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
    ]
    if not calls:
        raise CourseError(f"The check cell of exercise {exercise} calls no check: {source[:80]!r}")
    for call in calls:
        call.keywords = [keyword for keyword in call.keywords if keyword.arg != "seed"]
        call.keywords.append(ast.keyword("seed", ast.Constant(draw.randrange(1, 2**31))))
        yield ast.unparse(call)


def _table(graded: list[Lesson]) -> str:
    rows = [f"| {lesson.stem} | {lesson.title} | {len(lesson.exercises)} | {lesson.points} |" for lesson in graded]
    return "\n".join(["| lesson | title | exercises | points |", "|---|---|---|---|", *rows])
