"""What every file of the workspace has in common: where it lies, how it is locked, how it is written.

    workspace/NN_name.ipynb      the learner's
    workspace/.lora-lab/         ours: lock, manifest.json, progress.json, jupyter/, and half-written files (*.tmp)

A file appears whole or not at all: it is written in `.lora-lab` and then moved with `os.replace`.
"""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_lab import paths

STATE = ".lora-lab"
ENVIRONMENT_VARIABLE = "LORA_LAB_WORKSPACE"


class CourseError(Exception):
    """A sentence for the reader: what is wrong and what to do. The command line prints it and exits with 2."""


def default_workspace() -> Path:
    """The folder that `lora-lab start` uses when nothing else is said: $LORA_LAB_WORKSPACE, or `workspace/`."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named).expanduser().absolute() if named else paths.ROOT / "workspace"


def find_workspace(start: Path | None = None) -> Path | None:
    """The workspace we are in: $LORA_LAB_WORKSPACE if it exists, else the nearest folder upwards with `.lora-lab`."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        folder = Path(named).expanduser().absolute()
        return folder if folder.is_dir() else None
    try:
        here = (start or Path.cwd()).absolute()
    except FileNotFoundError:  # the current folder was deleted under us
        return None
    return next((folder for folder in (here, *here.parents) if (folder / STATE).is_dir()), None)


def explain(error: OSError, path: Path | str) -> str:
    """One sentence for an operating-system error on `path`: what it means here and what to do."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return (
            f"The disk is full: {path} could not be written. Nothing of yours was changed. "
            "Free some space and try again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{path} may not be read or written ({error.strerror}). Nothing of yours was changed. "
            "Choose another folder with --workspace DIR, or ask for the rights to this one."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path} should be a folder, but a file of that name is in the way. Rename it, or use --workspace DIR."
    return f"{path} could not be read or written: {error.strerror or error}."


def write_atomically(path: Path, text: str, scratch: Path) -> None:
    """Write `text` to `path` so that a reader, or a power cut, sees the old file or the new one and nothing between.

    path: the file to make or replace. scratch: a folder on the same disk, where the unfinished file lies.
    Raises OSError (full disk, read-only folder); `path` is then as it was and nothing is left behind.
    """
    unfinished = scratch / f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with open(unfinished, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the new name
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise


@contextmanager
def locked(workspace: Path, timeout: float = 30.0) -> Iterator[Path]:
    """Hold the workspace's lock; yields its `.lora-lab` folder, cleared of what a killed process left half-written.

    The lock is the operating system's (filelock): it ends with the process that holds it, however that dies.
    Raises CourseError if another process holds it for `timeout` seconds, OSError if the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    state = workspace / STATE
    state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(state / "lock")
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise CourseError(
            f"Another lora-lab has been working in {workspace} for {timeout:.0f} s. "
            "Wait for it to end, or stop it, and try again."
        ) from None
    try:
        for leftover in state.glob("*.tmp"):
            with suppress(OSError):
                leftover.unlink()
        yield state
    finally:
        lock.release()


def read_json(path: Path) -> dict | None:
    """The JSON object in `path`, or None if there is no such file. Raises ValueError if it holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content
