"""Progress is recorded in the workspace, survives damage, a full disk and other writers, and is shown as a map."""

import errno
import html
import json
import os
from pathlib import Path

import pytest
from lesson_fixtures import POSIX, children, write_lessons

from lora_lab import course as course_package
from lora_lab.checks import exercise
from lora_lab.course import files, hints
from lora_lab.course.files import STATE
from lora_lab.course.progress import CourseMap, Record, read, record_hint, record_pass, table


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty workspace in which we stand."""
    (tmp_path / "desk" / STATE).mkdir(parents=True)
    monkeypatch.delenv("LORA_LAB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


@pytest.fixture
def two(monkeypatch):
    """A registry of two exercises in place of the course's."""

    def sample(answer, cases):
        return None

    made = [
        exercise(id, takes=(), points=points, minutes=1, hints=("nudge", "closer", "almost"), name=f"name{points}")(
            sample
        )
        for id, points in (("1.1", 1), ("1.2", 2))
    ]
    monkeypatch.setattr("lora_lab.checks.exercises", lambda: {each.id: each for each in made})


def stored(desk: Path) -> dict:
    return json.loads((desk / STATE / "progress.json").read_text())


def test_a_pass_is_recorded_with_points_and_date(desk):
    assert record_pass("1.2", points=2)
    entry = stored(desk)["passed"]["1.2"]
    assert entry["points"] == 2
    assert len(entry["date"].split("-")) == 3


def test_the_points_come_from_the_checks(desk, two):
    record_pass("1.2")
    assert stored(desk)["passed"]["1.2"]["points"] == 2


def test_passing_again_keeps_the_first_date(desk):
    record_pass("1.2", points=2)
    file = desk / STATE / "progress.json"
    file.write_text(file.read_text().replace(stored(desk)["passed"]["1.2"]["date"], "2001-01-01"))
    record_pass("1.2", points=2)
    assert stored(desk)["passed"]["1.2"]["date"] == "2001-01-01"


def test_a_passing_check_records_itself(desk, two, capsys):
    from lora_lab.checks import exercises

    exercises()["1.1"](lambda: None)
    assert list(stored(desk)["passed"]) == ["1.1"]
    assert capsys.readouterr().err == ""


