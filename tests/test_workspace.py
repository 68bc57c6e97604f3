"""Laying out the workspace, again and again: what the learner wrote is never overwritten, what is new arrives."""

import json
from pathlib import Path

import nbformat
import pytest
from lesson_fixtures import RIGHT, snapshot, solve, updated, write_lessons
from nbformat.v4 import new_output

from lora_lab import paths
from lora_lab.course.files import STATE, CourseError, find_workspace
from lora_lab.course.notebooks import lessons
from lora_lab.course.workspace import lay_out

# --- laying out, again and again ------------------------------------------------------------------------------


def test_first_and_second_time(tmp_path, course):
    first = lay_out(tmp_path / "desk", course)
    assert first.added == ["01_doubling.ipynb", "02_doubling.ipynb"]
    before = snapshot(tmp_path / "desk")
    second = lay_out(tmp_path / "desk", course)
    assert second.sentences() == []
    assert snapshot(tmp_path / "desk") == before
    for name in before:
        nbformat.validate(nbformat.reads(before[name].decode(), as_version=4))


def test_a_new_lesson_is_added(tmp_path, desk):
    result = lay_out(desk, write_lessons(tmp_path / "notebooks", count=3))
    assert result.added == ["03_doubling.ipynb"]
    assert (result.updated, result.beside) == ([], {})


def test_an_untouched_blank_is_updated(tmp_path, desk):
    result = lay_out(desk, updated(tmp_path))
    assert result.updated == ["01_doubling.ipynb", "02_doubling.ipynb"]
    assert "improved" in (desk / "01_doubling.ipynb").read_text()


def test_opening_and_saving_does_not_count_as_work(tmp_path, desk):
    path = desk / "01_doubling.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["language_info"] = {"name": "python", "version": "3.99"}
    notebook.cells[0].metadata["collapsed"] = True
    path.write_text(json.dumps(notebook, indent=3))
    assert "01_doubling.ipynb" in lay_out(desk, updated(tmp_path)).updated


def test_work_is_kept_and_the_new_lesson_offered_once(tmp_path, desk):
    path = desk / "01_doubling.ipynb"
    solve(path, *RIGHT)
    mine = path.read_bytes()
    result = lay_out(desk, updated(tmp_path))
    assert result.beside == {"01_doubling.ipynb": "01_doubling.new.ipynb"}
    assert path.read_bytes() == mine
    assert "improved" in (desk / "01_doubling.new.ipynb").read_text()
    assert any("01_doubling.new.ipynb" in sentence for sentence in result.sentences())
    assert lay_out(desk, lessons(tmp_path / "notebooks")).sentences() == []
    (desk / "01_doubling.new.ipynb").unlink()  # seen, and not wanted
    assert lay_out(desk, lessons(tmp_path / "notebooks")).sentences() == []
    assert not (desk / "01_doubling.new.ipynb").exists()


def test_work_is_kept_silently_while_the_lesson_is_the_same(desk, course):
    solve(desk / "01_doubling.ipynb", *RIGHT)
    result = lay_out(desk, course)
    assert (result.kept, result.sentences()) == (["01_doubling.ipynb"], [])


def test_a_notebook_that_was_only_run_keeps_its_outputs(tmp_path, desk):
    path = desk / "01_doubling.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [new_output("stream", text="an hour of training")]
    nbformat.write(notebook, path)
    result = lay_out(desk, updated(tmp_path))
    assert "an hour of training" in path.read_text()
    assert result.beside == {"01_doubling.ipynb": "01_doubling.new.ipynb"}
    assert result.updated == ["02_doubling.ipynb"]


def test_work_in_the_offered_copy_is_kept_too(tmp_path, desk):
    solve(desk / "01_doubling.ipynb", *RIGHT)
    lay_out(desk, updated(tmp_path))
    solve(desk / "01_doubling.new.ipynb", RIGHT[0])
    work = (desk / "01_doubling.new.ipynb").read_bytes()
    again = write_lessons(tmp_path / "notebooks", extra="Changed a second time.")
    assert lay_out(desk, again).beside == {"01_doubling.ipynb": "01_doubling.new-2.ipynb"}
    assert (desk / "01_doubling.new.ipynb").read_bytes() == work
    assert lay_out(desk, again).sentences() == []


def test_an_offered_copy_that_was_not_used_is_replaced(tmp_path, desk):
    solve(desk / "01_doubling.ipynb", *RIGHT)
    lay_out(desk, updated(tmp_path))
    again = write_lessons(tmp_path / "notebooks", extra="Changed a second time.")
    assert lay_out(desk, again).beside == {"01_doubling.ipynb": "01_doubling.new.ipynb"}
    assert "a second time" in (desk / "01_doubling.new.ipynb").read_text()


