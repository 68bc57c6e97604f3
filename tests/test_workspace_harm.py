"""The workspace is never harmed: by a kill at any moment, by two at once, by a full disk, by a read-only one.

Each of these is done for real: processes are killed with SIGKILL at every step, disks are filled and mounted.
"""

import builtins
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from lesson_fixtures import POSIX, RIGHT, children, snapshot, solve, updated, write_lessons

from lora_lab.course import files
from lora_lab.course.files import STATE, CourseError, locked
from lora_lab.course.notebooks import lessons
from lora_lab.course.workspace import lay_out

# --- killed ---------------------------------------------------------------------------------------------------


TOUCHES_THE_DISK = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "fcntl.flock"}


def killed_at_step(number: int, action) -> bool:
    """Run `action` in a child that kills itself with SIGKILL before its n-th step on the disk; whether it got there."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event, _arguments):
            nonlocal left
            if event in TOUCHES_THE_DISK:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)  # it stays for good, but only in the child
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"failed by itself before step {number}"
    return os.WIFSIGNALED(status)


@POSIX
def test_killed_at_any_step_nothing_is_lost_and_the_next_run_heals(tmp_path):
    """An update of three notebooks: one edited, one untouched, one new; killed before every step on the disk."""
    write_lessons(tmp_path / "notebooks")
    lay_out(tmp_path / "start", lessons(tmp_path / "notebooks"))
    solve(tmp_path / "start" / "01_doubling.ipynb", *RIGHT)
    mine = (tmp_path / "start" / "01_doubling.ipynb").read_bytes()
    course = write_lessons(tmp_path / "notebooks", count=3, extra="Prose that was improved.")
    goal = tmp_path / "goal"
    shutil.copytree(tmp_path / "start", goal)
    lay_out(goal, course)
    expected = snapshot(goal)
    kills = 0
    while True:
        desk = tmp_path / "desk"
        shutil.copytree(tmp_path / "start", desk)
        alive = not killed_at_step(kills + 1, lambda desk=desk: lay_out(desk, course))
        after = snapshot(desk)
        assert after["01_doubling.ipynb"] == mine
        for content in after.values():
            json.loads(content)  # whole, never half-written
        assert set(snapshot(tmp_path / "start")) <= set(after) <= set(expected), "nothing missing, nothing stray"
        lay_out(desk, course)
        assert snapshot(desk) == expected
        assert not list((desk / STATE).glob("*.tmp"))
        shutil.rmtree(desk)
        if alive:
            break
        kills += 1
    assert kills > 20


@POSIX
def test_a_dead_process_does_not_keep_the_lock(tmp_path, desk, course):
    def hold_and_die():
        with locked(desk):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        hold_and_die()
    os.waitpid(child, 0)
    with locked(desk, timeout=1):
        pass


# --- two at once ----------------------------------------------------------------------------------------------


@POSIX
def test_two_at_once(tmp_path, desk):
    solve(desk / "01_doubling.ipynb", *RIGHT)
    mine = (desk / "01_doubling.ipynb").read_bytes()
    old = write_lessons(tmp_path / "old", count=6)
    new = write_lessons(tmp_path / "notebooks", count=6, extra="Prose that was improved.")

    def fight():
        for available in (new, old, new, old, new):
            lay_out(desk, available)

    assert children(fight, fight, fight) == [0, 0, 0]
    assert (desk / "01_doubling.ipynb").read_bytes() == mine
    names = {f"0{number}_doubling.ipynb" for number in range(1, 7)} | {"01_doubling.new.ipynb"}
    assert set(snapshot(desk)) == names
    assert all(b"improved" in content for name, content in snapshot(desk).items() if name != "01_doubling.ipynb")


@POSIX
def test_a_lock_that_is_held_is_told(desk):
    def hold():
        with locked(desk):
            time.sleep(1)

    def meet():
        time.sleep(0.3)
        with pytest.raises(CourseError, match="Another lora-lab"), locked(desk, timeout=0.1):
            pass

    assert children(hold, meet) == [0, 0]


# --- full and read-only disks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_disk_that_fills_up_harms_nothing(tmp_path, desk, monkeypatch, call):
    """ENOSPC from each of the calls that can meet it."""
    solve(desk / "01_doubling.ipynb", *RIGHT)
    before = snapshot(desk)
    course = updated(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "open":
            real = builtins.open
            patch.setattr(
                files,
                "open",
                lambda path, mode="r", **k: full() if "x" in mode else real(path, mode, **k),
                raising=False,
            )
        elif call == "write":
            real = builtins.open

            def half(path, mode="r", **k):
                file = real(path, mode, **k)
                if "x" in mode:
                    file.write("half a noteb")
                    file.write = full
                return file

            patch.setattr(files, "open", half, raising=False)
        else:
            patch.setattr(os, call, full)
        with pytest.raises(CourseError, match="disk is full"):
            lay_out(desk, course)
    assert snapshot(desk) == before
    assert not list((desk / STATE).glob("*.tmp"))
    assert lay_out(desk, course).updated == ["02_doubling.ipynb"]


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a small disk; skips where that is not permitted."""
    made = []

    def mount(folder: Path, options: str) -> None:
        folder.mkdir(exist_ok=True)
        if not sys.platform.startswith("linux") or shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("mounting needs Linux and root")
        kind = ["-o", options] if "remount" in options else ["-t", "tmpfs", "-o", options, "none"]
        done = subprocess.run(["mount", *kind, str(folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting is not permitted here")
        if "remount" not in options:
            made.append(folder)

    yield mount
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(tmp_path, course, mounted):
    desk = tmp_path / "disk"
    mounted(desk, "size=64k")
    lay_out(desk, course)
    solve(desk / "01_doubling.ipynb", *RIGHT)
    with suppress_full(), open(desk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    before = snapshot(desk)
    with pytest.raises(CourseError, match="disk is full"):
        lay_out(desk, updated(tmp_path))
    assert snapshot(desk) == before
    (desk / "filler").unlink()
    assert lay_out(desk, lessons(tmp_path / "notebooks")).updated == ["02_doubling.ipynb"]


def test_a_really_read_only_disk(tmp_path, course, mounted):
    desk = tmp_path / "disk"
    mounted(desk, "size=1m")
    lay_out(desk, course)
    solve(desk / "01_doubling.ipynb", *RIGHT)
    before = snapshot(desk)
    mounted(desk, "remount,ro")
    with pytest.raises(CourseError, match="--workspace DIR"):
        lay_out(desk, updated(tmp_path))
    assert snapshot(desk) == before


@POSIX
def test_a_folder_that_is_not_ours():
    with tempfile.TemporaryDirectory() as open_to_all:  # pytest's own folder is closed to other users
        os.chmod(open_to_all, 0o755)
        course = write_lessons(Path(open_to_all) / "notebooks")
        desk = Path(open_to_all) / "desk"
        desk.mkdir(mode=0o555)

        def try_it():
            if os.geteuid() == 0:
                os.setuid(65534)  # root may write everywhere
            with pytest.raises(CourseError, match="--workspace DIR"):
                lay_out(desk, course)

        assert children(try_it) == [0]
        assert not any(desk.iterdir())


class suppress_full:
    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        return isinstance(error, OSError) and error.errno == errno.ENOSPC
