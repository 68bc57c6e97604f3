"""Help with an exercise: three hints, one more at each call, and the solution when asked for in earnest.

The hints stand with the checks (`lora_lab.checks`), the solution in the lesson's own notebook.
How many hints were seen is remembered in the workspace; outside one, every call begins at the first.
"""

from pathlib import Path

from lora_lab.course.files import CourseError, find_workspace
from lora_lab.course.notebooks import solution as solution_source
from lora_lab.course.notebooks import unknown_exercise
from lora_lab.course.progress import read, record_hint


def registry() -> dict:
    """The graded exercises by id, as `lora_lab.checks` lists them: name, points, minutes, hints."""
    from lora_lab.checks import exercises

    return exercises()


def hint_text(exercise_id: str, level: int | None = None, workspace: Path | None = None) -> str:
    """The hints of an exercise up to `level`; by default one more than were seen before.

    level: 1 to the number of hints. workspace: where it is remembered; by default the one we are in.
    Raises CourseError for an unknown exercise or level.
    """
    workspace = workspace or find_workspace()
    known = registry()
    if exercise_id not in known:
        raise unknown_exercise(exercise_id)
    exercise = known[exercise_id]
    last = len(exercise.hints)
    if level is not None and not 1 <= level <= last:
        raise CourseError(f"Exercise {exercise_id} has hints 1 to {last}; there is no hint {level}.")
    if level is None:
        level = min(read(workspace).hints.get(exercise_id, 0) + 1, last)
    remembered = record_hint(exercise_id, level, workspace)
    lines = [f"Exercise {exercise_id}, {exercise.name} ({_points(exercise.points)})"]
    lines += [f"  Hint {number} of {last}: {text}" for number, text in enumerate(exercise.hints[:level], start=1)]
    lines.append(_what_next(exercise_id, level, last, remembered))
    return "\n".join(lines)


def hint(exercise_id: str, level: int | None = None) -> None:
    """Print the next hint of an exercise, or all up to `level`. For a notebook: `course.hint("1.2")`."""
    _say(lambda: hint_text(str(exercise_id), level))


def solution(exercise_id: str, yes: bool = False) -> None:
    """Print the solution of an exercise, if `yes`. For a notebook: `course.solution("1.2", yes=True)`."""

    def text() -> str:
        source = solution_source(str(exercise_id))
        if yes:
            return source
        return (
            f"This shows the whole solution of exercise {exercise_id}. If a hint would do: "
            f'course.hint("{exercise_id}").\nTo see it: course.solution("{exercise_id}", yes=True)'
        )

    _say(text)


def _say(text) -> None:
    """Print; what goes wrong is a sentence too, for a traceback in a lesson would look like the learner's fault."""
    try:
        print(text())
    except CourseError as error:
        print(error)


def _what_next(exercise_id: str, level: int, last: int, remembered: bool) -> str:
    if level == last:
        return "  That was the last one. After it comes only the solution."
    if remembered:
        return "  Ask again for the next one."
    following = level + 1
    return (
        f'  For the next one: course.hint("{exercise_id}", {following}), '
        f"or in a terminal: lora-lab hint {exercise_id} {following}"
    )


def _points(points: int) -> str:
    return f"{points} point" if points == 1 else f"{points} points"
