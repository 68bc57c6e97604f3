"""The training explorer: its numbers are torch's, its runs happen elsewhere, and nothing it starts is left behind."""

import base64
import gc
import io
import json
import os
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import nn

from lora_lab.background import Settings
from lora_lab.widgets import Run, training_explorer
from lora_lab.widgets.first_step import first_steps
from lora_lab.widgets.live_run import LiveRun

# Stands in for the training process: the same lines, a step every hundredth of a second.
PRETEND = r"""
import json, sys, time
for line in sys.stdin:
    s = json.loads(line)
    say = lambda **event: print(json.dumps(event), flush=True)
    if s["seed"] == 13: say(kind="error", says="The loss is nan at step 1"); continue
    if s["seed"] == 14: sys.exit(3)
    say(kind="start")
    for step in range(1, s["steps"] + 1):
        time.sleep(0.01)
        say(kind="step", step=step, loss=5 / step, grad_A=0.0 if step == 1 else 0.1, grad_B=0.2, norm=0.1 * step)
    say(kind="done", validation=0.5, norm=2.0, norm_W=40.0, spectrum=[2.0, 1.0])
"""
COMMAND = (sys.executable, "-c", PRETEND)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def until(done, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def explorer():
    made = training_explorer(0.01 * noise(24, 40), layer="a layer")
    made.run = LiveRun(made._heard, COMMAND)
    yield made
    made.close()


# ---- the first step


@pytest.mark.parametrize(("optimizer", "make"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
@pytest.mark.parametrize(("rule", "exponent"), [("α / r (LoRA)", 1.0), ("α / √r (rsLoRA)", 0.5)])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 4.0), (7, 32.0), (20, 16.0)])
def test_the_first_step_is_torchs(optimizer, make, rule, exponent, rank, alpha):
    G = 0.3 * noise(20, 33)
    made = training_explorer(G)
    made.optimizer.value, made.rule.value, made.rank.value, made.alpha.value = optimizer, rule, rank, alpha
    made.rate.value = 0.01
    A, scale = made.A[:rank], alpha / rank**exponent
    B = nn.Parameter(torch.zeros(20, rank, dtype=torch.float64))
    (G.double() * (scale * B @ A)).sum().backward()
    grad = B.grad.clone()
    make([B], lr=0.01, **({"eps": 0.0} if optimizer == "adam" else {})).step()
    delta = scale * B.detach() @ A
    n = made.numbers
    assert n.scale == pytest.approx(scale)
    assert n.gradient == pytest.approx(float(grad.norm() / G.double().norm()))
    assert n.gain == pytest.approx(float(-(G.double() * delta).sum()))
    assert n.norm == pytest.approx(float(delta.norm()))
    np.testing.assert_allclose(made.spectrum(), torch.linalg.svdvals(delta)[:rank], rtol=1e-7, atol=1e-12)


def test_what_stays_level_under_which_optimizer():
    units = first_steps(noise(200, 300), noise(64, 300, seed=1))
    ranks = np.array([4, 64])
    adam, sgd = (units[name].gain[ranks - 1] for name in ("adam", "sgd"))
    assert (adam / ranks)[1] / (adam / ranks)[0] == pytest.approx(1, rel=0.1)  # s = 1/r, to the first power
    assert (sgd / ranks)[1] / (sgd / ranks)[0] == pytest.approx(1, rel=0.2)  # s = 1/√r, squared


def test_each_control_changes_picture_and_words(explorer):
    for control, value in (
        (explorer.rank, 17),
        (explorer.alpha, 64.0),
        (explorer.rule, "α / √r (rsLoRA)"),
        (explorer.optimizer, "sgd"),
        (explorer.rate, 0.1),
    ):
        before = bytes(explorer.canvas.image.value), explorer.readout(), explorer.alt()
        control.value = value
        after = bytes(explorer.canvas.image.value), explorer.readout(), explorer.alt()
        assert all(old != new for old, new in zip(before, after, strict=True)), control.description


@pytest.mark.parametrize(
    ("gradient", "message"),
    [(torch.ones(3), r"\(3,\)"), (torch.zeros(3, 2), "not zero"), (torch.full((3, 2), float("nan")), "finite")],
)
def test_what_is_no_gradient_is_refused(gradient, message):
    with pytest.raises(ValueError, match=message):
        training_explorer(gradient)


# ---- the run


def test_a_run_is_drawn_as_it_goes_and_can_be_pinned(explorer):
    empty = bytes(explorer._run_canvas.image.value)
    explorer.steps.value = 20
    explorer.start.click()
    assert explorer.run.running
    assert (explorer.start.disabled, explorer.cancel.disabled, explorer.pin.disabled) == (True, False, True)
    until(lambda: not explorer.run.running and explorer.live.ended)
    assert explorer.live.loss == pytest.approx([5 / step for step in range(1, 21)])
    assert explorer.progress.value == explorer.progress.max == 20
    assert "0.500" in explorer.status.value
    until(lambda: not explorer.start.disabled)
    explorer.pin.click()
    explorer.pin.click()
    assert explorer.pins == [explorer.live]
    assert explorer.live.label in explorer.table.value
    assert bytes(explorer._run_canvas.image.value) != empty
    explorer.rank.value = 3
    explorer.start.click()
    until(lambda: explorer.live.ended == "done")
    assert explorer.table.value.count("<tr>") == 3  # heading, pin, live
    assert explorer.live.settings.rank == 3
    explorer.clear.click()
    assert explorer.pins == []


