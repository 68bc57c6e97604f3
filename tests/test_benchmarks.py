"""The benchmark harness itself: what is called when, what is counted, what is written. The clock is a fake one."""

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import timing
from benchmarks.timing import Case, geometric_mean, measure, peak_bytes
from lora_lab.paths import ROOT


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when a function says so."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now.seconds))

    def taking(seconds, result=None, calls=None):
        def function(*arguments):
            now.seconds += seconds
            if calls is not None:
                calls.append((seconds, *arguments))
            return result

        return function

    return taking


def test_ratio_limit_and_repeats(clock):
    slower = iter([9.0, 9.0, 4.0, 2.0, 3.0])  # warm-up, the call that sets the number of calls, three repeats
    found = measure(
        Case("t", "n", clock(1.0), lambda: clock(next(slower))(), floor=clock(0.5), goal=1.5, group="g", note="hm"),
        seconds=10,
    )
    assert found["ours_s"] == {"min": 1.0, "median": 1.0}
    assert found["theirs_s"] == {"min": 2.0, "median": 3.0}
    assert (found["ratio"], found["ratio_of_medians"], found["limit"]) == (2.0, 3.0, 4.0)
    assert (found["repeats"], found["goal"], found["group"], found["note"]) == (3, 1.5, "g", "hm")
    assert not {"difference", "peak_bytes"} & found.keys()


def test_interleaved_and_each_with_an_argument_of_its_own(clock):
    calls, made = [], iter(range(1000))
    measure(Case("t", "n", clock(1, calls=calls), clock(2, calls=calls), setup=lambda: next(made)), seconds=0)
    ours_first, theirs_first = [1, 2], [2, 1]
    order = [seconds for seconds, _ in calls]
    # warm-up, one call each to see how long it takes, three repeats in turn
    assert order == [*ours_first, *ours_first, *ours_first, *theirs_first, *ours_first]
    assert [argument for _, argument in calls] == list(range(10))


def test_a_short_call_is_repeated_within_one_measurement(clock):
    calls = []
    found = measure(Case("t", "n", clock(0.001, calls=calls), clock(0.002)), seconds=0)
    assert found["ours_s"]["min"] == pytest.approx(0.001)
    assert len(calls) > 2 + 3


@pytest.mark.parametrize(("check", "difference"), [(lambda a, b: b - a, 2.0), (lambda a, b: True, None)])
def test_check_gets_the_results(clock, check, difference):
    assert measure(Case("t", "n", clock(1, result=3), clock(1, result=5), check=check), 0)["difference"] == difference


@pytest.mark.parametrize("check", [lambda a, b: False, lambda a, b: 1 / 0], ids=["not the same", "a crash"])
def test_a_failed_case_is_a_result(clock, check):
    found = command.run(Case("t", "n", clock(1), clock(1), check=check), 0)
    assert found.keys() == {"topic", "group", "name", "error"}
    assert "n" in command.line(found)
    assert command.summaries([found]) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its allocator counts")
def test_peak_bytes():
    x = torch.ones(1000)

    def two_at_a_time():
        y = x + 1
        y = y + 1
        return y + 1

    assert peak_bytes(two_at_a_time) == pytest.approx(8000, abs=64)
    assert peak_bytes(lambda x: x + 1, lambda: torch.ones(1000)) == pytest.approx(4000, abs=64)


def test_means():
    assert geometric_mean([4.0, 1.0]) == pytest.approx(2)
    cases = [
        {"topic": "t", "group": group, "ratio": r, "ratio_of_medians": r, "goal": 1.5} | ({"limit": 8} if group else {})
        for group, r in (("", 4.0), ("g", 2.0), ("", 1.0), ("g", 8.0))
    ]
    first, second = command.summaries(cases)
    assert (first["cases"], first["ratio"], "limit" in first) == (2, pytest.approx(2), False)
    assert (second["group"], second["ratio"], second["limit"]) == ("g", pytest.approx(4), pytest.approx(8))
    assert "t g: 4.00x" in command.summary_line(second)
    assert "goal 1.5x: reached" in command.summary_line(second)


def test_command_runs_topics_and_writes_what_it_found(monkeypatch, tmp_path, capsys):
    def cases(quick):
        yield Case("fake", f"quick {quick}", lambda: 1, lambda: 1, check=lambda a, b: 0.25, memory=True)
        yield Case("fake", "fails", lambda: 1, lambda: 2, check=lambda a, b: a == b)

    monkeypatch.setitem(sys.modules, "benchmarks.fake", SimpleNamespace(cases=cases))
    monkeypatch.setattr(command, "topics", lambda: ["fake"])
    out = tmp_path / "folder" / "found.json"
    assert command.main(["fake", "--quick", "--seconds", "0.01", "--out", str(out)]) == 1
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert "quick True" in printed
    assert "fails" in printed
    assert "FAILED: AssertionError: ours and theirs are not the same" in printed
    assert [case["name"] for case in written["cases"]] == ["quick True", "fails"]
    assert written["cases"][0]["difference"] == 0.25
    assert written["means"][0]["cases"] == 1
    assert {"torch", "peft", "python", "transformers"} <= written["versions"].keys()
    assert {"cpu", "cores", "threads", "gpu"} <= written["hardware"].keys()
    assert written["command"].startswith("python -m benchmarks")
    assert written["date"]


def test_an_unknown_topic_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["nothing"])
    assert "no topic 'nothing', choose from" in capsys.readouterr().err


def test_every_topic_has_cases():
    assert "layer" in command.topics()
    assert not {"timing", "__main__"} & set(command.topics())
    for topic in command.topics():
        assert callable(importlib.import_module(f"benchmarks.{topic}").cases)


def test_no_notebook_package_is_needed():
    banned = ["IPython", "ipywidgets", "jupyter_core", "matplotlib", "nbformat", "nbclient", "nbgrader"]
    program = f"""
import sys
sys.modules.update(dict.fromkeys({banned!r}))  # importing one of them fails from here on
import benchmarks.__main__, benchmarks.layer
next(benchmarks.layer.cases(True))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, check=True, timeout=120)
