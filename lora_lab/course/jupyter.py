"""Our own corner for Jupyter, in the workspace: the reader's ~/.jupyter is neither read nor written.

    .lora-lab/jupyter/config/   settings and layout of this course's JupyterLab; no announcements
    .lora-lab/jupyter/data/     a kernel named python3 that is this very interpreter

A kernelspec named python3 that belongs to another environment would otherwise run the lessons without the course's
packages, and a damaged personal configuration would stop JupyterLab from starting.
"""

import json
import os
import sys
from pathlib import Path

from lora_lab.course.files import ENVIRONMENT_VARIABLE, write_atomically

KERNEL = "python3"
# Announcements ask at the first start whether they may phone home. nbgrader and jupytext come with the tests and the
# instructor's tools: a learner's JupyterLab looks the same with and without them, and starts three seconds sooner.
_NOT_SHOWN = ("@jupyterlab/apputils-extension:announcements", "@jupyter/nbgrader", "jupyterlab-jupytext")
_NOT_LOADED = (
    "jupyterlab_jupytext",
    "nbgrader.server_extensions.assignment_list",
    "nbgrader.server_extensions.course_list",
    "nbgrader.server_extensions.formgrader",
    "nbgrader.server_extensions.validate_assignment",
)


def environment(workspace: Path, home: Path) -> dict[str, str]:
    """The environment for a Jupyter process that works in `workspace`; its own files go under `home`.

    Writes the kernelspec and the page configuration. Raises OSError if `home` cannot be written.
    """
    config, data = home / "config", home / "data"
    python = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {
        "argv": python,
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
    }
    _write_json(data / "kernels" / KERNEL / "kernel.json", kernel)
    _write_json(config / "labconfig" / "page_config.json", {"disabledExtensions": dict.fromkeys(_NOT_SHOWN, True)})
    extensions = {"ServerApp": {"jpserver_extensions": dict.fromkeys(_NOT_LOADED, False)}}
    _write_json(config / "jupyter_server_config.json", extensions)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER_", "JUPYTERLAB_"))},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(data),
        "JUPYTER_RUNTIME_DIR": str(data / "runtime"),
        "JUPYTER_PATH": str(data),  # searched before every other place
        ENVIRONMENT_VARIABLE: str(workspace),
    }


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1) + "\n", path.parent)
