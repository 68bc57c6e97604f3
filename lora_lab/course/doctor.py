"""The doctor: what works on this machine, and what to do about what does not.

    doctor()             everything, with what was found; draws itself as the last line of a cell
    doctor(brief=True)   names and states only: the same on every healthy machine

Every row is the outcome of really trying: importing the package, loading the model, writing to the disk.
"""

import html
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_lab import paths
from lora_lab.course.files import default_workspace, find_workspace

OK, WARN, FAIL = "ok", "warn", "fail"
_MARKS = {OK: "✓", WARN: "!", FAIL: "✗"}
_GIB = 2**30
_CONDA = (Path(sys.prefix) / "conda-meta").is_dir()
_REPAIR = "conda env update --file environment.yml" if _CONDA else "python3 course.py start"
_REINSTALL = f"Run `{_REPAIR}` in the course's folder: it repairs the installation."
_RESTORE = "The clone is incomplete: `git status` shows what is missing, `git restore data` brings it back."
_RESTORE_PROJECT = "The clone is incomplete: `git restore pyproject.toml` brings it back."
# What the notebooks import, and the extra in pyproject.toml whose range each must meet.
_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "transformers",
    "peft",
    "jupyterlab",
    "ipykernel",
    "ipywidgets",
    "matplotlib",
)


@dataclass(frozen=True)
class Row:
    """One thing that was tried. status: "ok", "warn" (the course runs) or "fail" (parts of it will not)."""

    name: str
    status: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The rows, as text (`str`) and as HTML (in a notebook). `brief` leaves out what differs between machines."""

    rows: list[Row]
    brief: bool = False

    @property
    def usable(self) -> bool:
        """Whether nothing failed."""
        return all(row.status != FAIL for row in self.rows)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = []
        for row in self.rows:
            found = row.status if self.brief else row.found
            lines.append(f"{_MARKS[row.status]} {row.name:<{width}}  {found}".rstrip())
            if row.advice and row.status != OK:
                lines.append(f"  {'':<{width}}  -> {row.advice}")
        lines.append(f"\n{self._verdict()}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A table in the page's own colours: readable in light and in dark themes."""
        body = ""
        for row in self.rows:
            found = html.escape(row.status if self.brief else row.found)
            if row.advice and row.status != OK:
                found += f"<br><i>{html.escape(row.advice)}</i>"
            cells = (_MARKS[row.status], html.escape(row.name), found)
            body += "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"
        return f"<table><tbody>{body}</tbody></table><p>{self._verdict()}</p>"

    def _verdict(self) -> str:
        failed = [row.name for row in self.rows if row.status == FAIL]
        if failed:
            return f"Not ready yet: {', '.join(failed)}."
        warned = [row.name for row in self.rows if row.status == WARN]
        return f"Ready, with a remark on {', '.join(warned)}." if warned else "Everything the course needs works."


def doctor(brief: bool = False) -> Diagnosis:
    """Try everything the course needs. Takes a few seconds, most of them for loading the base model."""
    return Diagnosis(list(_rows()), brief)


def _rows() -> Iterator[Row]:
    yield _python()
    ranges, unknown = _ranges()
    yield from unknown
    for package in _PACKAGES:
        yield _package(package, ranges)
    for name, look in (
        ("processor", _processor),
        ("accelerator", _accelerator),
        ("memory", _memory),
        ("disk", _disk),
        ("workspace", _workspace),
        ("base model", _base_model),
        ("tasks", _tasks),
        ("network", _network),
    ):
        yield _tried(name, look)


def _tried(name: str, look: Callable[[], tuple[str, str, str]]) -> Row:
    """A row whose look may itself fall over: that is then the finding."""
    try:
        status, found, advice = look()
    except Exception as error:  # whatever a broken installation raises
        return Row(name, FAIL, f"{type(error).__name__}: {_first_line(error)}", _REINSTALL)
    return Row(name, status, found, advice)


def _python() -> Row:
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    good = sys.version_info >= (3, 11)
    return Row("python", OK if good else FAIL, found, "The course needs Python 3.11 or newer.")


def _ranges() -> tuple[dict[str, str], list[Row]]:
    """The required ranges; without them, none and the row that says so."""
    try:
        return required_ranges(), []
    except FileNotFoundError:
        return {}, [
            Row("versions", WARN, "pyproject.toml is missing: the versions cannot be compared", _RESTORE_PROJECT)
        ]
    except Exception as error:  # a damaged pyproject.toml, `packaging` not installed
        return {}, [
            Row("versions", WARN, f"cannot be compared: {type(error).__name__}: {_first_line(error)}", _REINSTALL)
        ]


