"""course.py, before it touches anything: what it finds wrong with .venv, and which torch the machine should have."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from scratch_clone import load_course, make_clone


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone")


@pytest.fixture
def course(clone: Path) -> ModuleType:
    return load_course(clone)


def healthy(course: ModuleType, **changes: object) -> tuple[dict, dict]:
    """(stamp, info) of an environment in perfect order."""
    packages = ["torch-2.13.0+cpu.dist-info", "lora_lab-0.1.0.dist-info"]
    stamp = {
        "state": "ready",
        "torch": "cpu",
        "folder": str(course.VENV),
        "python": "3.11.7",
        "key": "k",
        "packages": packages,
    }
    info = {"version": "3.11.7", "prefix": str(course.VENV), "packages": packages, "build": "cpu"}
    return stamp | changes, info


def test_a_sound_environment_is_kept(course: ModuleType) -> None:
    stamp, info = healthy(course)
    assert course.diagnose(stamp, info, "k", "cpu", exact=False) == ("keep", "")
    info["packages"] = [*info["packages"], "something_the_reader_added-1.0.dist-info"]
    info["version"] = "3.11.9"  # a patch release underneath changes nothing
    assert course.diagnose(stamp, info, "k", "cpu", exact=True)[0] == "keep"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"state": "installing"}, "did not finish"),
        ({"folder": "/somewhere/else/.venv"}, "moved from /somewhere/else"),
        ({"python": "3.12.1"}, "3.12.1 became 3.11.7"),
    ],
)
def test_what_cannot_be_trusted_is_made_anew(course: ModuleType, change: dict, word: str) -> None:
    stamp, info = healthy(course, **change)
    action, why = course.diagnose(stamp, info, "k", "cpu", exact=False)
    assert action == "remake"
    assert word in why


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"key": "older"}, "pinned packages changed"),
        ({"packages": ["peft-0.21.2.dist-info"]}, "lacks peft-0.21.2"),
        ({"torch": "cuda"}, "cpu build"),
    ],
)
def test_what_differs_is_installed_in_place(course: ModuleType, change: dict, word: str) -> None:
    stamp, info = healthy(course, **change)
    action, why = course.diagnose(stamp, info, "k", "cpu", exact=False)
    assert action == "install"
    assert word in why


def test_somebody_elses_environment_is_filled_and_one_that_does_not_run_is_made_anew(course: ModuleType) -> None:
    stamp, info = healthy(course)
    assert course.diagnose({}, info, "k", "cpu", exact=False)[0] == "install"
    assert course.diagnose(stamp, None, "k", "cpu", exact=False)[0] == "remake"
    assert course.diagnose({}, info | {"version": "3.9.18"}, "k", "cpu", exact=False)[0] == "remake"


def test_a_build_asked_for_by_name_is_held_against_the_build_that_is_there(course: ModuleType) -> None:
    stamp, info = healthy(course)
    info["build"] = "cuda"  # what came when the CPU build was out of reach
    assert course.diagnose(stamp, info, "k", "cpu", exact=False)[0] == "keep"
    assert course.diagnose(stamp, info, "k", "cpu", exact=True)[0] == "install"
    assert course.diagnose(stamp, info, "k", "cuda", exact=True)[0] == "keep"


def test_torch_follows_the_gpu_then_the_environment_and_always_the_option(
    course: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for gpu, build in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(course, "has_nvidia_gpu", lambda gpu=gpu: gpu)
        assert course.choose_torch(None, {}) == (build, False)
        assert course.choose_torch("auto", {"torch": "cpu"}) == (build, False)
        assert course.choose_torch(None, {"torch": "cpu"}) == ("cpu", False)
        assert course.choose_torch("cuda", {"torch": "cpu"}) == ("cuda", True)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert course.choose_torch("auto", {}) == ("cpu", False)
    with pytest.raises(course.Stop, match="no CUDA on macOS"):
        course.choose_torch("cuda", {})


def test_a_missing_or_failing_nvidia_smi_is_no_gpu(course: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for printed, gpu in ((None, False), ("No devices were found\n", False), ("GPU 0: NVIDIA H200 (UUID: x)\n", True)):
        monkeypatch.setattr(course, "ask", lambda command, timeout, printed=printed: printed)
        assert course.has_nvidia_gpu() is gpu


def test_the_key_changes_with_the_pins(course: ModuleType, clone: Path) -> None:
    before = course.pins_key()
    (clone / "requirements.lock").write_text("torch==2.12.0\n")
    assert course.pins_key() != before


def test_this_very_environment_is_understood(course: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(course, "VENV", Path(sys.prefix))
    monkeypatch.setattr(course, "PYTHON", Path(sys.executable))
    info = course.probe()
    assert info["version"] == sys.version.split()[0]
    assert f"torch-{torch.__version__}.dist-info" in info["packages"]
    assert info["build"] == ("cuda" if torch.version.cuda else "cpu")
    monkeypatch.setattr(course, "VENV", Path(sys.prefix).parent)  # a Python that lives elsewhere is not .venv's
    assert course.probe() is None
