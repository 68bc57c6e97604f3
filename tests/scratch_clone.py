"""A scratch clone with course.py in it, and course.py as a module: for the tests of the bootstrap."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

from lora_lab.paths import ROOT

# The installer of a scratch clone only says how it was called, and fails.
INSTALLER = "import sys; print('installer', *sys.argv[1:]); sys.exit(3)"


def make_clone(folder: Path) -> Path:
    """What course.py needs to start deciding, and nothing else."""
    (folder / "lora_lab" / "course").mkdir(parents=True)
    for name in ("course.py", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "lora_lab" / "course" / "install.py").write_text(INSTALLER)
    return folder


def load_course(clone: Path) -> ModuleType:
    """That clone's course.py."""
    spec = importlib.util.spec_from_file_location("course_under_test", clone / "course.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
