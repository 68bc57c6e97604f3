"""`course.py test`: what it calls, what it says about a missing browser, and that CI does not let that pass."""

import subprocess
import sys

import pytest

from lora_lab.course import browser, suite

pytest_plugins = ["pytester"]

TESTS = """
import os, pytest

@pytest.mark.browser
def test_slider():
    pass

def test_arithmetic():
    assert os.environ["MPLBACKEND"] == "Agg"
"""
MARKERS = "[pytest]\nmarkers =\n    browser: needs Chromium\n"


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run the suite's plugin over two tests, in this process. Chromium is there or not as `found` says."""

    def run(*arguments: str, found: str | None, required: bool = False) -> pytest.RunResult:
        monkeypatch.setattr(browser, "find", lambda: found)
        monkeypatch.setenv(suite.REQUIRE, "1") if required else monkeypatch.delenv(suite.REQUIRE, raising=False)
        pytester.makeini(MARKERS)
        pytester.makepyfile(test_two=TESTS)
        return pytester.runpytest_inprocess("-p", "lora_lab.course.suite", *arguments)

    return run


def test_with_a_browser_all_is_well(inner) -> None:
    result = inner(found="/usr/bin/chromium", required=True)
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    assert "NOT TESTED" not in result.stdout.str()
    result.stdout.re_match_lines([r"\s+[\d.]+  together"])


def test_without_a_browser_it_is_said_aloud(inner) -> None:
    result = inner(found=None)
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*NOT TESTED*", "*no Chromium*"])


def test_where_a_browser_is_required_its_absence_fails(inner) -> None:
    result = inner(found=None, required=True)
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*may not be skipped here*"])


def test_a_whole_run_without_any_browser_test_fails_where_one_is_required(
    inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "_is_whole", lambda arguments: True)
    assert inner("--deselect", "test_two.py::test_slider", found="/usr/bin/chromium", required=True).ret == 1
    assert inner("-k", "arithmetic", found="/usr/bin/chromium", required=True).ret == 0  # a part was asked for


class Calls:
    """Stands for subprocess.Popen: keeps what was called, ends with `code`."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __call__(self, command: list[str], env: dict[str, str], cwd) -> "Calls":
        self.command, self.env = command, env
        return self

    def wait(self) -> int:
        return self.code


def test_pytest_gets_the_arguments_and_never_the_readers_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(5)
    monkeypatch.setattr(subprocess, "Popen", calls)
    monkeypatch.setenv("LORA_LAB_WORKSPACE", "/the/readers/own")
    monkeypatch.delenv(suite.REQUIRE, raising=False)  # this very test may run under --require-browser
    assert suite.main(["--require-browser", "-x", "-k", "merge"]) == 5
    assert calls.command[-5:] == ["-o", "testpaths=tests notebooks", "-x", "-k", "merge"]
    assert "--nbval-lax" in calls.command
    assert "LORA_LAB_WORKSPACE" not in calls.env
    assert calls.env["HF_HUB_OFFLINE"] == calls.env[suite.REQUIRE] == "1"
    suite.main(["tests/test_one.py::test_a"])
    assert calls.command[-1] == "tests/test_one.py::test_a"
    assert suite.REQUIRE not in calls.env


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [([], {"tests", "notebooks"}), (["-k", "data"], {"tests", "notebooks"}), (["tests/test_data.py"], {"tests"})],
)
def test_only_a_path_narrows_what_is_run(pytester: pytest.Pytester, arguments: list[str], ran: set[str]) -> None:
    """`-k data` is no path, even where a folder of that name lies."""
    pytester.mkdir("data")
    for folder in ("tests", "notebooks"):
        pytester.mkdir(folder).joinpath("test_data.py").write_text("def test_data(): pass")
    pytester.makeini("[pytest]\naddopts = --import-mode=importlib\n")
    items, _ = pytester.inline_genitems(*suite.EVERYTHING, *arguments)
    assert {item.path.parent.name for item in items} == ran


def test_a_browser_is_installed_only_for_a_whole_run_and_only_when_missing(
    inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    installs = []
    monkeypatch.setattr(browser, "install", lambda: installs.append(1) or "/usr/bin/chromium")
    inner(found=None).assert_outcomes(passed=1, skipped=1)
    monkeypatch.setattr(suite, "_is_whole", lambda arguments: True)
    inner(found="/usr/bin/chromium").assert_outcomes(passed=2)
    assert installs == []
    inner(found=None).assert_outcomes(passed=2)
    assert installs == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="package managers as on Linux")
def test_it_installs_only_as_administrator_and_tries_the_next_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_) -> subprocess.CompletedProcess:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0 if command[-1] == "chromium-browser" else 1)

    monkeypatch.setattr(browser.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "apt-get" else None)
    monkeypatch.setattr(browser.subprocess, "run", run)
    monkeypatch.setattr(browser, "find", lambda: None if len(ran) < 5 else "/usr/bin/chromium-browser")
    monkeypatch.setattr(browser.os, "geteuid", lambda: 1000)
    assert browser.install() is None  # no sudo here
    assert ran == []
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    assert browser.install() == "/usr/bin/chromium-browser"
    names = ["chromium", "chromium-browser"]
    assert [command[-1] for command in ran] == [*names, "-q", *names]  # once more after looking for new packages
    assert ran[0][:2] == ["apt-get", "install"]
    assert ran[2][:2] == ["apt-get", "update"]


def test_a_stub_that_does_not_start_is_no_browser(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        pytest.skip("scripts with #! are POSIX")
    stub = tmp_path / "chromium"
    stub.write_text("#!/bin/sh\necho please install the snap >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("LORA_LAB_BROWSER", raising=False)
    assert browser.runs(str(stub)) is False
    assert browser.find() != str(stub)
