"""What sweeps of training runs share: a rate that suits, a file to go on from, the same digits each time.

best_rate(validate, (3e-3, 1e-2), 3.0)   the grid grows while its edge is best
found(path, result, ("settings", ...))   what an earlier call of the same settings has left
with one_thread(): ...                   sums in one order
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

MOST_RATES = 16  # a grid that has grown to this size is looking for something else than a rate


def best_rate(
    validate: Callable[[float], float], rates: Iterable[float], factor: float
) -> tuple[float, dict[float, float]]:
    """The rate of the lowest validation loss, and the loss of every rate that was tried, in ascending order of rates.

    All of `rates` are tried. While the best one is the smallest or the largest so far, the next one beyond, `factor`
    away, is tried too. A loss that is not finite counts as infinite: such a run went astray.

    Raises ValueError: no rates, a rate that is not positive, a factor not above 1, or no minimum in `MOST_RATES` rates.
    """
    rates = list(rates)
    if not rates or min(rates) <= 0 or not factor > 1:
        raise ValueError(f"rates {rates} must be positive and at least one, factor {factor} above 1")
    losses: dict[float, float] = {}

    def attempt(rate: float) -> None:
        loss = validate(rate)
        losses[rate] = loss if math.isfinite(loss) else math.inf

    for rate in rates:
        attempt(rate)
    while True:
        best = min(losses, key=losses.get)
        lowest, highest = min(losses), max(losses)
        if losses[best] < math.inf and lowest < best < highest:
            break
        if len(losses) >= MOST_RATES:
            raise ValueError(f"still no minimum after {len(losses)} rates from {lowest:g} to {highest:g}")
        # Where every run went astray there is only one way to go.
        attempt(highest * factor if best == highest and losses[best] < math.inf else lowest / factor)
    return best, dict(sorted(losses.items()))


def found(path: Path, result: dict, same: Iterable[str]) -> dict:
    """What `path` holds, if it agrees with `result` in the keys `same`; else an empty dict."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content if all(content.get(key) == result[key] for key in same) else {}


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside: more of them add the same numbers in another order, and training makes that visible."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def digits(value: float, count: int = 5) -> float | None:
    """Rounded to `count` significant digits; None for what JSON has no number for."""
    return float(f"{value:.{count}g}") if math.isfinite(value) else None
