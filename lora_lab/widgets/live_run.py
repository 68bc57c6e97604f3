"""One training run at a time in a process of its own, so that the kernel stays free for the sliders.

    run = LiveRun(tell)      tell(event) is called in a thread of its own, for the events of `lora_lab.background`
    run.start(settings)      returns at once
    run.cancel()             ends the process; tell gets {"kind": "cancelled"}

A process rather than a thread: training in a thread would share the interpreter's lock and torch's threads with the
sliders, and could not be stopped in the middle of a step. It gets one thread less than there are processors. After a
run it waits two minutes for the next one (to start afresh takes seconds), then leaves. If this program ends, however
it ends, the process finds its input closed and ends too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

from lora_lab.background import Settings
from lora_lab.paths import ROOT

COMMAND = (sys.executable, "-m", "lora_lab.background")
GRACE = 5.0  # seconds for a killed process to be gone


def spare_threads() -> int:
    """How many threads a run may use: all processors but the one for the kernel."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available - 1)


class LiveRun:
    """See the head of this file. `running` says whether a run is in progress."""

    def __init__(self, tell: Callable[[dict], None], command: tuple[str, ...] = COMMAND) -> None:
        self._tell, self._command = tell, command
        self._lock = threading.RLock()
        self._process: subprocess.Popen | None = None
        self._busy = False
        self._farewell: weakref.finalize | None = None

    @property
    def running(self) -> bool:
        """Whether a run is in progress."""
        return self._busy

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        with self._lock:
            return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, settings: Settings) -> None:
        """Begin a run and return. Raises RuntimeError while another one is in progress."""
        with self._lock:
            if self._busy:
                raise RuntimeError("a run is in progress: cancel it, or wait for its end")
            if self.pid is None:
                self._open()
            self._busy = True
            try:
                self._process.stdin.write(settings.as_json() + "\n")
                self._process.stdin.flush()
            except OSError:  # it left at this very moment
                self._open()
                self._process.stdin.write(settings.as_json() + "\n")
                self._process.stdin.flush()

    def cancel(self) -> None:
        """End the run in progress, if any, and its process. Returns when the process is gone."""
        with self._lock:
            was, self._busy = self._busy, False
            self._end()
        if was:
            self._tell({"kind": "cancelled"})

    def close(self) -> None:
        """End the process, in silence."""
        with self._lock:
            self._busy = False
            self._end()

    def _open(self) -> None:
        self._end()
        environment = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
        environment |= {name: str(spare_threads()) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        # The package may run from its clone without being installed.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # an interrupted cell must not interrupt the run
        )
        self._farewell = weakref.finalize(self, _end, self._process)  # also when the program ends
        threading.Thread(target=_listen, args=(weakref.ref(self), self._process), name="run", daemon=True).start()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if self._farewell is not None:
                self._farewell.detach()
            _end(process)

    def _heard(self, process: subprocess.Popen, event: dict | None) -> None:
        """An event of `process`; None when it has said all."""
        with self._lock:
            if process is not self._process or not self._busy:
                return  # of a run that was cancelled, or nothing was asked
            if event is None:
                code = process.wait()
                hint = "; was there too little memory?" if code == -9 else ""
                event = {"kind": "error", "says": f"The run ended without a result (exit code {code}{hint})"}
            if event["kind"] in ("done", "error"):
                self._busy = False
        self._tell(event)


def _listen(live: weakref.ref[LiveRun], process: subprocess.Popen) -> None:
    # Only a weak reference while waiting: an explorer that nobody holds any more must be able to go, and its process
    # with it.
    with suppress(ValueError, OSError), process.stdout as lines:  # a line cut short by the end of the process
        for line in lines:
            listener = live()
            if listener is None:
                return
            listener._heard(process, json.loads(line))
            del listener
    listener = live()
    if listener is not None:
        listener._heard(process, None)


def _end(process: subprocess.Popen) -> None:
    """Kill it and wait until it is gone; close its pipes."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(OSError):
        process.stdin.close()
