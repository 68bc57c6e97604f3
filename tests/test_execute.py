"""Re-executing lessons: the same bytes twice, nothing of this machine, and a failing lesson left as it was."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lora_lab import paths
from lora_lab.course import execute

DRAW = """
import os, sys
from IPython.display import display
data = {"image/png": "aGVsbG8=", "text/plain": "a picture"}
data["application/vnd.jupyter.widget-view+json"] = {"model_id": "m"}
display(data, raw=True, metadata={"image/png": {"alt": "a picture of a greeting"}})
print(hash("lora"), os.environ["OMP_NUM_THREADS"], os.environ.get("MPLBACKEND", "").split(".")[-1])
"""
BAR = """
import sys, time
for step in range(3):
    sys.stdout.write(f"\\rstep {step}")
    sys.stdout.flush()
    time.sleep(0.01)
print()
"""


def write(path: Path, *sources: str) -> Path:
    cells = [
        new_code_cell(source.strip(), id=f"cell-{n}", metadata={"tags": ["kept"]}) for n, source in enumerate(sources)
    ]
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A lesson", id="head"), *cells]), path)
    return path


def test_twice_the_same_bytes_and_none_of_them_this_machines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = write(tmp_path / "00_a.ipynb", DRAW, BAR)
    second = Path(shutil.copy(first, tmp_path / "01_b.ipynb"))
    assert execute.main(["--check", str(first)]) == 1
    assert execute.main([str(first), str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert "outputs changed in cells [1, 2]" in capsys.readouterr().out
    assert execute.main(["--check", str(first)]) == 0

    notebook = nbformat.read(first, as_version=4)
    _, draw, bar = notebook.cells
    picture, printed = draw.outputs
    assert set(picture.data) == {"image/png", "text/plain"}  # the live part went
    assert picture.metadata == {"image/png": {"alt": "a picture of a greeting"}}
    assert printed.text.split()[1:] == ["2", "backend_inline"]
    assert bar.outputs[0].text == "step 2\n"
    assert draw.metadata == {"tags": ["kept"]}
    assert [cell.id for cell in notebook.cells] == ["head", "cell-0", "cell-1"]
    assert "version" not in notebook.metadata.language_info
    assert not list(tmp_path.glob("*.tmp"))


def test_a_failing_lesson_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "00_a.ipynb", "1 / 0")
    before = path.read_bytes()
    assert execute.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert execute.main(["--check", str(path)]) == 1


def test_prose_may_change_and_code_may_not(tmp_path: Path) -> None:
    notebook = nbformat.read(write(tmp_path / "a.ipynb", "x = 1", "y = 2"), as_version=4)
    before = execute.source_hash(notebook)
    notebook.cells[0].source = "# Another title"
    assert execute.source_hash(notebook) == before
    notebook.cells[1], notebook.cells[2] = notebook.cells[2], notebook.cells[1]
    assert execute.source_hash(notebook) != before


@pytest.mark.parametrize(
    "name", ["base/model.safetensors", "tasks/cipher.test.jsonl", "measurements/tasks.json", "measurements/new.json"]
)
def test_other_data_makes_outputs_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for word, folder in (("BASE", "base"), ("TASKS", "tasks"), ("MEASUREMENTS", "measurements")):
        monkeypatch.setattr(paths, word, tmp_path / folder)
        (tmp_path / folder).mkdir()
    for file in ("base/model.safetensors", "tasks/cipher.test.jsonl", "measurements/tasks.json"):
        (tmp_path / file).write_bytes(b"1\n2\n")
    code = 'read("tasks.json")\nread("new.json")'
    notebook = nbformat.read(write(tmp_path / "a.ipynb", code), as_version=4)
    execute.normalise(notebook)
    for cell in notebook.cells[1:]:
        cell.execution_count = 1
    (tmp_path / "measurements/of_another_lesson.json").write_bytes(b"whatever")
    (tmp_path / "tasks/cipher.test.jsonl").write_bytes(b"1\r\n2\r\n")  # as Windows may check it out
    (tmp_path / "tasks/.DS_Store").write_bytes(b"whatever")
    assert execute.stale(notebook) == ""
    (tmp_path / name).write_bytes(b"3\n")
    assert "the data it reads" in execute.stale(notebook)


def test_a_lesson_does_not_know_the_readers_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_LAB_WORKSPACE", str(tmp_path))
    path = write(tmp_path / "00_a.ipynb", "import os\nprint(os.environ.get('LORA_LAB_WORKSPACE'))")
    assert execute.main([str(path)]) == 0
    assert nbformat.read(path, as_version=4).cells[1].outputs[0].text == "None\n"


def test_normalise_takes_timings_and_states_and_keeps_the_rest(tmp_path: Path) -> None:
    notebook = nbformat.read(write(tmp_path / "a.ipynb", "x"), as_version=4)
    cell = notebook.cells[1]
    cell.metadata |= {"execution": {"shell.execute_reply": "2026"}, "nbgrader": {"grade_id": "ex-1-1"}}
    cell.outputs = [new_output("stream", name="stdout", text=""), new_output("stream", name="stdout", text="a\r\nb\n")]
    notebook.metadata |= {"widgets": {"state": {}}, "lora_lab": {"minutes": 30}, "language_info": {"version": "3.11.7"}}
    done = execute.normalise(notebook)
    assert done.cells[1].metadata == {"tags": ["kept"], "nbgrader": {"grade_id": "ex-1-1"}}
    assert [output.text for output in done.cells[1].outputs] == ["a\r\nb\n"]
    assert done.metadata.lora_lab.minutes == 30
    assert "widgets" not in done.metadata
    nbformat.validate(done)


def test_a_widget_that_leaves_nothing_to_see_is_refused(tmp_path: Path) -> None:
    notebook = nbformat.read(write(tmp_path / "a.ipynb", "x"), as_version=4)
    data = {execute.WIDGET: {"model_id": "m"}, "text/plain": "IntSlider(value=3)"}
    notebook.cells[1].outputs = [new_output("display_data", data=data)]
    with pytest.raises(ValueError, match="cell 1 shows a widget and no picture"):
        execute.normalise(notebook)


def test_a_notebook_that_is_not_there(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        execute.main(["no_such_lesson.ipynb"])
    assert stop.value.code == 2
    assert "no_such_lesson.ipynb" in capsys.readouterr().err
