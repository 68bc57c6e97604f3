"""A time limit around code that may never return: `with time_limit(10): ...` raises TimeLimit inside the block.

In the main thread of a Unix machine a timer signal interrupts the block, even in the middle of `time.sleep`.
Everywhere else (Windows, a worker thread) a watchdog thread asks the interpreter to raise in the thread that runs
the block, which happens at its next line of Python.

Seconds are wall-clock seconds, but a right answer must not fail because the machine is busy: while the block has had
the processor for less than half of its time, it gets more, up to PATIENCE times the limit.
"""

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN = 1.0  # seconds between two looks at the clock, and until code that swallowed the exception gets it again
PATIENCE = 4


class TimeLimit(BaseException):
    """The block used up its time. Not an Exception, so that `except Exception` in the block lets it through."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimit in the block once its `seconds` have passed."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    with (_alarm if in_main_thread and hasattr(signal, "setitimer") else _watchdog)(max(seconds, 1e-3)):
        yield


def _clock(seconds: float, processor: Callable[[], float]) -> Callable[[], bool]:
    """A function that says whether the time is up. `processor` reads the seconds of processor time used so far."""
    wall, used = time.monotonic(), processor()

    def is_up() -> bool:
        return processor() - used >= seconds / 2 or time.monotonic() - wall >= PATIENCE * seconds

    return is_up


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    is_up = _clock(seconds, time.thread_time)

    def ring(signum: int, frame: object) -> None:
        if is_up():
            raise TimeLimit

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    left, repeat = signal.setitimer(signal.ITIMER_REAL, seconds, min(AGAIN, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler if handler is not None else signal.SIG_DFL)
        if left:  # someone else's timer was running: give it the time it has left
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), repeat)


@contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    is_up = _clock(seconds, time.process_time)  # the block's own thread cannot be read from another one
    thread = ctypes.c_ulong(threading.get_ident())
    done, lock = threading.Event(), threading.Lock()

    def watch() -> None:
        wait = seconds
        while not done.wait(wait):
            with lock:
                if not done.is_set() and is_up():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeLimit))
            wait = min(AGAIN, seconds)

    watcher = threading.Thread(target=watch, name="time limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with lock:
            done.set()
            # The block may have ended between the request and its delivery: withdraw what is still pending.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
        watcher.join()
