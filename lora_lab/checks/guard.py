"""The learner's function behind a guard: whatever it does ends as a result or as one clear sentence.

`Guard` calls it with a time limit, turns every way to fail (exceptions, exit(), endless loops, changed inputs, a
forgotten return) into `Wrong`, and keeps its warnings away from stderr. `isolated` gives the check a world of its
own: the global random state, default dtype, grad mode and warning filters are put back afterwards.
"""

import inspect
import random
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from .describe import change, in_words, kind, snapshot
from .limits import TimeLimit, time_limit
from .stub import stub_exercise

# Frames from these folders are not the learner's own lines.
NOT_THEIRS = tuple(
    str(Path(folder))
    for folder in (Path(__file__).parents[1], Path(torch.__file__).parent, sysconfig.get_paths()["stdlib"])
)


class Wrong(AssertionError):
    """A wrong answer; the text is the one sentence the learner reads."""


class Guard:
    """Calls the learner's `function`. All calls through one guard share one budget of `seconds`.

    `labels` are the names of the arguments, for the sentences: ("W", "rank").
    """

    def __init__(self, exercise: str, name: str, function: Callable, labels: tuple[str, ...], seconds: float) -> None:
        self.exercise, self.name, self.function, self.labels = exercise, name, function, labels
        self.seconds = self.left = seconds

    def __call__(self, *args: Any, untouched: bool = True) -> Any:
        """The function's result. Raises Wrong if it fails, returns None or, with `untouched`, changes an argument."""
        self._fits(args)
        before = [snapshot(value) for value in args] if untouched else []
        result = self.call(self.function, *args, what=self.name, case=self.case(*args))
        for label, then, value in zip(self.labels, before, args, strict=False):
            if what := change(label, then, value):
                raise Wrong(f"your {self.name} {what}: leave the arguments as they are and return something new")
        return self._returned(result)

    def call(self, function: Callable, *args: Any, what: str, case: str = "") -> Any:
        """`function(*args)` for any other piece of the learner's code, such as a layer it returned."""
        value, error = self.attempt(function, *args)
        if error is None:
            return value
        raise Wrong(self._sentence(error, what, case)) from None

    def attempt(self, function: Callable, *args: Any) -> tuple[Any, BaseException | None]:
        """(value, None), or (None, what it raised)."""
        began, used = time.monotonic(), time.thread_time()
        try:
            with warnings.catch_warnings(), time_limit(self.left):
                warnings.simplefilter("ignore")
                return function(*args), None
        except BaseException as error:  # the learner's code may raise anything, SystemExit included
            return None, error
        finally:
            # As in `limits`: waiting for a busy machine counts a quarter.
            wall, used = time.monotonic() - began, time.thread_time() - used
            self.left -= min(wall, max(2 * used, wall / 4))

    def refusal(self, *args: Any) -> Exception | None:
        """The error with which the function refuses `args`, None if it takes them. A blank or a loop is Wrong.

        So is any NotImplementedError: no code says with it that an argument is bad.
        """
        error = self.attempt(self.function, *args)[1]
        if error is None or (isinstance(error, Exception) and not isinstance(error, NotImplementedError)):
            return error
        raise Wrong(self._sentence(error, self.name, self.case(*args))) from None

    def case(self, *args: Any) -> str:
        """The arguments in words: 'W 6 × 4, rank = 2'."""
        return in_words(self.labels, args)

    def _fits(self, args: tuple) -> None:
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):
            return
        try:
            signature.bind(*args)
        except TypeError:
            wanted = f"{self.name}({', '.join(self.labels)})"
            raise Wrong(
                f"your {self.name} takes {signature}, but it is called as {wanted}: keep the parameters of the stub"
            ) from None

    def _returned(self, result: Any) -> Any:
        if result is None:
            raise Wrong(f"your {self.name} returned nothing: is there a return?")
        if inspect.iscoroutine(result):
            result.close()  # or Python warns that it was never awaited
            raise Wrong(f"your {self.name} is an async def: write a plain def")
        if inspect.isgenerator(result):
            raise Wrong(f"your {self.name} is a generator: is there a yield where return was meant?")
        return result

    def _sentence(self, error: BaseException, what: str, case: str) -> str:
        on = f" for {case}" if case else ""
        if (blank := stub_exercise(error)) is not None:
            return self._blank(blank)
        if isinstance(error, TimeLimit):
            return f"your {what} did not finish in {self.seconds:g} s{on}: is there a loop that never ends?"
        if isinstance(error, RecursionError):
            return f"your {what} calls itself without end (RecursionError){on}"
        if isinstance(error, SystemExit):
            code = f": {error}" if str(error) else ""
            return f"your {what} ended the program (SystemExit{code}){on}: return the result instead"
        if "before Module.__init__() call" in str(error):
            return f"your {what} sets attributes before super().__init__(): make that its first line"
        text = str(error).strip().split("\n")[0][:200]
        if text.startswith("Boolean value of Tensor"):  # the sentence that follows `if b:`
            text += "; to ask whether a tensor was given, use `is not None`"
        return f"your {what} raised {type(error).__name__}{on}: {text or 'no message'}{_line(error)}"

    def _blank(self, exercise: str) -> str:
        if exercise == self.exercise:
            return f"{exercise} is still blank: replace the raise line with your code"
        where = f" (exercise {exercise})" if exercise else ""
        return f"your {self.name}, or something it calls, is still blank{where}: replace the raise line with your code"


def _line(error: BaseException) -> str:
    """The learner's own line nearest to the error, if its text can be found."""
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.line and not frame.filename.startswith(NOT_THEIRS)
    ]
    return f" (in the line `{theirs[-1].line.strip()}`)" if theirs else ""


def as_answer(answer: Any, name: str) -> Any:
    """`answer` if it can be called; otherwise Wrong says what was passed instead."""
    if callable(answer):
        return answer
    raise Wrong(
        f"check.{name} got {kind(answer)}, but it takes the function itself: "
        f"write check.{name}({name}), with no brackets after the second name"
    )


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """A fresh global random state from `seed`, float32 by default, gradients on, CPU; all put back at the end."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numpy = sys.modules.get("numpy")
    dtype, python_state = torch.get_default_dtype(), random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad(), on_cpu:
        torch.set_default_dtype(torch.float32)
        # torch.manual_seed would also queue a seed for a GPU that is not awake yet.
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)
