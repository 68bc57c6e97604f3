"""Comparing an answer with what is right, and naming the mistake when it differs.

A `Mistake` is a wrong function with a sentence. When answers differ from what is right, `Trial` looks for the
mistake whose output they equal on every failing case, so that the learner is told what was forgotten.
"""

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .describe import dtype, in_words, kind, shape
from .guard import Guard, Wrong

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Mistake:
    """`does(*args)` is what one would return by making this mistake.

    `says` may use the arguments by their labels, `{got}` and `{want}` (numbers only): "is {want:.3g} / {scale:g}".
    """

    says: str
    does: Callable[..., Any]


def tensor(got: Any, size: tuple, kept: torch.dtype, subject: str, *, wider: bool = False) -> Tensor:
    """`got`, detached, if it is a finite tensor of that size and dtype (or, with `wider`, float64); else Wrong."""
    if not isinstance(got, Tensor):
        raise Wrong(f"{subject} should be a tensor of {shape(size)}, not {kind(got)}")
    if tuple(got.shape) != tuple(size):
        flipped = len(size) == 2 and tuple(got.shape) == tuple(size)[::-1]
        end = ": it is transposed" if flipped else ""
        raise Wrong(f"{subject} has shape {shape(got)}, but {shape(size)} is expected{end}")
    if got.dtype != kept and not (wider and got.dtype == torch.float64):
        raise Wrong(f"{subject} is {dtype(got.dtype)}, but {dtype(kept)} is expected: the dtype got lost")
    got = got.detach()
    if bad := int((~torch.isfinite(got)).sum()):
        raise Wrong(f"{subject} holds {bad} entries that are nan or infinite, out of {got.numel()}")
    return got


def number(got: Any, subject: str) -> float:
    """`got` as a float if it is one finite number (Python, NumPy or a 0-d tensor); else Wrong."""
    value = got
    if not isinstance(got, bool) and getattr(got, "shape", None) == () and hasattr(got, "item"):
        value = got.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Wrong(f"{subject} should be one number, not {kind(got)}")
    if not math.isfinite(value):
        raise Wrong(f"{subject} is {value}: is there a division by zero or a logarithm of zero?")
    return value


def same(got: Any, want: Any, size: Any = None) -> bool:
    """Equal up to rounding, relative to the largest entry of `want` or, if that is larger, of `size`.

    Values of different shapes or kinds are not the same.
    """
    if isinstance(want, tuple):
        return isinstance(got, tuple) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, bool | int | str) or want is None:
        return type(got) is type(want) and got == want
    got, want, size = _as_tensor(got), _as_tensor(want), _as_tensor(size)
    if got is None or want is None or got.shape != want.shape:
        return False
    tolerance = max(TOLERANCE.get(got.dtype, 1e-5), TOLERANCE.get(want.dtype, 1e-5))
    got, want = got.double(), want.double()
    if not want.numel():
        return True
    largest = max(float(want.abs().max()), 0.0 if size is None else float(size.double().abs().max()))
    # The second term keeps an exact zero reachable for sums of rounded numbers of size one.
    return bool((got - want).abs().max() <= tolerance * largest + 1e-6)


def _as_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    return None


class Trial:
    """Answers collected over many cases; `verdict` raises Wrong if any of them differs from what is right.

    `subject` starts the sentence ("your truncate", "∂L/∂A"), `labels` names the arguments of a case, `look` ends the
    sentence when no known mistake explains the answers.
    """

    def __init__(self, subject: str, labels: tuple[str, ...], mistakes: Iterable[Mistake], look: str) -> None:
        self.subject, self.labels, self.mistakes, self.look = subject, labels, tuple(mistakes), look
        self.passes: list[tuple[tuple, Any, Any]] = []
        self.failures: list[tuple[tuple, Any, Any]] = []

    def add(self, args: tuple, got: Any, want: Any) -> None:
        """Record one case."""
        (self.passes if same(got, want) else self.failures).append((args, got, want))

    def verdict(self) -> None:
        """Nothing if every case was right; otherwise Wrong with the first known mistake that explains the failures."""
        if not self.failures:
            return
        args, got, want = self.failures[0]
        case = in_words(self.labels, args)
        known = self._known()
        if known is None:
            raise Wrong(f"{self.subject} is off for {case}: {self._factor() or _gap(got, want)}; {self.look}")
        words = dict(zip(self.labels, args, strict=True)) | {"got": got, "want": want}
        raise Wrong(f"{self.subject} {known.says.format(**words)} ({case}: {_gap(got, want)})")

    def _known(self) -> Mistake | None:
        """The first mistake that explains every case; or else every failure, though it would spoil other cases too."""
        fits = [mistake for mistake in self.mistakes if _explains(mistake, self.failures)]
        return next((mistake for mistake in fits if _explains(mistake, self.passes)), fits[0] if fits else None)

    def _factor(self) -> str:
        """'right except for a factor of 2' if one factor explains the first failure."""
        _, got, want = self.failures[0]
        got, want = _as_tensor(got), _as_tensor(want)
        if got is None or want is None or got.shape != want.shape or want.numel() < 2 or not want.any():
            return ""
        factor = float((got.double() * want.double()).sum() / want.double().square().sum())
        return f"it is right except for a factor of {factor:.4g}" if factor and same(got, factor * want) else ""


def _explains(mistake: Mistake, outcomes: list[tuple[tuple, Any, Any]]) -> bool:
    return all(same(got, attempt(mistake.does, *args), size=want) for args, got, want in outcomes)


def attempt(function: Callable, *args: Any) -> Any:
    """A mistake's output, None where it cannot even run on these shapes."""
    try:
        return function(*args)
    except (RuntimeError, IndexError, ValueError, ArithmeticError):
        return None


def judge(
    guard: Guard,
    cases: Iterable[tuple],
    right: Callable,
    mistakes: Iterable[Mistake],
    *,
    look: str,
    read: Callable[[Any, Any], Any],
) -> int:
    """Compare the guarded answer with `right` on every case; return how many there were.

    `read(result, want)` turns the learner's result into what is compared, or raises Wrong. Let the first case have
    all its sizes equal: swapped or transposed factors then run, and are named by their values instead of crashing.
    """
    trial, count = Trial(f"your {guard.name}", guard.labels, mistakes, look), 0
    for args in cases:
        want = right(*args)
        try:
            trial.add(args, read(guard(*args), want), want)
        except Wrong:
            if trial.failures:  # the mistake behind the crash has shown itself already
                break
            raise
        count += 1
    trial.verdict()
    return count


def _gap(got: Any, want: Any) -> str:
    if isinstance(want, Tensor) and want.ndim and isinstance(got, Tensor):
        gap = (got.double() - want.double()).abs()
        spot = tuple((gap == gap.max()).nonzero()[0].tolist())  # torch.unravel_index would import all of sympy
        return (
            f"the largest difference is {float(gap.max()):.3g}, at {list(spot)}, "
            f"where you have {float(got[spot]):.4g} and {float(want[spot]):.4g} is right"
        )
    return f"you have {_plain(got)}, and {_plain(want)} is right"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, bool | str | int):
        return repr(value)
    return f"{float(value):.4g}"
