"""The doctor: what is broken is named with what to do, and the brief form is the same on every machine."""

import re
import runpy
import sys

import pytest
from lesson_fixtures import pretend_course

from lora_lab import cli
from lora_lab.course import doctor as doctor_function


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A course of two small lessons in place of the real one."""
    return pretend_course(tmp_path, monkeypatch)


@pytest.fixture
def healthy(monkeypatch):
    """Rows that need the course's data are tested on their own."""
    module = sys.modules["lora_lab.course.doctor"]
    for name in ("_base_model", "_tasks"):
        monkeypatch.setattr(module, name, lambda: ("ok", "stands in", ""))
    return module


def test_the_doctor_finds_this_machine_fit(root, healthy, capsys):
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    for name in ("python", "torch", "transformers", "ipywidgets", "memory", "disk", "accelerator", "network"):
        assert f" {name} " in told
    assert "✗" not in told


def test_what_is_missing_is_told_with_what_to_do(root, healthy, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"✗ peft +not installed", told)
    assert "-> Run `python3 course.py start`" in told
    assert "Not ready yet: peft." in told


def test_a_version_out_of_range_is_a_remark(root, healthy):
    row = healthy._package("numpy", {"numpy": "<1"})
    assert (row.status, "outside the tested range" in row.found) == ("warn", True)


def test_ranges_are_those_of_pyproject(root, healthy):
    text = (root / "pyproject.toml").read_text()
    ranges = healthy.required_ranges()
    assert set(healthy._PACKAGES) <= set(ranges)
    for part in ranges["torch"].split(","):
        assert part in text


def test_a_missing_pyproject_is_a_remark_and_no_traceback(root, healthy, capsys):
    (root / "pyproject.toml").unlink()
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"! versions +pyproject.toml is missing", told)
    assert "git restore pyproject.toml" in told
    (root / "pyproject.toml").write_text("[project")
    assert "! versions" in str(doctor_function())


def test_in_a_conda_environment_the_advice_is_condas(tmp_path, monkeypatch):
    (tmp_path / "conda-meta").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    fresh = runpy.run_path(sys.modules["lora_lab.course.doctor"].__file__, run_name="doctor_in_conda")
    assert "conda env update" in fresh["_REINSTALL"]
    assert "course.py" not in fresh["_REINSTALL"]


def test_a_missing_base_model_is_told(root, healthy, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("lora_lab.paths.BASE", root / "data" / "base")
    row = healthy._tried("base model", healthy._base_model)
    assert (row.status, row.found) == ("fail", "data/base is missing")
    assert "git restore data" in row.advice


def test_the_brief_form_shows_nothing_of_this_machine(root, healthy):
    shown = doctor_function(brief=True)
    for text in (str(shown), shown._repr_html_()):
        assert not re.search(r"\d", text.replace("text-align", "")), "a number would differ on the next machine"
        assert str(root) not in text
        assert sys.prefix not in text
    assert str(root) not in doctor_function()._repr_html_()


def test_a_look_that_falls_over_is_a_finding(root, healthy):
    def broken():
        raise OSError(f"{sys.prefix}/lib/libtorch.so: cannot open")

    row = healthy._tried("processor", broken)
    assert row.status == "fail"
    assert sys.prefix not in row.found
