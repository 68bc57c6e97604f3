"""The lessons. The folder `notebooks/` is the list, and the solved notebook is the only source of everything:

    lessons()        what there is: title, question, exercises
    blank(notebook)  the learner's copy: solutions cut out, outputs cleared, instructor's cells dropped
    solution("1.2")  the solved cell, cut from the same source

An exercise is a solution cell (grade_id `ex-1-2`, code between `# BEGIN SOLUTION` and `# END SOLUTION`)
followed by a check cell (grade_id `check-1-2`, with its points). Exercise 1.2 is the second of lesson 1.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab import paths
from lora_lab.checks.stub import STUB
from lora_lab.course.files import CourseError

if TYPE_CHECKING:
    from nbformat import NotebookNode

BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
INSTRUCTOR = "instructor"
_KEPT_METADATA = ("tags", "nbgrader", "jupyter", "slideshow")
_LESSON_NAME = re.compile(r"(\d\d)_\w+")
_NUMBERED = re.compile(r"^\d+\s*[·.:–—-]\s*")  # "01 · Rank intuition": the number is told apart from the title
_GRADE_ID = re.compile(r"(ex|check)-(\d+)-(\d+)")


@dataclass(frozen=True)
class GradedCell:
    """One exercise as the notebook tells it: its id ("1.2") and its points."""

    id: str
    points: int


@dataclass(frozen=True)
class Lesson:
    """One notebook of the course. `title` is its first H1, `question` the first quoted line after that, or ""."""

    path: Path
    number: int
    title: str
    question: str
    exercises: tuple[GradedCell, ...]

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def points(self) -> int:
        return sum(exercise.points for exercise in self.exercises)

    def read(self) -> "NotebookNode":
        """The solved notebook."""
        return read_notebook(self.path)


def read_notebook(path: Path) -> "NotebookNode":
    """The notebook at `path`. Raises CourseError if there is none or it cannot be read as one."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise CourseError(f"There is no notebook {path}.") from None
    except Exception as error:  # nbformat raises whatever the damage happens to trip over
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        raise CourseError(f"{path} cannot be read as a notebook: {reason}") from None


def lessons(folder: Path | None = None) -> list[Lesson]:
    """All lessons, in order: the notebooks named NN_name.ipynb in `folder` (the course's own by default)."""
    folder = folder or paths.NOTEBOOKS
    found = [path for path in sorted(folder.glob("*.ipynb")) if _LESSON_NAME.fullmatch(path.stem)]
    if not found:
        raise CourseError(
            f"No lessons found in {folder}. "
            "Run lora-lab from a complete clone of the course, or set LORA_LAB_ROOT to one."
        )
    return [_lesson(path) for path in found]


def exercise_of(cell: "NotebookNode", kind: str) -> str | None:
    """The exercise id of a cell of this kind ("ex" or "check"), None for any other cell."""
    found = _GRADE_ID.fullmatch(str(cell.metadata.get("nbgrader", {}).get("grade_id", "")))
    return f"{found[2]}.{found[3]}" if found and found[1] == kind else None


def graded(notebook: "NotebookNode") -> dict[str, "NotebookNode"]:
    """The check cells of a notebook by exercise id, in order."""
    return {exercise: cell for cell in notebook.cells if (exercise := exercise_of(cell, "check"))}


def blank(notebook: "NotebookNode") -> "NotebookNode":
    """The learner's copy of a solved notebook; the argument is left alone.

    Lines around a solution (signature, docstring) stay. Solution and check cells cannot be deleted, check cells
    not edited. Raises ValueError on unbalanced markers, or markers outside a solution cell.
    """
    result = copy.deepcopy(notebook)
    result.cells = [cell for cell in result.cells if INSTRUCTOR not in cell.metadata.get("tags", [])]
    for cell in result.cells:
        kept = {key: cell.metadata[key] for key in _KEPT_METADATA if key in cell.metadata}
        cell.metadata = type(result.metadata)(kept)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            _empty(cell)
    # Widget states belong to the outputs; the kernel's own details are filled in again by whoever opens it.
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    result.metadata = type(result.metadata)({"kernelspec": kernel, "language_info": {"name": "python"}})
    return result


def solution(exercise_id: str, folder: Path | None = None) -> str:
    """The source of an exercise's solution cell, without the markers. Raises CourseError for an unknown id."""
    for lesson in lessons(folder):
        if exercise_id in (exercise.id for exercise in lesson.exercises):
            cell = next(cell for cell in lesson.read().cells if exercise_of(cell, "ex") == exercise_id)
            lines = (line for line in cell.source.split("\n") if line.strip() not in (BEGIN, END))
            return "\n".join(lines)
    raise unknown_exercise(exercise_id, folder)


def unknown_exercise(exercise_id: str, folder: Path | None = None) -> CourseError:
    """The error that names what exists; for the caller to raise."""
    known = ", ".join(exercise.id for lesson in lessons(folder) for exercise in lesson.exercises)
    return CourseError(f"There is no exercise {exercise_id}. The exercises are {known or '(none yet)'}.")


def _lesson(path: Path) -> Lesson:
    notebook = read_notebook(path)
    lines = _prose(notebook)
    title = next((line[2:].strip() for line in lines if line.startswith("# ")), path.stem)
    title = _NUMBERED.sub("", title)
    question = next((line.lstrip("> ").strip() for line in lines if line.startswith(">")), "")
    solved = {exercise for cell in notebook.cells if (exercise := exercise_of(cell, "ex"))}
    checks = graded(notebook)
    if solved != set(checks):
        lonely = ", ".join(sorted(solved ^ set(checks)))
        raise CourseError(f"{path.name}: exercise {lonely} lacks its solution cell or its check cell.")
    exercises = (GradedCell(id, cell.metadata.nbgrader.get("points", 0)) for id, cell in checks.items())
    return Lesson(path, int(path.stem[:2]), title, question.strip("*_ "), tuple(exercises))


def _prose(notebook: "NotebookNode") -> Iterator[str]:
    """The lines of the markdown cells, read once: what is looked for second must stand after what was first."""
    return (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.split("\n"))


def _empty(cell: "NotebookNode") -> None:
    """Cut the solutions out of a code cell and protect graded cells, in place."""
    exercise = exercise_of(cell, "ex")
    if exercise:
        cell.source = _without_solution(cell.source, exercise)
        cell.metadata["deletable"] = False
    elif BEGIN in cell.source or END in cell.source:
        raise ValueError(f"a solution stands outside a solution cell: {cell.source[:80]!r}")
    elif exercise_of(cell, "check"):
        cell.metadata["deletable"] = cell.metadata["editable"] = False


def _without_solution(source: str, exercise: str) -> str:
    kept, inside, regions = [], False, 0
    for line in source.split("\n"):
        marker = line.strip()
        if marker in (BEGIN, END):
            if (marker == BEGIN) == inside:
                raise ValueError(f"exercise {exercise}: {marker!r} out of order")
            inside, regions = not inside, regions + (marker == BEGIN)
            if inside:
                indent = line[: len(line) - len(line.lstrip())]
                kept.append(f'{indent}raise NotImplementedError("{STUB.format(id=exercise)}")')
        elif not inside:
            kept.append(line)
    if inside or not regions:
        raise ValueError(
            f"exercise {exercise}: {BEGIN!r} without {END!r}" if inside else f"exercise {exercise}: no solution"
        )
    return "\n".join(kept)