def test_a_deleted_notebook_comes_back_as_a_blank(desk, course):
    (desk / "02_doubling.ipynb").unlink()
    assert lay_out(desk, course).added == ["02_doubling.ipynb"]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"cells": 3}', b'{"cells": [{"cell_type": 1}]}', b"null"]
)
def test_an_unreadable_notebook_is_left_and_a_fresh_one_put_beside(desk, course, damage):
    path = desk / "01_doubling.ipynb"
    path.write_bytes(damage)
    result = lay_out(desk, course)
    assert path.read_bytes() == damage
    assert result.unreadable == {"01_doubling.ipynb": "01_doubling.new.ipynb"}
    assert "cannot be read" in result.sentences()[0]
    nbformat.validate(nbformat.read(desk / "01_doubling.new.ipynb", as_version=4))
    assert lay_out(desk, course).unreadable == {"01_doubling.ipynb": ""}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"origins": 3}', b'{"origins": {"a": 1}}', b"\xff"])
def test_a_damaged_manifest_is_made_anew_from_the_notebooks(tmp_path, desk, damage):
    solve(desk / "01_doubling.ipynb", *RIGHT)
    mine = (desk / "01_doubling.ipynb").read_bytes()
    (desk / STATE / "manifest.json").write_bytes(damage)
    result = lay_out(desk, updated(tmp_path))
    assert "made anew" in result.sentences()[0]
    assert (desk / "01_doubling.ipynb").read_bytes() == mine
    assert result.updated == ["02_doubling.ipynb"]
    assert json.loads((desk / STATE / "manifest.json").read_text())["version"] == 1


def test_without_manifest_and_stamp_nothing_is_taken_for_untouched(tmp_path, desk):
    """Another program may have dropped our metadata: then what looks old may be the learner's."""
    path = desk / "01_doubling.ipynb"
    notebook = nbformat.read(path, as_version=4)
    del notebook.metadata["lora_lab"]
    nbformat.write(notebook, path)
    mine = path.read_bytes()
    (desk / STATE / "manifest.json").unlink()
    assert lay_out(desk, updated(tmp_path)).beside == {"01_doubling.ipynb": "01_doubling.new.ipynb"}
    assert path.read_bytes() == mine


def test_what_is_saved_while_we_judge_is_kept(tmp_path, desk, monkeypatch):
    """JupyterLab may save between our reading a blank and our replacing it."""
    path = desk / "01_doubling.ipynb"
    read = Path.read_bytes

    def read_then_edit(self):
        content = read(self)
        if self == path and b"return x + x" not in content:
            solve(path, *RIGHT)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_then_edit)
    lay_out(desk, updated(tmp_path))
    assert b"return x + x" in read(path)


def test_the_course_itself_is_no_workspace(tmp_path, course, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    before = snapshot(tmp_path / "notebooks")
    for folder in (tmp_path, tmp_path / "notebooks", tmp_path / "notebooks" / "mine", tmp_path / "lora_lab"):
        with pytest.raises(CourseError, match="Choose"):
            lay_out(folder, course)
    assert snapshot(tmp_path / "notebooks") == before
    assert not (tmp_path / STATE).exists()


def test_a_file_in_the_way_is_told(tmp_path, course):
    (tmp_path / "desk").write_text("a file")
    with pytest.raises(CourseError, match="in the way"):
        lay_out(tmp_path / "desk", course)
    assert (tmp_path / "desk").read_text() == "a file"


def test_the_workspace_is_found_from_below_and_by_the_environment(tmp_path, desk, monkeypatch):
    monkeypatch.delenv("LORA_LAB_WORKSPACE", raising=False)
    (desk / "deep" / "er").mkdir(parents=True)
    assert find_workspace(desk / "deep" / "er") == desk
    assert find_workspace(tmp_path) is None
    monkeypatch.setenv("LORA_LAB_WORKSPACE", str(desk))
    assert find_workspace(tmp_path) == desk
    monkeypatch.setenv("LORA_LAB_WORKSPACE", str(tmp_path / "gone"))
    assert find_workspace(desk) is None


# --- the real lessons -----------------------------------------------------------------------------------------


def test_the_courses_own_lessons_can_be_laid_out(tmp_path):
    if not list(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        pytest.skip("no lessons are written yet")
    from lora_lab.checks import exercises

    course = lessons()
    result = lay_out(tmp_path / "desk", course)
    assert len(result.added) == len(course)
    for lesson in course:
        copy = nbformat.read(tmp_path / "desk" / lesson.path.name, as_version=4)
        nbformat.validate(copy)
        assert "SOLUTION" not in nbformat.writes(copy)
        assert lesson.question, f"{lesson.stem} opens with no question"
    found = {exercise.id: exercise.points for lesson in course for exercise in lesson.exercises}
    assert found == {exercise.id: exercise.points for exercise in exercises().values()}
