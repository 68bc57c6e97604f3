"""The guard around the learner's function: every way to fail ends as one clear sentence, in good time."""

import signal
import threading
import time

import nbformat
import pytest
import torch
from answers import sentence, wrong

from lora_lab.checks import exercises
from lora_lab.checks.limits import TimeLimit, time_limit
from lora_lab.checks.stub import STUB
from lora_lab.course.notebooks import BEGIN, END
from lora_lab.course.notebooks import blank as blank_copy
from lora_lab.spectrum import truncate as right_truncate

TRUNCATE = exercises()["1.2"]
POINTER = ' (stuck? course.hint("1.2"))'

pytestmark = pytest.mark.usefixtures("away")


def said_about(function, **settings):
    with pytest.raises(AssertionError) as caught:
        TRUNCATE(function, **settings)
    said = str(caught.value)
    assert said.endswith(POINTER)
    return said.removesuffix(POINTER)


def endless(W, rank):
    while True:
        rank += 0


def asleep(W, rank):
    time.sleep(60)


def stubborn(W, rank):
    """Swallows the first attempts to stop it."""
    for _ in range(3):
        try:
            endless(W, rank)
        except BaseException:
            continue
    endless(W, rank)


def raising(error):
    def truncate(W, rank):
        raise error

    return truncate


def recursive(W, rank):
    return recursive(W, rank)


async def asynchronous(W, rank):
    return W


def generator(W, rank):
    yield W


