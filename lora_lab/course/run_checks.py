"""Run a learner's notebook from top to bottom in a fresh kernel and report its checks. The file itself is only read.

The check cells that run are the course's own, whatever became of those in the notebook. A cell that does not end is
interrupted after `cell_seconds`; one that will not even be interrupted, or that kills the kernel, ends the run.
"""

import logging
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.checks.stub import stub_exercise
from lora_lab.course.files import CourseError
from lora_lab.course.notebooks import Lesson, exercise_of, graded, lessons, read_notebook

if TYPE_CHECKING:
    from nbclient import NotebookClient
    from nbformat import NotebookNode

CELL_SECONDS = 300  # lessons are made for a minute in all, on two cores; slow machines get time
_TIMED_OUT = "CellTimeout"
_UNWRITTEN = "not written yet"


@dataclass(frozen=True)
class Verdict:
    """One exercise: passed or not, and if not, the sentence that says why."""

    id: str
    points: int
    passed: bool
    message: str = ""


@dataclass
class Report:
    """What a run showed: a verdict for each exercise, and the errors of all other cells by cell number."""

    name: str
    verdicts: list[Verdict] = field(default_factory=list)
    other_errors: dict[int, str] = field(default_factory=dict)
    ended_early: str = ""

    @property
    def passed(self) -> bool:
        if self.verdicts:
            return all(verdict.passed for verdict in self.verdicts)
        return not self.other_errors and not self.ended_early

    def __str__(self) -> str:
        lines = [self.name]
        for verdict in self.verdicts:
            won = verdict.points if verdict.passed else 0
            mark = "✓" if verdict.passed else "✗"
            lines.append(f"  {mark} {verdict.id:<5} {won} of {verdict.points}  {verdict.message or 'passed'}")
        if self.verdicts:
            won = sum(verdict.points for verdict in self.verdicts if verdict.passed)
            lines.append(f"  {won} of {sum(verdict.points for verdict in self.verdicts)} points")
        if self.ended_early:
            lines.append(f"  {self.ended_early}")
        for number, error in list(self.other_errors.items())[:3]:
            lines.append(f"  Cell {number} ended in an error: {error}")
        if len(self.other_errors) > 3:
            lines.append(f"  ... and {len(self.other_errors) - 3} more cells.")
        if not self.verdicts and self.passed:
            lines.append("  No exercises here; every cell ran without an error.")
        return "\n".join(lines)


def find_notebook(name: str, workspace: Path | None, available: list[Lesson] | None = None) -> Path:
    """The notebook a person means by a path, a file name or a lesson's number. Raises CourseError if there is none."""
    if Path(name).is_file():
        return Path(name)
    known = lessons() if available is None else available
    wanted = [lesson.path.name for lesson in known if name.isdigit() and lesson.number == int(name)]
    wanted = wanted or [name, f"{name}.ipynb"]
    for candidate in wanted if workspace else []:
        if (workspace / candidate).is_file():
            return workspace / candidate
    where = f"in {workspace}" if workspace else "and no workspace yet: lora-lab start makes one"
    numbers = ", ".join(str(lesson.number) for lesson in known)
    raise CourseError(f"There is no notebook {wanted[0]} {where}. Give a path, or a lesson's number ({numbers}).")


def run(
    path: Path,
    cell_seconds: int = CELL_SECONDS,
    tell: Callable[[str], None] = lambda text: None,
    available: list[Lesson] | None = None,
) -> Report:
    """Execute the notebook at `path` and judge its exercises.

    cell_seconds: the limit for one cell. tell: called with a few words before each cell. available: the lessons to
    judge by. Raises CourseError if the file cannot be read or no kernel can be started.
    """
    notebook = read_notebook(path)
    known = lessons() if available is None else available
    expected, checks = _expected(notebook, path, known)
    for exercise, cell in graded(notebook).items():
        if exercise in checks:
            cell.source = checks[exercise].source
    report = Report(path.name)
    found = _execute(notebook, path.absolute().parent, cell_seconds, tell, report)
    gone = "its check cell is no longer in this notebook: copy it from a fresh blank"
    for exercise, points in expected.items():
        message = found.get(exercise, gone)
        report.verdicts.append(Verdict(exercise, points, not message, message))
    return report


