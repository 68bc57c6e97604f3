"""Measure one case: the same work done by us and by PEFT, in one process, one after the other.

    ratio = min(theirs) / min(ours)        > 1: we are faster

The repeats are interleaved, and the order changes from repeat to repeat, so that a slow moment of the machine meets
both. The minimum is what the code takes when nothing disturbs it; the median is kept beside it. Memory is the highest
number of bytes allocated above what was allocated before the call: of tensors, not of the process.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MAX_REPEATS = 100


@dataclass
class Case:
    """Something that we and PEFT both do.

    topic, name: what the case is called. The geometric mean is taken over a topic, or over each `group` in it.
    ours, theirs: the two callables, with no argument, or with the one that `setup` returns.
    setup: makes a fresh argument before every single call of either, untimed (a model that the call consumes, say).
    goal: the geometric mean that the group should reach (the same in all its cases).
    check: `check(result of ours, result of theirs)`, called once. It raises AssertionError or returns False if they are
        not the same; a number that it returns is reported as their difference.
    note: a remark for the reader.
    floor: the part of the work that no implementation can avoid. theirs / floor is reported as the limit of the ratio.
    memory: measure peak memory as well, in a call of its own.
    """

    topic: str
    name: str
    ours: Callable
    theirs: Callable
    setup: Callable | None = None
    goal: float | None = None
    check: Callable | None = None
    note: str = ""
    group: str = ""
    floor: Callable | None = None
    memory: bool = False


def device() -> torch.device:
    """Where the benchmarks run: on the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the GPU has done what it was asked to do, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(case: Case, seconds: float = 4.0, min_repeats: int = 3) -> dict[str, Any]:
    """Run a case for about `seconds` (at least `min_repeats` of each, at most 100) and return what it took.

    The first call of each is not counted: it warms up, and its results go to `case.check`.
    """
    torch.manual_seed(0)
    gc.collect()
    gc.freeze()  # what stands now is not looked at again: collecting before every call would take longer than the call
    try:
        return _measured(case, seconds, min_repeats)
    finally:
        gc.unfreeze()


def _measured(case: Case, seconds: float, min_repeats: int) -> dict[str, Any]:
    called = {"ours": case.ours, "theirs": case.theirs} | ({"floor": case.floor} if case.floor else {})
    started = time.perf_counter()
    results = {who: _call(function, case.setup) for who, function in called.items()}
    difference = _checked(case, results["ours"], results["theirs"])
    del results
    once = max(_timed(function, case.setup, 1) for function in called.values())
    number = 1 if case.setup else max(1, math.ceil((0.02 if torch.cuda.is_available() else 0.004) / once))

    times: dict[str, list[float]] = {who: [] for who in called}
    while (done := len(times["ours"])) < MAX_REPEATS:
        if done >= min_repeats and time.perf_counter() - started > seconds:
            break
        for who in sorted(called, reverse=done % 2 == 1):
            times[who].append(_timed(called[who], case.setup, number))
    measured = {
        "topic": case.topic,
        "group": case.group,
        "name": case.name,
        **{f"{who}_s": {"min": min(t), "median": statistics.median(t)} for who, t in times.items()},
        "ratio": min(times["theirs"]) / min(times["ours"]),
        "ratio_of_medians": statistics.median(times["theirs"]) / statistics.median(times["ours"]),
        "repeats": len(times["ours"]),
        "goal": case.goal,
        "note": case.note,
    }
    if case.floor:
        measured["limit"] = min(times["theirs"]) / min(times["floor"])
    if case.check:
        measured["difference"] = difference
    if case.memory:
        measured["peak_bytes"] = {who: peak_bytes(called[who], case.setup) for who in ("ours", "theirs")}
    return measured


def _checked(case: Case, ours: Any, theirs: Any) -> float | None:
    difference = case.check(ours, theirs) if case.check else None
    if difference is False:
        raise AssertionError("ours and theirs are not the same")
    return None if difference is None or difference is True else float(difference)


def _call(function: Callable, setup: Callable | None) -> Any:
    return function(setup()) if setup else function()


def _timed(function: Callable, setup: Callable | None, number: int) -> float:
    """Seconds of one call: the mean of `number` calls in a row. What the call returns is freed after the clock."""
    arguments = (setup(),) if setup else ()
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        synchronize()
        start = time.perf_counter()
        for _ in range(number):
            result = function(*arguments)
        synchronize()
        took = (time.perf_counter() - start) / number
    finally:
        if was_enabled:
            gc.enable()
    del result
    return took


def peak_bytes(function: Callable, setup: Callable | None = None) -> int:
    """The most bytes that a call has allocated at one time, above what was there before it.

    On a GPU the caching allocator's own count. On the CPU every request to torch's allocator, in order, as its profiler
    records them: all tensors and those buffers of an operator that are tensors, but not what MKL or NumPy take.
    """
    arguments = (setup(),) if setup else ()
    gc.freeze()  # what is garbage already is not freed during the call
    try:
        return _peak_bytes_cuda(function, arguments) if torch.cuda.is_available() else _peak_bytes(function, arguments)
    finally:
        gc.unfreeze()


def _peak_bytes_cuda(function: Callable, arguments: tuple) -> int:
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function(*arguments)
    synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def _peak_bytes(function: Callable, arguments: tuple) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        result = function(*arguments)
        del result
    requests = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(requests, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def geometric_mean(ratios: list[float]) -> float:
    """exp(mean(ln ratio)): 2 and ½ cancel."""
    return math.exp(statistics.fmean(map(math.log, ratios)))