class TestEveryWayToFail:
    @pytest.mark.parametrize("function", [endless, asleep])
    def test_endless(self, function):
        began = time.monotonic()
        said = said_about(function, seconds=0.2)
        assert said.startswith("your truncate did not finish in 0.2 s for W ")
        assert said.endswith("is there a loop that never ends?")
        assert ", rank = " in said
        assert time.monotonic() - began < 20

    def test_a_loop_that_swallows_the_first_alarm(self):
        assert "did not finish" in said_about(stubborn, seconds=0.2)

    def test_the_limit_holds_for_all_calls_together(self):
        def slow(W, rank):
            until = time.thread_time() + 0.15
            while time.thread_time() < until:
                pass
            return right_truncate(W, rank)

        assert "did not finish" in said_about(slow, seconds=0.4)

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer signals on this system")
    def test_alarm_of_others_goes_on(self):
        rang = []
        before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
        try:
            signal.setitimer(signal.ITIMER_REAL, 30)
            TRUNCATE(right_truncate)
            left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
            assert 0 < left <= 30
            signal.raise_signal(signal.SIGALRM)
            assert rang == [1]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @pytest.mark.parametrize("function", [endless, right_truncate])
    def test_in_a_worker_thread(self, function):
        said = []

        def work():
            try:
                said.append(TRUNCATE(function, seconds=0.2 if function is endless else 10))
            except AssertionError as error:
                said.append(str(error))

        worker = threading.Thread(target=work)
        worker.start()
        worker.join(30)
        assert said == [None] if function is right_truncate else "did not finish" in said[0]

    def test_without_timer_signals(self, monkeypatch):
        monkeypatch.delattr(signal, "setitimer", raising=False)
        assert "did not finish" in said_about(endless, seconds=0.2)
        assert TRUNCATE(right_truncate) is None

    def test_waiting_for_the_machine_hardly_uses_the_budget(self):
        """Seven calls that wait 0.2 s each pass under a limit of 1.3 s."""
        assert TRUNCATE(lambda W, rank: (time.sleep(0.2), right_truncate(W, rank))[1], seconds=1.3) is None

    def test_a_busy_machine_gets_more_time(self):
        """Waiting for the processor is not the block's fault: 0.3 s of sleep pass under a limit of 0.2 s."""
        with time_limit(0.2):
            time.sleep(0.3)
        with pytest.raises(TimeLimit), time_limit(0.1):
            time.sleep(30)

    @pytest.mark.parametrize(
        ("error", "part"),
        [
            (IndexError("index 4 is out of bounds"), "raised IndexError for W"),
            (ValueError("line one\nline two"), ": line one (in the line"),
            (KeyError(), "no message"),
            (SystemExit(3), "ended the program (SystemExit: 3)"),
            (KeyboardInterrupt(), "raised KeyboardInterrupt"),
            (GeneratorExit(), "raised GeneratorExit"),
            (AssertionError("mine"), "raised AssertionError for W"),
            (TimeLimit(), "did not finish"),
            (MemoryError("too much"), "raised MemoryError"),
            (NotImplementedError(STUB.format(id="1.2")), "1.2 is still blank: replace the raise line"),
            (NotImplementedError(STUB.format(id="1.1")), "your truncate, or something it calls, is still blank (exer"),
            (NotImplementedError("your code here"), "your truncate, or something it calls, is still blank: replace"),
            (NotImplementedError(), "your truncate raised NotImplementedError for W"),
            (NotImplementedError("exercise 1.2 is hard"), ": exercise 1.2 is hard (in the line `raise error`)"),
            (ValueError("your code here"), "raised ValueError for W"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
    )
    def test_exceptions(self, error, part):
        said = said_about(raising(error))
        assert part in said
        assert "\n" not in said

    def test_what_torch_has_not_implemented_is_no_blank(self):
        def truncate(W, rank):
            U, s, Vh = torch.linalg.svd(W.bfloat16(), full_matrices=False)
            return U[:, :rank] * s[:rank] @ Vh[:rank]

        try:
            truncate(torch.ones(2, 3), 1)
        except NotImplementedError as error:
            torchs_own = str(error).split("\n")[0][:60]
        else:
            pytest.skip("this torch has an SVD in bfloat16")
        said = said_about(truncate)
        assert torchs_own in said
        assert "your truncate raised NotImplementedError for W" in said
        assert "(in the line `U, s, Vh = torch.linalg.svd(W.bfloat16(), full_matrices=False)`)" in said
        assert "blank" not in said

    def test_a_blank_ends_in_the_pointer_once(self):
        with pytest.raises(AssertionError) as caught:
            TRUNCATE(raising(NotImplementedError(STUB.format(id="1.2"))))
        assert str(caught.value) == f"1.2 is still blank: replace the raise line with your code{POINTER}"

    def test_the_stub_is_what_a_learners_copy_says(self):
        cell = {
            "cell_type": "code",
            "source": f"{BEGIN}\nx = 1\n{END}",
            "metadata": {"nbgrader": {"grade_id": "ex-1-2"}},
        }
        made = blank_copy(nbformat.from_dict({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        assert made.cells[0].source == f'raise NotImplementedError("{STUB.format(id="1.2")}")'

    def test_the_learners_line_is_shown(self):
        assert "(in the line `raise error`)" in said_about(raising(ValueError("no")))

    def test_recursion(self):
        assert "calls itself without end (RecursionError)" in said_about(recursive)

    @pytest.mark.parametrize(
        ("function", "part"),
        [
            (lambda W, rank: None, "returned nothing: is there a return?"),
            (lambda W, rank: W.mul_(0.5), "changed W itself"),
            (lambda W, rank: right_truncate(W.unsqueeze_(0)[0], rank), "changed the shape of W"),
            (lambda W, rank: (W.requires_grad_(), right_truncate(W, rank))[1], "switched requires_grad of W"),
            (lambda W, rank: "text", "should be a tensor of"),
            (lambda W, rank: W[:1], "has shape 1 ×"),
            (lambda W, rank: W.long(), "is int64, but float32 is expected"),
            (lambda W, rank: W * float("nan"), "nan or infinite"),
            (lambda W: W, "takes (W), but it is called as truncate(W, rank)"),
            (asynchronous, "async def"),
            (generator, "yield where return was meant"),
        ],
    )
    def test_results(self, function, part):
        assert part in said_about(function)

    @pytest.mark.parametrize("thing", [torch.ones(2, 3), 3, None, "truncate", (1, 2)])
    def test_not_a_function(self, thing):
        said = said_about(thing)
        assert said.startswith("check.truncate got ")
        assert "write check.truncate(truncate), with no brackets after the second name" in said

    def test_a_result_that_breaks_when_looked_at(self):
        class Odd(dict):
            def __bool__(self):
                raise ValueError("odd")

        said = sentence(wrong("3.8", "odd", "odd", lambda model: Odd()))
        assert said == "your adapter_state returned something this check cannot use (ValueError: odd)"
