"""Start JupyterLab on the workspace, for this machine only, and end it cleanly.

JupyterLab runs in a child process (server_process.py) that lives as long as a pipe from us stays open. Ctrl-C, a
closed terminal or even a killed parent all close that pipe; the child then stops its kernels and itself. Nothing
asks "are you sure".
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from lora_lab.course.files import STATE, CourseError, explain
from lora_lab.course.jupyter import environment

HOST = "127.0.0.1"
FIRST_PORT = 8888
PROGRAM = Path(__file__).with_name("server_process.py")
FIRST_PAGE = "00_start_here.ipynb"


def serve(workspace: Path, port: int | None = None, browser: bool = True) -> None:
    """Run JupyterLab on `workspace` until Ctrl-C or until it is shut down from its own menu.

    port: the one to use; by default the first free one from 8888. Raises CourseError if that port is taken, or if
    JupyterLab is missing or does not come up.
    """
    _refuse_without_jupyterlab()
    home = workspace / STATE / "jupyter"
    token = secrets.token_hex(24)
    try:
        variables = environment(workspace, home) | {"JUPYTER_TOKEN": token}  # not on the command line: `ps` shows that
    except OSError as error:
        raise CourseError(explain(error, home)) from error
    child, patience = None, 0.0  # a server that is not up yet has no kernels to stop: it is simply ended
    with _signals_end_the_program():
        try:
            while True:
                chosen = _free_port(port)
                print("Starting JupyterLab ...", flush=True)
                log = home / f"jupyterlab-{chosen}.log"
                child = _start(workspace, chosen, variables, log)
                if _comes_up(child, chosen, token):
                    break
                if port or _is_free(chosen):
                    raise CourseError(f"JupyterLab did not come up. Its last words, from {log}:\n{_last_words(log)}")
                _stop(child, patience)  # another program took the port between our look and our server's: look again
            patience = 20.0
            _announce(workspace, chosen, token, browser)
            while child.poll() is None:  # not wait(): on Windows that would not hear Ctrl-C
                time.sleep(0.3)
            print("JupyterLab was shut down.")
        except KeyboardInterrupt:
            print("\nStopping JupyterLab and its kernels ...", flush=True)
        finally:
            if child:
                _stop(child, patience)
    print("Stopped. `lora-lab start` brings you back; your work is saved in the workspace.")


def _refuse_without_jupyterlab() -> None:
    from importlib.util import find_spec

    for package in ("jupyterlab", "ipykernel"):
        if find_spec(package) is None:
            raise CourseError(
                f"{package} is not installed in {sys.prefix}. Run `python3 course.py start`, which installs it."
            )


def _free_port(wanted: int | None) -> int:
    """`wanted` if it is free, else the first free port from 8888. Raises CourseError if there is none."""
    for port in [wanted] if wanted else range(FIRST_PORT, FIRST_PORT + 100):
        if _is_free(port):
            return port
    if wanted:
        raise CourseError(
            f"Port {wanted} is taken by another program, or not yours to use. Leave --port away to get a free one."
        )
    raise CourseError(f"No free port between {FIRST_PORT} and {FIRST_PORT + 99}. Name one with --port N.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name != "nt":  # elsewhere it means "not taken", on Windows "take it from whoever has it"
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _start(workspace: Path, port: int, variables: dict[str, str], log: Path) -> subprocess.Popen:
    # -P: a learner's own torch.py in the workspace must not become the server's.
    command = [sys.executable, "-P", str(PROGRAM), HOST, str(port), str(workspace)]
    # In a group of its own, so that Ctrl-C reaches us alone and we decide how the child ends.
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    try:
        with open(log, "w", encoding="utf-8") as out:
            pipes = {"stdin": subprocess.PIPE, "stdout": out, "stderr": out}
            return subprocess.Popen(command, **pipes, env=variables, cwd=workspace, **group)
    except OSError as error:
        raise CourseError(explain(error, log)) from error


def _comes_up(child: subprocess.Popen, port: int, token: str, seconds: float = 180) -> bool:
    """Wait until the server answers to our token; False if it ended, or stayed silent for `seconds`."""
    request = urllib.request.Request(f"http://{HOST}:{port}/api/status", headers={"Authorization": f"token {token}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of 127.0.0.1
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and child.poll() is None:
        with suppress(OSError, HTTPException), direct.open(request, timeout=5):
            return True
        time.sleep(0.2)
    return False


def _last_words(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:])


def _announce(workspace: Path, port: int, token: str, browser: bool) -> None:
    page = f"lab/tree/{FIRST_PAGE}" if (workspace / FIRST_PAGE).exists() else "lab"
    address = f"http://{HOST}:{port}/{page}?token={token}"
    print(f"\nJupyterLab is running. Its address:\n\n    {address}\n\nCtrl-C in this window ends it.", flush=True)
    if browser and not _opened(address):
        print("No browser could be opened from here: copy the address into yours.", flush=True)


def _opened(address: str) -> bool:
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False


def _stop(child: subprocess.Popen, seconds: float) -> None:
    """Let the child end by itself for `seconds`; after that, or at a second Ctrl-C, kill it. Its kernels follow it."""
    with suppress(OSError):
        child.stdin.close()
    try:
        child.wait(timeout=seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


class _signals_end_the_program:
    """While this lasts, SIGTERM and a closed terminal end the program as Ctrl-C does."""

    def __enter__(self) -> None:
        def interrupt(*_):
            raise KeyboardInterrupt

        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        self.before = {getattr(signal, name): signal.signal(getattr(signal, name), interrupt) for name in names}

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
