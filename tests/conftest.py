"""What holds for every test: a fixed global seed, one thread, and no workspace of the reader's own."""

from pathlib import Path

import pytest
import torch
from lesson_fixtures import write_lessons

from lora_lab.course.workspace import lay_out


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    # On a busy machine two threads wait for each other: ten training steps of a tiny model took 15 s instead of 0.7 s.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that wants one sets it; exercises passed in a test must not be recorded as the reader's."""
    monkeypatch.delenv("LORA_LAB_WORKSPACE", raising=False)


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is no workspace: a check that is passed here must not count as the reader's progress."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def course(tmp_path: Path):
    """Two small lessons, as the course would bring them."""
    return write_lessons(tmp_path / "notebooks")


@pytest.fixture
def desk(tmp_path: Path, course) -> Path:
    """A workspace with both lessons laid out."""
    lay_out(tmp_path / "desk", course)
    return tmp_path / "desk"
