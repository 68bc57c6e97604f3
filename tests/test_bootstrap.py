"""course.py on machines that lack something: the right sentence, exit code 2, and nothing harmed.

No real environment is built here: that takes half a minute and a network. Sentences are tested through `main`, and
through real processes on a copy of course.py in a scratch folder.
"""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from scratch_clone import load_course, make_clone

from lora_lab.paths import ROOT

POSIX = pytest.mark.skipif(os.name == "nt", reason="fcntl and signals as on POSIX")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone")


@pytest.fixture
def course(clone: Path) -> ModuleType:
    return load_course(clone)


def start(clone: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(clone / "course.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or clone, timeout=60)


def without_environment(course: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "has_nvidia_gpu", lambda: False)


def test_it_parses_on_old_python_and_says_so(course: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    ast.parse((ROOT / "course.py").read_text(encoding="utf-8"), feature_version=(3, 6))
    monkeypatch.setattr(course.sys, "version_info", (3, 10, 13, "final", 0))
    monkeypatch.setattr(course, "ask", lambda command, timeout: "" if command[0] == "python3.12" else None)
    assert course.main(["start"]) == 2
    message = capsys.readouterr().err
    assert "Python 3.11 or newer is needed" in message
    assert "python3.12 course.py" in message
    monkeypatch.setattr(course, "ask", lambda command, timeout: None)
    assert course.main(["start"]) == 2
    assert "Install a newer one" in capsys.readouterr().err


def test_real_old_pythons_say_so() -> None:
    """Every Python older than 3.11 that can be found here."""
    found = [shutil.which(f"python3.{minor}") for minor in range(6, 11)]
    found += sorted(map(str, Path.home().glob(".pyenv/versions/3.[6-9]*/bin/python3")))
    old = [path for path in found if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0]
    if not old:
        pytest.skip("no old Python on this machine")
    for path in old:
        done = subprocess.run([path, str(ROOT / "course.py"), "start"], capture_output=True, text=True)
        assert (path, done.returncode) == (path, 2)
        assert "Python 3.11 or newer is needed, this is 3." in done.stderr
        assert "Traceback" not in done.stderr


def test_no_disk(course: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    without_environment(course, monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 1_100_000_000))
    assert course.main(["start"]) == 2
    message = capsys.readouterr().err
    assert f"{course.GIGABYTES['cpu']:.1f} GB are needed" in message
    assert "1.1 GB are free" in message
    assert not course.STAMP.exists()


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (PermissionError(13, "Permission denied", "/clone/.venv"), "may write to"),
        (OSError(30, "Read-only file system", "/clone/.venv"), "may write to"),
        (OSError(28, "No space left on device", "/clone/.venv"), "/clone/.venv: No space left on device."),
    ],
)
def test_a_folder_that_cannot_be_written(
    course: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys, error: OSError, word: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    without_environment(course, monkeypatch)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert course.main(["start"]) == 2
    assert word in capsys.readouterr().err


def test_python_without_venv(course: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    without_environment(course, monkeypatch)
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    assert course.main(["test"]) == 2
    version = "{}.{}".format(*sys.version_info)
    assert f"sudo apt install python{version}-venv" in capsys.readouterr().err


def test_a_file_named_venv_and_a_folder_that_is_none(
    course: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    without_environment(course, monkeypatch)
    course.VENV.write_text("")
    assert course.main(["start"]) == 2
    assert "is a file" in capsys.readouterr().err
    course.VENV.unlink()
    course.VENV.mkdir()
    (course.VENV / "thesis.txt").write_text("three years of work")
    assert course.main(["start"]) == 2
    assert "is not a virtual environment" in capsys.readouterr().err
    assert (course.VENV / "thesis.txt").read_text() == "three years of work"


def test_away_from_its_clone(clone: Path) -> None:
    (clone / "requirements.lock").unlink()
    done = start(clone, "start")
    assert done.returncode == 2
    assert "requirements.lock is not beside course.py" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["strat"],
        ["start", "--prot", "8888"],
        ["start", "--port", "http"],
        ["start", "--port", "99999"],
        ["start", "--port", "0"],
        ["start", "--port", "80"],
        ["test", "--torch", "gpu"],
        [],
    ],
)
def test_mistyped(clone: Path, arguments: list[str]) -> None:
    done = start(clone, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (clone / ".venv").exists()


def test_what_follows_test_goes_to_pytest_and_what_follows_start_to_the_course(course: ModuleType) -> None:
    options, rest = course.parse(["test", "--torch", "cpu", "-k", "merge and not slow", "-x", "--require-browser"])
    assert options.torch == "cpu"
    assert rest == ["-k", "merge and not slow", "-x", "--require-browser"]
    _, rest = course.parse(["start", "--no-browser", "--port", "9000", "--torch", "auto", "--workspace", "mine"])
    assert rest == ["--no-browser", "--port", "9000", "--workspace", "mine"]


def test_ctrl_c_and_a_failed_installer(course: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    without_environment(course, monkeypatch)
    monkeypatch.setattr(course, "remake", lambda: None)

    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "call", interrupted)
    assert course.main(["start"]) == 130
    assert "Run the same command again" in capsys.readouterr().err
    monkeypatch.setattr(subprocess, "call", lambda *_, **__: -9)
    assert course.main(["start"]) == 2
    assert "signal 9" in capsys.readouterr().err
    assert course.read_stamp()["state"] == "installing"  # so that the next run makes it anew


# Real processes


@POSIX
def test_from_any_folder_a_half_made_environment_is_made_anew(clone: Path, tmp_path: Path) -> None:
    """The installer here always fails: what comes before it, and what it is told, is what is looked at."""
    venv = clone / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("home = /gone\n")
    (venv / "bin" / "python").symlink_to("/gone/python3.11")
    (venv / "leftover").write_text("")
    done = start(clone, "start", "--torch", "cpu", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "what is there does not work" in done.stdout
    assert "installer --torch cpu --exact" in done.stdout
    assert not (venv / "leftover").exists()
    assert subprocess.run([venv / "bin" / "python", "-c", ""]).returncode == 0
    assert '"installing"' in (venv / "lora-lab.json").read_text()


@POSIX
def test_the_second_waits_while_the_first_or_what_it_started_lives(course: ModuleType, clone: Path) -> None:
    """The lock is held by a child of a killed course.py: an installer still at work must not be joined by a second."""
    course.VENV.mkdir()
    child = "import time; print('locked', flush=True); time.sleep(60)"
    holder = f"import fcntl, os, subprocess, sys\nf = open({str(course.LOCK)!r}, 'a')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
    holder += (
        f"os.set_inheritable(f.fileno(), True)\nsubprocess.call([sys.executable, '-c', {child!r}], close_fds=False)"
    )
    first = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert first.stdout.readline() == b"locked\n"
        first.kill()
        first.wait()
        with open(course.LOCK, "a") as file:
            assert course.try_lock(file) is False
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.stdout.close()
    deadline = time.monotonic() + 10
    with open(course.LOCK, "a") as file:
        while not course.try_lock(file):
            assert time.monotonic() < deadline
            time.sleep(0.05)
