"""Every test and every notebook: what `python3 course.py test` and CI run. Also the pytest plugin that does it.

    python -m lora_lab.course.suite [--require-browser] [pytest arguments]

One pytest run: first tests/ (unit, parity, checks, style, browser), then notebooks/ through nbval, where each code cell
is a test; only cells marked `# NBVAL_CHECK_OUTPUT` have their output compared. Paths among the arguments replace both.
"""

import argparse
import os
import subprocess
import sys
from collections import defaultdict

import pytest

from lora_lab.course import browser, execute
from lora_lab.course.files import ENVIRONMENT_VARIABLE
from lora_lab.paths import ROOT

REQUIRE = "LORA_LAB_REQUIRE_BROWSER"
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600"]
# What pytest runs when no path is named. It knows which of its arguments are paths: in `-k data`, data is none.
EVERYTHING = ["-o", "testpaths=tests notebooks"]


class Suite:
    """What the plugin counts: seconds and results by file, and what became of the browser tests."""

    def __init__(self, require_browser: bool) -> None:
        self.require_browser = require_browser
        self.browser = browser.find()
        self.whole = False  # whether everything was asked for, so that everything must have run
        self.seconds: dict[str, float] = defaultdict(float)
        self.cells: dict[str, int] = defaultdict(int)
        self.browser_tests: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        option = session.config.option
        self.whole = not option.keyword and not option.markexpr and _is_whole(session.config.args)
        if self.whole and not self.browser:
            capture = session.config.pluginmanager.getplugin("capturemanager")
            with capture.global_and_fixture_disabled():  # it says what it does, and takes a minute
                self.browser = browser.install()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.get_closest_marker("browser") and not self.browser:
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine"))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Tests draw to nowhere; a notebook's kernel draws inline, as it does for the reader."""
        if item.path.suffix == ".ipynb":
            os.environ.pop("MPLBACKEND", None)
        else:
            os.environ["MPLBACKEND"] = "Agg"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        report = yield
        if item.get_closest_marker("browser") and (report.when == "call" or report.skipped):
            if report.skipped and self.require_browser:
                reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
                report.outcome, report.longrepr = "failed", f"a browser test may not be skipped here: {reason}"
            self.browser_tests.append(report.outcome)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.split("::")[0]
        self.seconds[file] += report.duration
        self.cells[file] += report.when == "call"

    def missing_browser_test(self) -> bool:
        return self.require_browser and self.whole and not self.browser_tests

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == 0 and self.missing_browser_test():
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        write = terminalreporter.write_line
        terminalreporter.section("seconds")
        for file, seconds in sorted(self.seconds.items(), key=lambda pair: -pair[1]):
            if seconds >= 1 or file.endswith(".ipynb"):
                write(f"{seconds:7.1f}  {file} ({self.cells[file]})")
        write(f"{sum(self.seconds.values()):7.1f}  together")
        if "skipped" in self.browser_tests:
            terminalreporter.section("NOT TESTED", red=True)
            write(
                "The browser tests were skipped: no Chromium here, and no right to install one. Sliders are unproven."
            )
        if self.missing_browser_test():
            terminalreporter.section("NOT TESTED", red=True)
            write("No browser test ran, and --require-browser asks for one.")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Suite(bool(os.environ.get(REQUIRE))), "lora-lab-suite")


def _is_whole(arguments: list[str]) -> bool:
    return {"tests", "notebooks"} <= set(arguments)


def main(argv: list[str] | None = None) -> int:
    """pytest's exit code; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run every test and every notebook.", allow_abbrev=False)
    parser.add_argument("--require-browser", action="store_true", help="fail when the browser test cannot run")
    options, arguments = parser.parse_known_args(argv)
    env = os.environ | execute.ENVIRONMENT | ({REQUIRE: "1"} if options.require_browser else {})
    env.pop(ENVIRONMENT_VARIABLE, None)  # the solved lessons would record their exercises as passed by the reader
    command = [sys.executable, "-m", "pytest", "-p", "lora_lab.course.suite", *NBVAL, *EVERYTHING, *arguments]
    process = subprocess.Popen(command, env=env, cwd=ROOT)
    try:
        return process.wait()
    except KeyboardInterrupt:  # pytest got it too, and says what it had found so far
        process.wait()
        print("\nStopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