def test_outside_a_workspace_nothing_happens(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("LORA_LAB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert not record_pass("1.2", points=2)
    assert not record_hint("1.2", 1, None)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_the_environment_names_the_workspace(tmp_path, desk, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_LAB_WORKSPACE", str(desk))
    assert record_pass("3.1", points=1)
    assert list(stored(desk)["passed"]) == ["3.1"]


DAMAGE = ["", "{", "[]", '{"passed": 3}', '{"passed": {"1.1": 1}}', '{"hints": {"1.1": "x"}}', "\x00"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_moved_aside_and_told(desk, damage, capsys):
    (desk / STATE / "progress.json").write_text(damage)
    assert record_pass("1.1", points=1)
    assert list(stored(desk)["passed"]) == ["1.1"]
    assert (desk / STATE / "progress.damaged-1.json").read_text() == damage
    assert "progress.damaged-1.json" in capsys.readouterr().out
    (desk / STATE / "progress.json").write_text(damage)
    assert read(desk) == Record({}, {})
    assert (desk / STATE / "progress.damaged-2.json").exists()


def test_a_full_disk_is_told_and_does_not_fail_the_check(desk, monkeypatch, capsys):
    record_pass("1.1", points=1)
    before = (desk / STATE / "progress.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    assert not record_pass("1.2", points=2)
    assert "disk is full" in capsys.readouterr().out
    assert (desk / STATE / "progress.json").read_bytes() == before


@POSIX
def test_writers_at_once_do_not_lose_entries(desk):
    def write(first: int):
        return lambda: [record_pass(f"{first}.{second}", points=1) for second in range(10)]

    assert children(*(write(first) for first in range(4))) == [0] * 4
    assert set(stored(desk)["passed"]) == {f"{first}.{second}" for first in range(4) for second in range(10)}


# --- the map --------------------------------------------------------------------------------------------------


def test_the_table_for_a_terminal(tmp_path, desk):
    course = write_lessons(tmp_path / "notebooks")
    record_pass("1.2", points=2)
    text = table(desk, course)
    assert "01  Doubling" in text
    assert "How does one double a number?" in text
    assert "[ ] 1.1  [x] 1.2   2 of 3 points" in text
    assert text.endswith("1 of 4 exercises passed, 2 of 6 points.")
    assert max(map(len, text.splitlines())) <= 100


def test_the_map_for_a_notebook_says_the_same_in_html_and_text(tmp_path, desk):
    record_pass("1.2", points=2)
    shown = CourseMap(write_lessons(tmp_path / "notebooks"), read(desk))
    page = html.unescape(shown._repr_html_())
    for part in ("Doubling", "How does one double a number?", "1 of 4 exercises passed, 2 of 6 points."):
        assert part in page
        assert part in str(shown)
    assert page.count("●") == 1
    assert page.count("○") == 3
    assert 'href="01_doubling.ipynb"' in page
    assert "color" not in page, "colours are the page's own, or a dark theme would hide the text"


def test_the_map_without_progress_is_the_same_everywhere(tmp_path, monkeypatch):
    """What the committed notebooks show: no paths, no dates."""
    shown = CourseMap(write_lessons(tmp_path / "notebooks"), read(None))
    assert str(tmp_path) not in shown._repr_html_() + str(shown)
    assert "0 of 4 exercises passed, 0 of 6 points." in str(shown)


def test_titles_are_escaped(tmp_path):
    import nbformat
    from lesson_fixtures import lesson_notebook

    from lora_lab.course.notebooks import lessons

    nbformat.write(lesson_notebook(title="<script>alert(1)</script> & more"), tmp_path / "01_x.ipynb")
    assert "<script>" not in CourseMap(lessons(tmp_path), Record({}, {}))._repr_html_()


def test_a_notebook_gets_both_forms_in_one_bundle(tmp_path):
    from IPython.core.interactiveshell import InteractiveShell

    shown = CourseMap(write_lessons(tmp_path), Record({}, {}))
    bundle, _ = InteractiveShell.instance().display_formatter.format(shown)
    assert {"text/html", "text/plain"} <= set(bundle)
    assert "\n" in bundle["text/plain"]


# --- hints and solutions --------------------------------------------------------------------------------------


def test_one_more_hint_at_each_call(desk, two, capsys):
    for expected in (["nudge"], ["nudge", "closer"], ["nudge", "closer", "almost"], ["nudge", "closer", "almost"]):
        course_package.hint("1.2")
        said = capsys.readouterr().out
        assert [word for word in ("nudge", "closer", "almost") if word in said] == expected
    assert "last one" in said


def test_a_level_shows_all_up_to_it_and_is_remembered(desk, two):
    assert "closer" in hints.hint_text("1.1", 2)
    assert "almost" in hints.hint_text("1.1")


def test_outside_a_workspace_hints_begin_at_the_first(tmp_path, two, monkeypatch):
    monkeypatch.delenv("LORA_LAB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    first = hints.hint_text("1.1")
    assert "closer" not in first
    assert 'course.hint("1.1", 2)' in first
    assert hints.hint_text("1.1") == first


def test_wrong_questions_get_sentences(desk, two, tmp_path, monkeypatch, capsys):
    write_lessons(tmp_path / "notebooks")
    monkeypatch.setattr("lora_lab.paths.NOTEBOOKS", tmp_path / "notebooks")
    course_package.hint("9.9")
    course_package.hint("1.1", 4)
    course_package.solution("9.9", yes=True)
    said = capsys.readouterr().out
    assert said.count("There is no exercise 9.9") == 2
    assert "hints 1 to 3" in said


def test_the_solution_is_shown_only_when_asked_in_earnest(tmp_path, monkeypatch, capsys):
    write_lessons(tmp_path / "notebooks")
    monkeypatch.setattr("lora_lab.paths.NOTEBOOKS", tmp_path / "notebooks")
    course_package.solution("1.1")
    assert "return 2 * x" not in capsys.readouterr().out
    course_package.solution("1.1", yes=True)
    assert "return 2 * x" in capsys.readouterr().out


def test_the_functions_keep_their_names_beside_the_modules():
    import lora_lab.course.doctor
    import lora_lab.course.progress  # noqa: F401 (importing it must not put the module in the function's place)

    assert callable(course_package.progress)
    assert callable(course_package.doctor)
