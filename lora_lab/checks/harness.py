"""What an exercise is, and how its check runs.

A check is a function of the guarded answer and a seeded source of random cases:

    @exercise("1.2", takes=("W", "rank"), points=2, minutes=8, hints=(nudge, closer, almost_there))
    def truncate(answer, cases):
        ...  # raises Wrong with one sentence that names the mistake
        return "the best rank-r approximation on 6 random shapes"

A learner then writes `check.truncate(truncate)`. It prints one line and records the progress, or raises AssertionError.
"""

import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .guard import Guard, Wrong, as_answer, isolated

# What a line must not be broken in: "A 6 × 6", "x of length 5", "rank = 2", [2, 5], (1.5, 2), short pieces of code.
_TOGETHER = re.compile(
    r"(?:\w+ )?(?:of )?\d+(?: × \d+)+|\w+ of length \d+|\w+ = [^\s,]+"
    r"|[\[(][-\d., ]{1,40}[\])]|`[^`]{1,60}`|\(stuck\? \S+"
)
SECONDS = 10.0  # for all calls of the learner's function in one check
T = TypeVar("T")


class Cases:
    """Random inputs that depend on the seed alone, so that the grader's seed brings other shapes and numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def different(self, low: int, high: int, count: int) -> list[int]:
        """`count` whole numbers from low to high, no two equal: alpha is not the rank, out is not in."""
        order = torch.randperm(high - low + 1, generator=self.generator)[:count]
        return [low + int(i) for i in order]

    def real(self, low: float, high: float) -> float:
        """A number between low and high."""
        return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=self.generator))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in another order."""
        return [items[int(i)] for i in torch.randperm(len(items), generator=self.generator)]

    def normal(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal entries. Drawn in float32 and converted: bfloat16 cannot be drawn everywhere."""
        return torch.randn(*size, generator=self.generator).to(dtype)

    def seeds(self, count: int) -> list[int]:
        """Different seeds for generators of their own."""
        return self.different(1, 100_000, count)


@dataclass(frozen=True)
class Exercise:
    """One graded exercise. Calling it runs the check.

    `takes` names the arguments of the learner's function; `check(answer, cases)` is the check itself; `hints` go from
    a nudge to almost-there; `minutes` is an estimate for a person.
    """

    id: str
    name: str
    points: int
    minutes: int
    hints: tuple[str, str, str]
    takes: tuple[str, ...]
    check: Callable[[Guard, Cases], str | None] = field(repr=False)

    @property
    def lesson(self) -> str:
        """The notebook it belongs to: '01' for exercise 1.2."""
        return f"{int(self.id.split('.')[0]):02d}"

    def __call__(self, answer: Any, seed: int = 0, *, seconds: float = SECONDS) -> None:
        """Check a learner's function on the cases of `seed`.

        Prints one line, records the pass and returns None, or raises AssertionError with one sentence and where to
        find a hint. Leaves the
        global random state, default dtype, grad mode and warning filters as they were. `seconds` limits the
        learner's code.
        """
        try:
            answer = as_answer(answer, self.name)
            with isolated(seed):
                done = self._checked(Guard(self.id, self.name, answer, self.takes, seconds), Cases(seed))
        except AssertionError as error:
            raise self._failure(str(error)) from None
        say(f"✓ {self.id}  {done or self.name} ({self.points} point{'s' if self.points != 1 else ''})")
        _record(self.id, self.points)

    run = __call__

    def _failure(self, sentence: str) -> AssertionError:
        error = AssertionError(sentence := f'{sentence} (stuck? course.hint("{self.id}"))')
        # IPython shows this in place of a traceback, whose frames would all be the course's own.
        lines = wrapped(sentence)
        error._render_traceback_ = lambda: [f"\x1b[31m✗ {self.id}\x1b[0m  {lines[0]}", *lines[1:]]
        return error

    def _checked(self, guard: Guard, cases: Cases) -> str | None:
        try:
            return self.check(guard, cases)
        except AssertionError:
            raise
        except Exception as error:  # an object that breaks when it is looked at is a wrong answer, not a crash
            text = str(error).split("\n")[0][:200]
            raise Wrong(
                f"your {self.name} returned something this check cannot use ({type(error).__name__}: {text})"
            ) from None


def exercise(
    id: str, *, takes: tuple[str, ...], points: int, minutes: int, hints: tuple[str, str, str], name: str = ""
) -> Callable[[Callable[[Guard, Cases], str | None]], Exercise]:
    """Turn a check function into an Exercise; its name is the function's unless `name` says otherwise."""

    def wrap(check: Callable[[Guard, Cases], str | None]) -> Exercise:
        return Exercise(id, name or check.__name__, points, minutes, hints, takes, check)

    return wrap


def wrapped(sentence: str, width: int = 100) -> list[str]:
    """The sentence in lines of at most `width`, with shapes, indices and short pieces of code kept in one line."""
    held = _TOGETHER.sub(lambda found: found[0].replace(" ", "\u00a0"), sentence)  # textwrap breaks at spaces only
    lines = textwrap.wrap(held, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def say(line: str) -> None:
    """Print, also on a console that has no ✓."""
    try:
        print(line)
    except UnicodeEncodeError:
        print(line.encode(sys.stdout.encoding or "ascii", "replace").decode(sys.stdout.encoding or "ascii"))


def _record(exercise_id: str, points: int) -> None:
    # Passing must not depend on the workspace: without one, or with a full disk, the answer is still right.
    with suppress(ImportError, OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # graders count anything on stderr as a failure
        from lora_lab.course.progress import record_pass

        record_pass(exercise_id, points)