def _expected(
    notebook: "NotebookNode", path: Path, known: list[Lesson]
) -> tuple[dict[str, int], dict[str, "NotebookNode"]]:
    """The points of the exercises that this notebook should hold, and the course's check cells for them."""
    stem = notebook.metadata.get("lora_lab", {}).get("lesson", path.stem)
    present = graded(notebook)
    points, checks = {}, {}
    for lesson in known:
        mine = [exercise for exercise in lesson.exercises if lesson.stem == stem or exercise.id in present]
        points.update({exercise.id: exercise.points for exercise in mine})
        if mine:
            checks.update(graded(lesson.read()))
    return points, checks


def _execute(
    notebook: "NotebookNode", folder: Path, cell_seconds: int, tell: Callable[[str], None], report: Report
) -> dict[str, str]:
    """Run all cells; what each check cell said ("" if it passed). Other cells' errors go into the report."""
    found: dict[str, str] = {}
    cells = [
        (index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()
    ]
    with tempfile.TemporaryDirectory(prefix="lora-lab-") as scratch:
        client = _client(notebook, folder, cell_seconds, Path(scratch))
        with client.setup_kernel(cleanup_kc=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            for number, (index, cell) in enumerate(cells, start=1):
                exercise = exercise_of(cell, "check")
                if report.ended_early:
                    if exercise:
                        found[exercise] = "not reached"
                    continue
                tell(f"cell {number} of {len(cells)}")
                error = _run_cell(client, cell, index)
                if error == _TIMED_OUT:
                    error = f"stopped: it had not ended after {cell_seconds} s"
                    if not _answers(client):
                        report.ended_early = f"Cell {number} could not be stopped; the cells after it did not run."
                elif error == "DeadKernelError":
                    error = "the kernel died in this cell"
                    report.ended_early = f"The kernel died in cell {number}; the cells after it did not run."
                if exercise:
                    found[exercise] = error
                elif error and "raises-exception" not in cell.metadata.get("tags", []):
                    needs = "it uses an exercise that is not written yet"
                    report.other_errors[number] = needs if error == _UNWRITTEN else error
    return found


def _client(notebook: "NotebookNode", folder: Path, cell_seconds: int, scratch: Path) -> "NotebookClient":
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    class Client(NotebookClient):
        """Keeps errors only: a loop that prints would otherwise fill the memory until its time is up."""

        def output(self, outs, msg, display_id, cell_index):
            return super().output(outs, msg, display_id, cell_index) if msg["msg_type"] == "error" else None

    quiet = logging.getLogger("lora_lab.run_checks")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    # With no folder to search, "python3" is the interpreter that runs this, not whatever else bears the name.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    manager.connection_file = str(scratch / "kernel.json")
    return Client(
        notebook,
        km=manager,
        timeout=cell_seconds,
        interrupt_on_timeout=True,
        error_on_timeout={"ename": _TIMED_OUT, "evalue": "", "traceback": []},
        allow_errors=True,
        record_timing=False,
        shutdown_kernel="immediate",
        extra_arguments=["--HistoryManager.hist_file=:memory:"],
        resources={"metadata": {"path": str(folder)}},
        log=quiet,
    )


def _run_cell(client: "NotebookClient", cell: "NotebookNode", index: int) -> str:
    """Run one cell: "" if it went well, else what went wrong in a line."""
    from nbclient.exceptions import DeadKernelError

    replies: list[dict] = []
    client.on_cell_executed = lambda cell, cell_index, execute_reply: replies.append(execute_reply["content"])
    try:
        client.execute_cell(cell, index)
    except DeadKernelError:
        return "DeadKernelError"
    reply = replies[-1]
    if reply["status"] == "ok" or reply.get("ename") == _TIMED_OUT:
        return reply.get("ename", "")
    message = " ".join(str(reply.get("evalue", "")).split())
    if reply["ename"] in ("AssertionError", "Wrong") and message:
        return message
    if reply["ename"] == "NotImplementedError" and stub_exercise(NotImplementedError(message)) is not None:
        return _UNWRITTEN
    return f"{reply['ename']}: {message}" if message else reply["ename"]


def _answers(client: "NotebookClient", seconds: int = 5) -> bool:
    """Whether the kernel still takes cells after it was interrupted."""
    import nbformat

    limit, client.timeout = client.timeout, seconds
    try:
        return _run_cell(client, nbformat.v4.new_code_cell("pass"), 0) == ""
    finally:
        client.timeout = limit
