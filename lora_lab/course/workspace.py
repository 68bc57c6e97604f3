"""The learner's workspace: blanks are laid out in it, and what the learner wrote in it is never overwritten.

What happens to a lesson's notebook when the course is laid out again:

    not there                                    written
    same sources as the lesson                   left
    an older blank, neither edited nor run       replaced by the newer blank
    edited or run, lesson unchanged since        left
    edited or run, lesson changed since          left; the new blank is put beside it as NN_name.new.ipynb
    unreadable                                   left; a fresh blank is put beside it

"Edited" is judged on the sources of the cells, for opening and saving a notebook changes all the rest. Each blank
carries the fingerprint of its own sources in its metadata, so that after a kill between two writes, or with the
manifest lost, the notebooks themselves still say what they were made from.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lora_lab import paths
from lora_lab.course.files import CourseError, explain, locked, read_json, write_atomically
from lora_lab.course.notebooks import Lesson, blank, lessons

_KEPT = "Your work in it is untouched"
# What this interpreter's kernel says of itself. With anything else JupyterLab would call a notebook changed, and ask
# whether to save it, as soon as it was opened.
_LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": platform.python_version(),
}


@dataclass
class Layout:
    """What `lay_out` did, as lists of file names; `beside` and `unreadable` map a kept file to its new neighbour."""

    workspace: Path
    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """What a learner should be told; empty if nothing changed."""
        told = list(self.notes)
        if self.added:
            told.append(f"New in your workspace: {', '.join(self.added)}.")
        if self.updated:
            told.append(f"Brought up to date (you had not worked in them yet): {', '.join(self.updated)}.")
        for name, new in self.beside.items():
            told.append(f"The lesson {name} has changed. {_KEPT}; the new version lies beside it as {new}.")
        for name, new in self.unreadable.items():
            fresh = f"; a fresh copy lies beside it as {new}" if new else ""
            told.append(f"{name} cannot be read as a notebook. It was left as it is{fresh}.")
        return told


@dataclass(frozen=True)
class Copy:
    """A notebook as it lies in the workspace. `origin` is the fingerprint of the blank it was made from, if known."""

    content: bytes
    fingerprint: str
    origin: str | None
    has_run: bool

    @property
    def untouched(self) -> bool:
        return self.fingerprint == self.origin and not self.has_run


@dataclass(frozen=True)
class Blank:
    """What a lesson's notebook should be: its text, stamped with the fingerprint of its sources."""

    name: str
    text: str
    fingerprint: str


def lay_out(workspace: Path, available: list[Lesson] | None = None) -> Layout:
    """Bring the learner's `workspace` up to the course's lessons, and say what was done. Safe to repeat, and to kill.

    Raises CourseError with a sentence when the folder is unfit, locked, read-only or its disk is full.
    """
    workspace = Path(workspace).expanduser().absolute()
    _refuse_unfit(workspace)
    blanks = [_stamped(lesson) for lesson in (lessons() if available is None else available)]
    try:
        with locked(workspace) as state:
            return _Desk(workspace, state).lay_out(blanks)
    except OSError as error:
        raise CourseError(explain(error, error.filename or workspace)) from error


def fingerprint(cells: Iterable[tuple[str, str]]) -> str:
    """A hash over the (type, source) of the cells: equal if and only if a reader would see the same cells."""
    plain = [[kind, source.replace("\r\n", "\n")] for kind, source in cells]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def _refuse_unfit(workspace: Path) -> None:
    real = workspace.resolve()
    for own in (paths.NOTEBOOKS.resolve(), paths.ROOT.resolve() / "lora_lab"):
        if real == own or own in real.parents:
            raise CourseError(f"{workspace} belongs to the course itself. Choose another folder for your workspace.")
    if real == paths.ROOT.resolve():
        raise CourseError(
            f"{workspace} is the course's own folder. Choose a folder in it, such as {real / 'workspace'}."
        )


def _stamped(lesson: Lesson) -> Blank:
    import nbformat

    notebook = blank(lesson.read())
    mark = fingerprint((cell.cell_type, cell.source) for cell in notebook.cells)
    notebook.metadata["language_info"] = _LANGUAGE
    notebook.metadata["lora_lab"] = {"lesson": lesson.stem, "blank": mark}
    return Blank(lesson.path.name, nbformat.writes(notebook) + "\n", mark)


