"""`lora-lab start`: JupyterLab comes up on the workspace, for this machine only, and really goes again."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
from lesson_fixtures import pretend_course

from lora_lab import cli
from lora_lab.course import serve


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A course of two small lessons in place of the real one."""
    return pretend_course(tmp_path, monkeypatch)


class Started:
    """`lora-lab start` in a child process, up and answering."""

    def __init__(self, *arguments, **environment):
        command = [sys.executable, "-m", "lora_lab.cli", "start", "--no-browser", *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
        self.process = subprocess.Popen(command, stdout=-1, stderr=-2, text=True, env=kept | environment)
        self.said = ""
        while "Ctrl-C in this window" not in self.said:
            line = self.process.stdout.readline()
            assert line, f"it ended: {self.said}"
            self.said += line
        self.address = re.search(r"http://\S+", self.said)[0]
        self.base, self.token = re.match(r"(http://[^/]+).*token=(\w+)", self.address).groups()

    def ask(self, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"token {self.token}"}
        with urllib.request.urlopen(urllib.request.Request(self.base + path, data, headers), timeout=30) as answer:
            return json.loads(answer.read())

    def abandon(self) -> None:
        """Whatever has become of it, leave nothing behind."""
        with self.process:  # closes its pipes and waits for it
            self.process.kill()

    def end(self, number=signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=90)
        return self.process.returncode, rest


def gone(processes: list[psutil.Process], seconds: float = 60) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_start_serves_the_workspace_and_ctrl_c_ends_it_all(root, tmp_path):
    home = tmp_path / "home"  # someone whose own Jupyter is broken in two ways
    wrong = home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    (wrong / "kernel.json").write_text(
        '{"argv": ["false", "{connection_file}"], "display_name": "x", "language": "python"}'
    )
    (home / ".jupyter").mkdir()
    (home / ".jupyter" / "jupyter_server_config.py").write_text("raise SystemError('broken')")
    lab = Started(HOME=str(home))
    try:
        assert f"Your workspace: {root / 'workspace'}" in lab.said
        assert lab.base.startswith("http://127.0.0.1:")
        names = {entry["name"] for entry in lab.ask("/api/contents")["content"]}
        assert {"01_doubling.ipynb", "02_doubling.ipynb"} <= names
        spec = lab.ask("/api/kernelspecs")["kernelspecs"]["python3"]["spec"]
        assert spec["argv"][0] == sys.executable
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            urllib.request.urlopen(f"{lab.base}/api/contents", timeout=10)  # no token
        refused.value.close()
        with urllib.request.urlopen(lab.address, timeout=30) as answer:
            page = answer.read().decode()
        config = json.loads(re.search(r'<script id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
        assert "@jupyterlab/apputils-extension:announcements" in config["disabledExtensions"]
        lab.ask("/api/kernels", {"name": "python3"})
        family = psutil.Process(lab.process.pid).children(recursive=True)
        assert any("ipykernel_launcher" in " ".join(process.cmdline()) for process in family)
        assert all(lab.token not in " ".join(process.cmdline()) for process in family)
        code, said = lab.end()
        assert (code, "Traceback" in said) == (0, False)
        assert "Stopped." in said
        assert gone(family)
    finally:
        lab.abandon()
    assert not list((home / ".jupyter").glob("lab*")), "the reader's own settings were touched"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_a_killed_start_leaves_no_server_behind(root):
    lab = Started()
    try:
        family = psutil.Process(lab.process.pid).children(recursive=True)
        assert family
        assert lab.end(signal.SIGKILL)[0] == -signal.SIGKILL
        assert gone(family)
    finally:
        lab.abandon()


def test_a_taken_port_is_told(root, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert cli.main(["start", "--no-browser", "--port", str(port)]) == 2
    assert f"Port {port} is taken" in capsys.readouterr().err


def test_the_first_free_port_is_taken_by_default(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setattr(serve, "FIRST_PORT", other.getsockname()[1])
        assert serve._free_port(None) > other.getsockname()[1]


def test_a_server_that_does_not_come_up_is_told_with_its_last_words(root, monkeypatch, capsys):
    (root / "broken.py").write_text("import sys; sys.exit('no such luck')")
    monkeypatch.setattr(serve, "PROGRAM", root / "broken.py")
    assert cli.main(["start", "--no-browser"]) == 2
    assert "no such luck" in capsys.readouterr().err


FAKE_SERVER = """
import http.server, os, socketserver, sys, threading
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
socketserver.TCPServer.allow_reuse_address = True  # as JupyterLab's server does
server = socketserver.TCPServer((sys.argv[1], int(sys.argv[2])), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.read(0, 1)
"""


def test_a_port_lost_at_the_last_moment_is_replaced(root, monkeypatch):
    """Two starts at once see the same free port; the one that loses it takes the next."""
    (root / "fake.py").write_text(FAKE_SERVER)
    monkeypatch.setattr(serve, "PROGRAM", root / "fake.py")
    announced = []

    def announce(workspace, port, token, browser):
        announced.append(port)
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "_announce", announce)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, real = other.getsockname()[1], serve._free_port
        answers = iter([taken])
        monkeypatch.setattr(serve, "_free_port", lambda wanted: next(answers, None) or real(wanted))
        assert cli.main(["start", "--no-browser"]) == 0
    assert len(announced) == 1
    assert announced[0] != taken
    assert not psutil.Process().children()


def test_ctrl_c_while_it_comes_up_ends_at_once(root, monkeypatch):
    (root / "slow.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(serve, "PROGRAM", root / "slow.py")
    monkeypatch.setattr(serve.time, "sleep", lambda seconds: signal.raise_signal(signal.SIGINT))
    began = time.monotonic()
    assert cli.main(["start", "--no-browser"]) == 0
    assert time.monotonic() - began < 10
    assert not psutil.Process().children()
