"""One environment behind three doors: pyproject.toml's ranges, requirements.lock's pins, environment.yml for conda."""

import json
import re
import subprocess
import sys
import tomllib
from functools import cache

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lora_lab.course.install import requirements
from lora_lab.paths import ROOT

SYSTEMS = {
    "linux": ("linux", "posix", "Linux"),
    "darwin": ("darwin", "posix", "Darwin"),
    "win32": ("win32", "nt", "Windows"),
}
NOT_NEEDED = ("transformers", "peft", "IPython", "ipywidgets", "matplotlib", "jupyterlab", "nbformat", "pytest")


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@cache
def ranges() -> list[Requirement]:
    """Every range in pyproject.toml, the extras' too."""
    optional = project()["optional-dependencies"].values()
    return [Requirement(line) for lines in (project()["dependencies"], *optional) for line in lines]


@cache
def pins() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def machine(system: str, python: str) -> dict[str, str]:
    """The environment markers of a machine."""
    platform, os_name, name = SYSTEMS[system]
    return {
        "sys_platform": platform,
        "os_name": os_name,
        "platform_system": name,
        "python_version": python,
        "python_full_version": f"{python}.5",
        "platform_machine": "arm64" if system == "darwin" else "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_range_is_met_by_exactly_one_pin(system: str, python: str) -> None:
    here = machine(system, python)
    pinned: dict[str, list[Requirement]] = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate(here):
            pinned.setdefault(canonicalize_name(pin.name), []).append(pin)
    twice = {name: [str(pin) for pin in several] for name, several in pinned.items() if len(several) > 1}
    assert not twice
    for wanted in ranges():
        found = pinned.get(canonicalize_name(wanted.name))
        assert found, f"{wanted} is not pinned: run python -m lora_lab.course.lock"
        (exact,) = found[0].specifier
        assert exact.operator == "=="
        assert wanted.specifier.contains(exact.version), f"{found[0]} is outside {wanted}"


def test_the_ranges_are_wide_enough() -> None:
    by_name = {range_.name: range_.specifier for range_ in ranges()}
    assert all(by_name["torch"].contains(version) for version in ("2.11.0", "2.12.1", "2.13.0"))
    assert all(by_name["transformers"].contains(version) for version in ("5.17.0", "5.23.0"))


def test_no_machine_without_a_gpu_is_made_to_fetch_cuda() -> None:
    assert not [pin.name for pin in pins() if re.match(r"nvidia-|cuda-|triton$", pin.name)]


def test_conda_brings_the_same() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert conda["name"] == project()["name"]
    *from_conda, from_pip = conda["dependencies"]
    python, pip = from_conda  # every other package is pip's: two installers must not both own one
    assert pip == "pip"
    version = re.fullmatch(r"python=(\d+\.\d+)", python).group(1)
    assert SpecifierSet(project()["requires-python"]).contains(version)
    assert from_pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_the_bootstrap_installs_these_pins_too() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    installed = {Requirement(line).name for line in requirements(text, "torch==1").splitlines()}
    assert installed == {pin.name for pin in pins()} - {"uv"}


MEASURE = """
import json, sys, time, torch
before = time.process_time()
import lora_lab
print(json.dumps([time.process_time() - before, [name for name in {names} if name in sys.modules]]))
"""


def test_import_lora_lab_is_light() -> None:
    """Under 0.2 s of processor time beyond `import torch` (the best of three), and none of the heavy packages."""
    seconds = []
    for _ in range(3):
        code = MEASURE.format(names=NOT_NEEDED)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        took, loaded = json.loads(done.stdout)
        assert not loaded
        seconds.append(took)
    assert min(seconds) < 0.2


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_the_code_keeps_the_house_style(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