def test_the_loss_axis_grows_with_the_runs_and_holds_them_all(explorer):
    axis = explorer._runs.axes["loss"]
    start = axis.get_ylim()
    run = Run(Settings(steps=3))
    run.loss, run.norm, run.grad_A, run.grad_B = [7.0, 26.0, 0.07], [0.1] * 3, [0.1] * 3, [0.1] * 3
    explorer.live = run
    explorer._draw_runs()
    low, high = axis.get_ylim()
    assert start[0] / 32 < low <= 0.07
    assert 26.0 <= high <= start[1] * 4
    explorer._draw_runs()
    assert axis.get_ylim() == (low, high)


def test_the_sliders_answer_while_a_run_goes_on(explorer, monkeypatch):
    monkeypatch.setattr(type(explorer), "settings", property(lambda self: Settings(steps=100_000)))
    explorer.start.click()
    until(lambda: explorer.live.loss)
    seen = set()
    for rank in range(1, 25):
        explorer.rank.value = rank
        seen.add(explorer.readout())
    assert explorer.run.running
    assert len(seen) == 24
    assert explorer.live.loss  # and it went on


def test_a_second_start_is_ignored(explorer, monkeypatch):
    monkeypatch.setattr(type(explorer), "settings", property(lambda self: Settings(steps=100_000)))
    explorer.start.click()
    first = explorer.live
    explorer.start.click()
    assert explorer.live is first
    with pytest.raises(RuntimeError, match="in progress"):
        explorer.run.start(Settings())


def test_cancelling_ends_the_process_and_keeps_what_was_seen(explorer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(type(explorer), "settings", property(lambda self: Settings(steps=80_000)))
        explorer.start.click()
    until(lambda: len(explorer.live.loss) > 3)
    pid = explorer.run.pid
    explorer.cancel.click()
    assert not psutil.pid_exists(pid)
    assert explorer.live.ended == "cancelled"
    assert f"Cancelled after {len(explorer.live.loss)} of 80000" in explorer.status.value
    kept = list(explorer.live.loss)
    time.sleep(0.05)
    assert explorer.live.loss == kept
    explorer.start.click()  # and it can be started again
    until(lambda: explorer.live.ended == "done")


@pytest.mark.parametrize(("seed", "says"), [(13, "The loss is nan at step 1"), (14, "exit code 3")])
def test_an_error_in_the_run_is_shown_as_a_sentence(explorer, monkeypatch, seed, says):
    monkeypatch.setattr(type(explorer), "settings", property(lambda self: Settings(seed=seed)))
    explorer.start.click()
    until(lambda: explorer.live.ended and not explorer.start.disabled)
    assert says in explorer.status.value
    assert not explorer.run.running


def test_a_process_that_cannot_be_started_is_told(explorer):
    explorer.run = LiveRun(explorer._heard, ("/no/such/program",))
    explorer.start.click()
    assert "could not be started" in explorer.status.value
    assert not explorer.start.disabled


def test_nothing_is_left_when_it_is_closed_or_forgotten():
    told = []
    live = LiveRun(told.append, COMMAND)
    live.start(Settings(steps=100_000))
    until(lambda: told)
    pid = live.pid
    live.close()
    assert not psutil.pid_exists(pid)
    other = LiveRun(lambda event: None, COMMAND)
    other.start(Settings(steps=100_000))
    pid = other.pid
    del other
    gc.collect()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_finished_process_serves_the_next_run():
    ended = threading.Event()
    live = LiveRun(lambda event: event["kind"] == "done" and ended.set(), COMMAND)
    pids = []
    for _ in range(2):
        live.start(Settings(steps=2))
        pids.append(live.pid)
        assert ended.wait(30)
        ended.clear()
    assert pids[0] == pids[1]
    live.close()


@pytest.mark.slow
def test_the_real_process_trains_and_ends_with_its_input():
    told: list[dict] = []
    live = LiveRun(told.append)
    live.start(Settings(rank=2, alpha=16, steps=2))
    until(lambda: told and told[-1]["kind"] in ("done", "error"), 120)
    assert [event["kind"] for event in told] == ["start", "step", "step", "done"]
    process = live._process
    process.stdin.close()  # as when this program ends
    assert process.wait(20) == 0
    live.close()


# ---- the static form


def test_the_static_form_shows_pinned_runs(monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata=None: outputs.append((data, metadata)))
    run = Run(Settings(rank=4))
    for step in range(1, 6):
        run.take({"kind": "step", "step": step, "loss": 5 / step, "grad_A": 0.1, "grad_B": 0.2, "norm": 0.3})
    run.take(json.loads('{"kind": "done", "validation": 0.5, "norm_W": 3.0, "spectrum": [1.0]}'))
    made = training_explorer(noise(12, 9), pins=[run])
    made._ipython_display_()
    data, metadata = outputs[0]
    assert run.label in metadata["image/png"]["alt"] == data["text/plain"]
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.width == made.canvas.fig.get_size_inches()[0] * 150
    assert picture.height > picture.width // 2
    assert os.path.basename(data["application/vnd.jupyter.widget-view+json"]["model_id"]) == made.box.model_id
    with pytest.raises(ValueError, match="5 pins"):
        training_explorer(noise(12, 9), pins=[run] * 5)