class _Desk:
    """One laying-out, under the lock. The manifest remembers each file's origin and which blank was offered for it."""

    def __init__(self, workspace: Path, state: Path):
        self.workspace, self.state = workspace, state
        self.result = Layout(workspace)
        self.origins, self.offered = self._read_manifest()

    def lay_out(self, blanks: list[Blank]) -> Layout:
        before = (dict(self.origins), dict(self.offered))
        for each in blanks:
            self._place(each)
        if (self.origins, self.offered) != before or not (self.state / "manifest.json").exists():
            manifest = {"version": 1, "origins": self.origins, "offered": self.offered}
            write_atomically(self.state / "manifest.json", json.dumps(manifest, indent=1) + "\n", self.state)
        return self.result

    def _place(self, new: Blank) -> None:
        try:
            copy = self._read(new.name)
        except ValueError:
            self.result.unreadable[new.name] = self._put_beside(new) or ""
            return
        if copy is None:
            self._write(new, new.name)
            self.result.added.append(new.name)
        elif copy.fingerprint == new.fingerprint:
            self.origins[new.name] = new.fingerprint
        elif copy.untouched:
            self._replace(new, copy)
        else:
            self.result.kept.append(new.name)
            if copy.origin != new.fingerprint and (neighbour := self._put_beside(new)):
                self.result.beside[new.name] = neighbour

    def _replace(self, new: Blank, copy: Copy) -> None:
        """Swap an untouched old blank for the newer one, unless it was saved since we judged it."""
        if (self.workspace / new.name).read_bytes() == copy.content:
            self._write(new, new.name)
            self.result.updated.append(new.name)

    def _put_beside(self, new: Blank) -> str | None:
        """Offer a blank beside a kept notebook, once; the name it got, None if the learner has it or had it already."""
        for name in _neighbours(new.name):
            try:
                copy = self._read(name)
            except ValueError:
                continue
            if copy and new.fingerprint in (copy.fingerprint, copy.origin):
                return None  # it lies there already, perhaps with work in it
            if copy is None and self.offered.get(new.name) == new.fingerprint:
                return None  # the learner saw it and threw it away
            if copy is None or copy.untouched:
                self._write(new, name)
                self.offered[new.name] = new.fingerprint
                return name
        raise AssertionError("unreachable: the names never end")

    def _write(self, new: Blank, name: str) -> None:
        write_atomically(self.workspace / name, new.text, self.state)
        self.origins[name] = new.fingerprint

    def _read(self, name: str) -> Copy | None:
        """The notebook of this name, None if there is none. Raises ValueError if it cannot be read as a notebook."""
        try:
            content = (self.workspace / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:  # a folder of that name, or no right to read
            raise ValueError(str(error)) from None
        try:
            notebook = json.loads(content)
            cells = notebook["cells"]
            mark = fingerprint((cell["cell_type"], "".join(cell["source"])) for cell in cells)
            origin = notebook["metadata"].get("lora_lab", {}).get("blank") or self.origins.get(name)
            has_run = any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{name}: {error}") from None
        return Copy(content, mark, origin, has_run)

    def _read_manifest(self) -> tuple[dict[str, str], dict[str, str]]:
        """What was recorded; nothing, with a note, if it is damaged: the notebooks' own stamps then have to do."""
        try:
            manifest = read_json(self.state / "manifest.json") or {}
            origins, offered = dict(manifest.get("origins", {})), dict(manifest.get("offered", {}))
            if not all(isinstance(value, str) for value in (*origins.values(), *offered.values())):
                raise ValueError("manifest.json holds something other than fingerprints")
            return origins, offered
        except (ValueError, TypeError) as error:
            self.result.notes.append(f"The record of the workspace was damaged and has been made anew ({error}).")
            os.replace(self.state / "manifest.json", self.state / "manifest.damaged.json")
            return {}, {}


def _neighbours(name: str) -> Iterator[str]:
    """NN_name.new.ipynb, NN_name.new-2.ipynb, ..."""
    stem = name.removesuffix(".ipynb")
    yield f"{stem}.new.ipynb"
    number = 2
    while True:
        yield f"{stem}.new-{number}.ipynb"
        number += 1
