"""Lessons are read from the folder, blanks are cut from the solved notebooks, solutions are found in them."""

import nbformat
import pytest
from lesson_fixtures import lesson_notebook, solved, write_lessons

from lora_lab import paths
from lora_lab.course.files import CourseError
from lora_lab.course.notebooks import blank, lessons, solution


@pytest.fixture
def course(tmp_path):
    return write_lessons(tmp_path / "notebooks")


def test_the_folder_is_the_list_of_lessons(tmp_path, course):
    (tmp_path / "notebooks" / "Untitled.ipynb").write_text("not a lesson")
    first, second = lessons(tmp_path / "notebooks")
    assert (first.number, first.stem, first.title) == (1, "01_doubling", "Doubling")
    assert first.question == "How does one double a number?"
    assert [(exercise.id, exercise.points) for exercise in second.exercises] == [("2.1", 1), ("2.2", 2)]
    assert second.points == 3


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(CourseError, match="complete clone"):
        lessons(tmp_path)


def test_a_solution_without_a_check_is_refused(tmp_path):
    notebook = lesson_notebook()
    del notebook.cells[4]
    nbformat.write(notebook, tmp_path / "01_x.ipynb")
    with pytest.raises(CourseError, match=r"exercise 1\.1 lacks"):
        lessons(tmp_path)


def test_a_blank_keeps_the_frame_and_nothing_of_the_solution():
    source = lesson_notebook()
    before = nbformat.writes(source)
    copy = blank(source)
    nbformat.validate(copy)
    assert nbformat.writes(source) == before
    assert copy.cells[3].source == (
        'def double(x):\n    """Twice x."""\n    raise NotImplementedError("exercise 1.1: your code here")'
    )
    assert copy.cells[5].source == (
        'class Sign:\n    def negate(self, x):\n        raise NotImplementedError("exercise 1.2: your code here")'
    )
    text = nbformat.writes(copy)
    for gone in (
        "opposite",
        "SOLUTION",
        "for the instructor",
        "solved output",
        'execution_count": 7',
        "2031",
        "widgets",
    ):
        assert gone not in text
    assert copy.cells[4].metadata["editable"] is False
    assert [cell.id for cell in copy.cells] == [
        cell.id for cell in source.cells if "instructor" not in str(cell.metadata)
    ]


def test_two_regions_in_one_cell_are_both_cut():
    notebook = lesson_notebook()
    region = "    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION"
    twice = f"def f():\n{region}\n\ndef g():\n{region}"
    notebook.cells[3] = solved(1, 1, twice)
    stub = '    raise NotImplementedError("exercise 1.1: your code here")'
    assert blank(notebook).cells[3].source == f"def f():\n{stub}\n\ndef g():\n{stub}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# BEGIN SOLUTION\nx = 1", "without"),
        ("# END SOLUTION\nx = 1", "out of order"),
        ("# BEGIN SOLUTION\n# BEGIN SOLUTION\n# END SOLUTION", "out of order"),
        ("x = 1", "no solution"),
    ],
)
def test_unbalanced_markers_are_refused(source, message):
    notebook = lesson_notebook()
    notebook.cells[3] = solved(1, 1, source)
    with pytest.raises(ValueError, match=message):
        blank(notebook)


def test_a_solution_outside_a_solution_cell_is_refused():
    notebook = lesson_notebook()
    notebook.cells[1].source = "# BEGIN SOLUTION\nx = 1\n# END SOLUTION"
    with pytest.raises(ValueError, match="outside a solution cell"):
        blank(notebook)


def test_the_solution_comes_from_the_source_notebook(tmp_path, course):
    assert solution("1.1", tmp_path / "notebooks") == 'def double(x):\n    """Twice x."""\n    return 2 * x'
    with pytest.raises(CourseError, match=r"no exercise 7\.7.*1\.1, 1\.2, 2\.1, 2\.2"):
        solution("7.7", tmp_path / "notebooks")


def test_the_courses_own_lessons_have_numbers_of_their_own():
    if not list(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        pytest.skip("no lessons are written yet")
    numbers = [lesson.number for lesson in lessons()]
    assert numbers == sorted(set(numbers))
