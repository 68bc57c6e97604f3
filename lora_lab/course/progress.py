"""What the learner has passed, kept in the workspace's `.lora-lab/progress.json` and shown as a map of the course.

    record_pass("1.2")   called by every check that passes; does nothing outside a workspace
    table()              the map for a terminal
    progress()           the map for a notebook: HTML, and the same as plain text

{"version": 1, "passed": {"1.2": {"points": 2, "date": "2031-05-17"}}, "hints": {"1.2": 1}}
"""

import datetime
import html
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_lab.course.files import STATE, CourseError, explain, find_workspace, locked, read_json, write_atomically
from lora_lab.course.notebooks import Lesson, lessons

_CELL = 'style="text-align:left;vertical-align:top"'


@dataclass(frozen=True)
class Record:
    """What is known of a learner: points by passed exercise, and how many hints of each exercise were seen."""

    passed: dict[str, dict]
    hints: dict[str, int]


def read(workspace: Path | None) -> Record:
    """The record of a workspace; empty without one. A damaged file is moved aside, and that is printed."""
    if workspace is None:
        return Record({}, {})
    try:
        return _parse(read_json(workspace / STATE / "progress.json"))
    except ValueError:
        # Only under the lock: another process may just have put a sound file in its place.
        with locked(workspace, timeout=10) as state:
            return _read_or_move_aside(state)


def record_pass(exercise_id: str, points: int | None = None) -> bool:
    """Remember that an exercise was passed; True if it could be. Outside a workspace it does nothing.

    points: what the exercise is worth, looked up among the checks if not given. Never raises: a full disk must not turn
    a right answer into a failed check, so that is printed instead.
    """
    workspace = find_workspace()
    if workspace is None:
        return False

    def add(record: Record) -> None:
        worth = _worth(exercise_id) if points is None else points
        record.passed.setdefault(exercise_id, {"points": worth, "date": datetime.date.today().isoformat()})

    return _change(workspace, add)


def record_hint(exercise_id: str, level: int, workspace: Path | None) -> bool:
    """Remember that hints up to `level` of an exercise were seen; without a workspace it does nothing."""

    def add(record: Record) -> None:
        record.hints[exercise_id] = max(level, record.hints.get(exercise_id, 0))

    return workspace is not None and _change(workspace, add)


def table(workspace: Path | None = None, available: list[Lesson] | None = None) -> str:
    """The map as text, for a terminal: one line a lesson, with a tick for each exercise that was passed."""
    return str(CourseMap(lessons() if available is None else available, read(workspace or find_workspace())))


def progress() -> "CourseMap":
    """The map of the course with what you have passed. As the last line of a cell it draws itself."""
    return CourseMap(lessons(), read(find_workspace()))


@dataclass(frozen=True)
class CourseMap:
    """Every lesson with its question, exercises and points; as text (`str`) and as HTML (in a notebook)."""

    lessons: list[Lesson]
    record: Record

    def __str__(self) -> str:
        lines = []
        for lesson in self.lessons:
            lines.append(f"{lesson.number:02d}  {lesson.title}")
            if lesson.question:
                lines.append(f"    {lesson.question}")
            if lesson.exercises:
                ticks = "  ".join(f"[{'x' if self._has(e.id) else ' '}] {e.id}" for e in lesson.exercises)
                lines.append(f"    {ticks}   {self._points(lesson)} of {lesson.points} points")
        lines.append(f"\n{self._summary()}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A table that takes its colours from the page, so that it is readable in light and in dark themes."""
        rows = "".join(self._row(lesson) for lesson in self.lessons)
        heads = "".join(f'<th scope="col" {_CELL}>{head}</th>' for head in ("", "Lesson", "Exercises", "Points"))
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table><p>{self._summary()}</p>"

    def _row(self, lesson: Lesson) -> str:
        title, question = html.escape(lesson.title), html.escape(lesson.question)
        link = f'<a href="{html.escape(lesson.path.name)}"><b>{title}</b></a>'
        marks = " &nbsp; ".join(f"{'●' if self._has(e.id) else '○'}&nbsp;{e.id}" for e in lesson.exercises) or "–"
        points = f"{self._points(lesson)} of {lesson.points}" if lesson.exercises else "–"
        cells = (f"{lesson.number:02d}", f"{link}<br>{question}", marks, points.replace(" ", "&nbsp;"))
        return "<tr>" + "".join(f"<td {_CELL}>{cell}</td>" for cell in cells) + "</tr>"

    def _summary(self) -> str:
        exercises = [exercise for lesson in self.lessons for exercise in lesson.exercises]
        passed = sum(self._has(exercise.id) for exercise in exercises)
        total = sum(exercise.points for exercise in exercises)
        won = sum(self._points(lesson) for lesson in self.lessons)
        return f"{passed} of {len(exercises)} exercises passed, {won} of {total} points."

    def _has(self, exercise_id: str) -> bool:
        return exercise_id in self.record.passed

    def _points(self, lesson: Lesson) -> int:
        return sum(exercise.points for exercise in lesson.exercises if self._has(exercise.id))


def _change(workspace: Path, change: Callable[[Record], None]) -> bool:
    """Read, change and write the record under the workspace's lock, so that two writers cannot lose an entry."""
    try:
        with locked(workspace, timeout=10) as state:
            record = _read_or_move_aside(state)
            before = _dumps(record)
            change(record)
            if _dumps(record) != before:
                write_atomically(state / "progress.json", _dumps(record), state)
        return True
    except OSError as error:
        print(f"(Not recorded. {explain(error, workspace / STATE / 'progress.json')})")
    except CourseError as error:
        print(f"(Not recorded. {error})")
    return False


def _dumps(record: Record) -> str:
    return json.dumps({"version": 1, "passed": record.passed, "hints": record.hints}, indent=1) + "\n"


def _read_or_move_aside(state: Path) -> Record:
    path = state / "progress.json"
    try:
        return _parse(read_json(path))
    except ValueError as error:
        aside = _free_name(path)
        os.replace(path, aside)
        print(f"The record of your progress was damaged ({error}). It was moved to {aside.name}; a new one begins.")
        return Record({}, {})


def _parse(content: dict | None) -> Record:
    content = content or {}
    passed, hints = content.get("passed", {}), content.get("hints", {})
    if not isinstance(passed, dict) or not all(isinstance(entry, dict) for entry in passed.values()):
        raise ValueError("'passed' does not map exercises to entries")
    if not isinstance(hints, dict) or not all(isinstance(level, int) for level in hints.values()):
        raise ValueError("'hints' does not map exercises to numbers")
    return Record(passed, hints)


def _worth(exercise_id: str) -> int:
    from lora_lab.checks import exercises

    return exercises()[exercise_id].points


def _free_name(path: Path) -> Path:
    """progress.damaged-1.json, or the first number that is free: no damaged file replaces an earlier one."""
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")).exists():
        number += 1
    return aside