def required_ranges() -> dict[str, str]:
    """The version range of each package that pyproject.toml names, such as {"torch": "<2.14,>=2.11"}."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    return {wanted.name.lower(): str(wanted.specifier) for wanted in map(Requirement, listed)}


def _package(name: str, ranges: dict[str, str]) -> Row:
    wanted = ranges.get(name, "")
    try:
        module = importlib.import_module(name)
        version = importlib.metadata.version(name)
        fits = not wanted or _fits(version, wanted)
    except ModuleNotFoundError as error:
        return Row(name, FAIL, f"not installed ({error.name} is missing)", _REINSTALL)
    except Exception as error:  # a library that does not load, a half-installed package
        return Row(name, FAIL, f"installed, but does not load: {_first_line(error)}", _REINSTALL)
    if not fits:
        return Row(name, WARN, f"{version}, outside the tested range {wanted}", _REINSTALL)
    return Row(name, OK, getattr(module, "__version__", version))


def _fits(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def _processor() -> tuple[str, str, str]:
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    slow = "The lessons run, but slower than they say." if cores < 2 else ""
    return (WARN if slow else OK), f"cores: {cores}, threads that torch uses: {threads}", slow


def _accelerator() -> tuple[str, str, str]:
    """None is needed. A GPU that torch cannot see is worth a remark."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return OK, f"{torch.cuda.get_device_name()}, {free / _GIB:.0f} of {total / _GIB:.0f} GiB free", ""
    if torch.backends.mps.is_available():
        return OK, "Apple GPU (MPS)", ""
    if shutil.which("nvidia-smi"):
        install = "pip install --force-reinstall torch" if _CONDA else "python3 course.py start --torch cuda"
        advice = f"`{install}` installs the build of torch for it. The course runs without."
        return WARN, "an NVIDIA driver is installed, but this torch does not see a GPU", advice
    return OK, "none; none is needed", ""


def _memory() -> tuple[str, str, str]:
    free = available_memory()
    if free is None:
        return OK, "cannot be told on this system", ""
    few = (
        "The lessons need about 2 GiB. Close other programs, and shut down kernels you no longer use."
        if free < 2 * _GIB
        else ""
    )
    return (WARN if few else OK), f"{free / _GIB:.0f} GiB free", few


def available_memory() -> int | None:
    """Bytes that programs may still take: psutil's estimate, lowered by the container's limit. None if unknown."""
    try:
        import psutil
    except ImportError:  # comes with ipykernel
        return None
    free = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or "max"
        return free


def _disk() -> tuple[str, str, str]:
    folder = find_workspace() or default_workspace()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    few = "Free some space: notebooks with their pictures, and adapters, are saved there." if free < _GIB // 4 else ""
    return (WARN if few else OK), f"{free / _GIB:.1f} GiB free for your workspace", few


def _workspace() -> tuple[str, str, str]:
    folder = find_workspace() or default_workspace()
    if not folder.is_dir():
        return OK, "none yet; `lora-lab start` makes one", ""
    from lora_lab.course.files import CourseError, explain, locked

    try:
        with locked(folder, timeout=5):
            return OK, f"{folder.name}, can be written", ""
    except OSError as error:
        return FAIL, explain(error, folder.name), "Use another folder: lora-lab start --workspace DIR"
    except CourseError as error:
        return WARN, str(error).replace(str(folder), folder.name), "Try again when it is done."


def _base_model() -> tuple[str, str, str]:
    """Load it and let it speak: files that are there can still be broken."""
    if not (paths.BASE / "config.json").is_file():
        return FAIL, "data/base is missing", _RESTORE
    from lora_lab.models import answer, load_base

    model, tokenizer = load_base(paths.BASE)
    said = answer(model, tokenizer, ["Hello"], max_new_tokens=4)
    size = sum(parameter.numel() for parameter in model.parameters())
    if len(said) != 1:
        return FAIL, "it loads but does not answer", _REINSTALL
    return OK, f"{size / 1e6:.1f} million parameters, loads and answers", ""


def _tasks() -> tuple[str, str, str]:
    from lora_lab.tasks import TASKS, load

    try:
        empty = [name for name in TASKS if not load(name, "train", limit=1)]
    except FileNotFoundError:
        return FAIL, "files of data/tasks are missing", _RESTORE
    if empty or not TASKS:
        return FAIL, f"no examples in {', '.join(empty) or 'data/tasks'}", _RESTORE
    return OK, f"{len(TASKS)} tasks: {', '.join(TASKS)}", ""


def _network() -> tuple[str, str, str]:
    """Never tried: the course works without. What is worth knowing is whether downloads were switched off."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return OK, "not needed; downloads from the Hugging Face Hub are switched off (HF_HUB_OFFLINE)", ""
    return OK, "not needed; only for models from the Hugging Face Hub", ""


def _first_line(error: Exception) -> str:
    """The first line of an error, without this machine's folders: it may end up in a saved notebook."""
    text = (str(error).strip().split("\n") or [""])[0]
    for folder, name in ((str(paths.ROOT), "."), (sys.prefix, "the environment"), (str(Path.home()), "~")):
        text = text.replace(folder, name) if len(folder) > 1 else text
    return text[:200]
