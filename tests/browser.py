"""For tests with a browser: a JupyterLab of its own in a temporary folder, and headless Chromium.

The reader's own Jupyter settings are neither read nor written; everything listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_lab.course import browser

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def require_chromium() -> str:
    """Path of Chromium; without one the test is skipped. Where that may not be, lora_lab.course.suite makes it fail."""
    return browser.find() or pytest.skip("no Chromium on this machine: the widgets are NOT tested in a browser")


class Lab:
    """A running JupyterLab. `address(name)` opens a notebook, `wait_until_idle(name)` waits for its kernel."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token

    def address(self, notebook: str) -> str:
        return f"http://127.0.0.1:{self.port}/lab/tree/{notebook}?token={self.token}"

    def api(self, path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/{path}")
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def wait_until_idle(self, notebook: str) -> None:
        """Running a cell before the kernel is idle does nothing at all, so this comes first."""

        def idle() -> bool:
            sessions = [s for s in self.api("sessions") if s["path"] == notebook]
            return bool(sessions) and all(s["kernel"]["execution_state"] == "idle" for s in sessions)

        wait_for(idle, f"the kernel of {notebook} to be idle", seconds=40)


@contextlib.contextmanager
def jupyterlab(folder: Path, dark: bool = False) -> Iterator[Lab]:
    """JupyterLab on the notebooks in `folder`; its settings go to a folder beside it."""
    home = folder.parent / f"{folder.name}-jupyter"
    announcements = "@jupyterlab/apputils-extension:announcements"  # would cover the page with a question
    write(home / "config/labconfig/page_config.json", {"disabledExtensions": {announcements: True}})
    theme = {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}
    write(home / "settings/@jupyterlab/apputils-extension/themes.jupyterlab-settings", theme)
    lab = Lab(free_port(), secrets.token_hex(16))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={lab.port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    own |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
    environment = {**os.environ, **{name: str(home / path) for name, path in own.items()}}
    # The token stays out of the command line, which every user of the machine can read.
    environment |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_TOKEN": lab.token}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(lab, process, home / "log"), "JupyterLab to answer", seconds=40)
        yield lab
    finally:
        process.terminate()
        try:
            process.wait(15)  # it stops its kernels first
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(lab: Lab, process: subprocess.Popen, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"JupyterLab ended with code {process.returncode}:\n{log.read_text()[-2000:]}")
    try:
        return isinstance(lab.api("status"), dict)
    except (urllib.error.URLError, ConnectionError):
        return False


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of code cells."""
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    content = [{**code, "id": f"cell-{i}", "source": source} for i, source in enumerate(cells)]
    write(path, {"cells": content, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.2)
