"""Checks 4.6 and 4.7: the smallest rank that is as good as the best, and the largest rank that a budget allows.

Parameters of LoRA at rank r on layers (out, in): r · Σ (out + in).
"""

import math
from statistics import fmean, pstdev, stdev

from .compare import Mistake, judge, number
from .guard import Guard, Wrong
from .harness import Cases, exercise


def right_rank(shapes: list[tuple[int, int]], budget: int) -> int:
    """The largest r with r · Σ (out + in) within the budget and r within every layer; 0 if not even 1 fits."""
    per_rank = sum(out + wide for out, wide in shapes)
    return min(budget // per_rank, *(min(shape) for shape in shapes))


RANK_MISTAKES = (
    Mistake(
        "forgets that no layer takes a rank above its smaller side",
        lambda shapes, budget: budget // sum(o + i for o, i in shapes),
    ),
    Mistake(
        "spends the budget on every layer: it is for all of them together",
        lambda shapes, budget: min(*(min(s) for s in shapes), *(budget // sum(s) for s in shapes)),
    ),
    Mistake(
        "takes the largest rank that any one layer could pay: one rank is for all, and the budget for all together",
        lambda shapes, budget: min(min(min(s) for s in shapes), max(budget // sum(s) for s in shapes)),
    ),
    Mistake(
        "shares the budget out in equal parts: large layers cost more and small ones less, and one sum is for all",
        lambda shapes, budget: min(min(min(s), budget // len(shapes) // sum(s)) for s in shapes),
    ),
    Mistake(
        "takes the larger side of a layer as its limit: a matrix (out, in) has no rank above the smaller side",
        lambda shapes, budget: min(budget // sum(o + i for o, i in shapes), *(max(s) for s in shapes)),
    ),
    Mistake(
        "takes the largest layer's side as the limit: the smallest layer decides",
        lambda shapes, budget: min(budget // sum(o + i for o, i in shapes), max(min(s) for s in shapes)),
    ),
    Mistake(
        "counts W instead of A and B: they have r (out + in) numbers",
        lambda shapes, budget: min(budget // sum(o * i for o, i in shapes), *(min(s) for s in shapes)),
    ),
    Mistake(
        "counts A only: B has r · out numbers more",
        lambda shapes, budget: min(budget // sum(i for _, i in shapes), *(min(s) for s in shapes)),
    ),
    Mistake(
        "counts B only: A has r · in numbers more",
        lambda shapes, budget: min(budget // sum(o for o, _ in shapes), *(min(s) for s in shapes)),
    ),
    Mistake(
        "spends more than the budget: round down",
        lambda shapes, budget: min(-(-budget // sum(o + i for o, i in shapes)), *(min(s) for s in shapes)),
    ),
    Mistake(
        "returns 1 where not even rank 1 can be paid: say 0",
        lambda shapes, budget: max(1, right_rank(shapes, budget)),
    ),
    Mistake(
        "stays one below the budget: a rank that spends it to the last number is allowed",
        lambda shapes, budget: max(0, min((budget - 1) // sum(o + i for o, i in shapes), *(min(s) for s in shapes))),
    ),
)


def _whole(got: object, subject: str) -> int:
    value = number(got, subject)
    if value != int(value):
        raise Wrong(f"{subject} is {value:g}: a rank is a whole number")
    return int(value)


@exercise(
    "4.7",
    takes=("shapes", "budget"),
    points=1,
    minutes=6,
    hints=(
        "What does one unit of rank cost, over all layers together?",
        "One unit of rank costs the sum of out + in over the layers. The budget divided by it, rounded down, is the "
        "answer, unless a layer is too small for it.",
        "Two limits, and the smaller one decides: what the budget pays for (// rounds down), and the smallest side "
        "that occurs in any layer.",
    ),
)
def rank_for_budget(answer: Guard, cases: Cases) -> str:
    """The largest rank within a budget of parameters."""
    inputs: list[tuple] = []
    for layers in (1, 2, 3, 5):
        shapes = [tuple(cases.different(20, 60, 2)) for _ in range(layers)]
        cost = sum(map(sum, shapes))
        rank = cases.integer(2, 15)
        for budget in (rank * cost, rank * cost + cases.integer(1, cost - 1), cases.integer(1, cost - 1), 500 * cost):
            inputs.append((shapes, budget))
    count = judge(
        answer,
        inputs,
        right_rank,
        RANK_MISTAKES,
        look="one layer (30, 20) and a budget of 149 allow rank 2",
        read=lambda got, want: _whole(got, "the result of your rank_for_budget"),
    )
    return f"the largest rank within {count} budgets"


Runs = dict[int, tuple[int, list[float]]]


def _choose(runs: Runs, budget: float, allowed=None, reference=None) -> int:
    """The smallest affordable rank whose mean is at most `allowed(losses of the reference)`."""
    payable = {rank: losses for rank, (parameters, losses) in runs.items() if parameters <= budget}
    best = min(reference or payable, key=lambda rank: fmean(runs[rank][1]))
    limit = (allowed or _one_error)(runs[best][1])
    return min((rank for rank, losses in payable.items() if fmean(losses) <= limit), default=-1)


def _one_error(losses: list[float]) -> float:
    return fmean(losses) + stdev(losses) / math.sqrt(len(losses))


def right_choice(runs: Runs, budget: int) -> int:
    """The smallest affordable rank within one standard error of the best affordable one."""
    return _choose(runs, budget)


def _all_payable(runs: Runs, budget: int) -> dict[int, list[float]]:
    return {rank: losses for rank, (parameters, losses) in runs.items() if parameters <= budget}


def _best_of(payable: dict[int, list[float]]) -> int:
    return min(payable, key=lambda rank: fmean(payable[rank]))


def _within_own_error(runs: Runs, budget: int) -> int:
    payable = _all_payable(runs, budget)
    best = min(map(fmean, payable.values()))
    return min(rank for rank, losses in payable.items() if fmean(losses) - (_one_error(losses) - fmean(losses)) <= best)


def _luckiest(runs: Runs, budget: int) -> int:
    payable = _all_payable(runs, budget)
    return min(payable, key=lambda rank: min(payable[rank]))


CHOICE_MISTAKES = (
    # Before the next one: where it returns anything, both agree; where it does not, only the next one returns.
    Mistake(
        "compares with the best rank of all, which the budget does not allow: look for the best among those it does",
        lambda runs, budget: _choose(runs, budget, reference=runs),
    ),
    Mistake(
        "ignores the budget: a rank that costs more than {budget:,} parameters is out",
        lambda runs, budget: _choose(runs, math.inf),
    ),
    Mistake(
        "takes the lowest mean: a smaller rank within one standard error of it is as good, as far as one can tell",
        lambda runs, budget: _choose(runs, budget, allowed=fmean),
    ),
    Mistake(
        "leaves out a rank that costs exactly {budget:,} parameters: that is within the budget",
        lambda runs, budget: _choose(runs, budget - 1),
    ),
    Mistake(
        "leaves out a rank whose mean is exactly one standard error above the lowest: at most means that it counts",
        lambda runs, budget: _choose(
            runs, budget, allowed=lambda losses: _one_error(losses) - 1e-9 if stdev(losses) else fmean(losses)
        ),
    ),
    Mistake(
        "takes the first rank in the dictionary that is good enough: they stand in no order, so take the smallest",
        lambda runs, budget: next(
            rank
            for rank, losses in _all_payable(runs, budget).items()
            if fmean(losses) <= _one_error(runs[_best_of(_all_payable(runs, budget))][1])
        ),
    ),
    Mistake("takes the luckiest single run: compare means over the seeds", _luckiest),
    Mistake(
        "takes the smallest rank that can be paid, whatever its loss",
        lambda runs, budget: min(_all_payable(runs, budget)),
    ),
    Mistake(
        "takes the largest rank that can be paid, whatever its loss",
        lambda runs, budget: max(_all_payable(runs, budget)),
    ),
    Mistake(
        "allows one standard deviation: the standard error of a mean of n runs is that divided by √n",
        lambda runs, budget: _choose(runs, budget, allowed=lambda losses: fmean(losses) + stdev(losses)),
    ),
    Mistake(
        "divides the variance by n: with few runs divide by n - 1 (statistics.stdev does)",
        lambda runs, budget: _choose(
            runs, budget, allowed=lambda losses: fmean(losses) + pstdev(losses) / math.sqrt(len(losses))
        ),
    ),
    Mistake("uses the candidate's own error: the standard error is that of the best rank", _within_own_error),
    Mistake(
        "takes the largest of the ranks that are as good as the best: the smallest costs least",
        lambda runs, budget: max(
            rank
            for rank, losses in _all_payable(runs, budget).items()
            if fmean(losses) <= _one_error(runs[_choose(runs, budget, allowed=fmean)][1])
        ),
    ),
)


def _spread(cases: Cases, mean: float, width: float, seeds: int) -> list[float]:
    """`seeds` losses with exactly this mean and this standard deviation (divided by n - 1), in random order."""
    raw = [cases.real(-1, 1) for _ in range(seeds)]
    middle = fmean(raw)
    size = stdev(raw)
    return cases.shuffled([round(mean + width * (value - middle) / size, 6) for value in raw])


def _in_awkward_order(cases: Cases, runs: Runs, budget: int) -> Runs:
    """Shuffled, and the right rank last: who takes the first that is good enough, takes another one."""
    right = right_choice(runs, budget)
    return {rank: runs[rank] for rank in [*(r for r in cases.shuffled(list(runs)) if r != right), right]}


def _at_the_limit(cases: Cases) -> tuple[Runs, int]:
    """Rank 4 is exactly one standard error above rank 8, the best, and in binary that is exact."""
    per_rank, low, unit = 100 * cases.integer(30, 90), cases.pick((1.75, 2.0, 2.25)), 1 / 32
    one, two = unit * 20, unit * 9
    runs = {
        1: (per_rank, [low + one, low + one, low + one - unit, low + one + unit]),
        2: (2 * per_rank, [low + two, low + two, low + two - unit, low + two + unit]),
        4: (4 * per_rank, [low, low + 2 * unit, low + unit, low + unit]),
        8: (8 * per_rank, cases.shuffled([low + 3 * unit, low - unit, low - unit, low - unit])),  # deviation 2 units
    }
    return runs, 8 * per_rank + 50


def _choice_cases(cases: Cases) -> list[tuple]:
    """Each line is decided by one thing; in units of the width, the error of a mean of 4 is 0.5.

    The first lines leave a wrong answer something to return, so that it is named by its value and not by a crash."""
    unit, seeds, low = cases.real(0.02, 0.05), 4, cases.real(1.5, 2.5)
    plans = (  # heights above `low` at ranks 1, 2, 4, ..., the widths, the highest rank that can be paid, what is left
        ([20, 9, 0.8, 0.4, 0.2, 0], [1, 1, 1, 1, 1, 1], 8, 50),  # the best cannot be paid, but one is near it
        ([20, 9, 4, 3, 0.2, 0], [1, 1, 1, 1, 1, 1], 16, 0),  # rank 16 costs exactly the budget
        ([20, 9, 4, 0.3, 0, 0.2], [1, 1, 1, 1, 1, 1], 32, 50),  # rank 8 is within an error of rank 16
        ([20, 9, 4, 0.8, 0, 0.2], [1, 1, 1, 1, 1, 1], 32, 0),  # rank 8 is within a deviation, not an error
        ([20, 9, 3, 2.8, 1, 0], [1, 1, 1, 1, 1, 1], 8, 50),  # the best cannot be paid
        ([20, 2.4, 2, 1, 0.2, 0], [1, 1, 1, 1, 1, 1], 4, 0),  # nor anything near it
        ([20, 9, 0.8, 0.9, 0, 1], [1, 1, 9, 1, 1, 1], 32, 50),  # rank 4 has a large error of its own, and a lucky run
        ([20, 9, 4, 0.46, 0, 2], [1, 1, 1, 1, 1, 1], 32, 0),  # within stdev / √n, not pstdev / √n
        ([20, 9, 4, 3, 2, 1], [1, 1, 1, 1, 1, 1], 1, 0),  # one rank only
    )
    inputs = []
    for heights, widths, highest, left in plans:
        per_rank, runs = 100 * cases.integer(30, 90), {}
        for i, (height, width) in enumerate(zip(heights, widths, strict=True)):
            runs[2**i] = (2**i * per_rank, _spread(cases, low + unit * height, unit * width, seeds))
        inputs.append((runs, runs[highest][0] + left))
    inputs.insert(-1, _at_the_limit(cases))
    return [(_in_awkward_order(cases, runs, budget), budget) for runs, budget in inputs]


@exercise(
    "4.6",
    takes=("runs", "budget"),
    points=2,
    minutes=12,
    hints=(
        "First throw out what the budget does not allow. Then find the best mean among the rest. Then ask which "
        "smaller ranks cannot be told from it.",
        "limit = mean of the best rank + its standard error, which is statistics.stdev(losses) / sqrt(n). Every rank "
        "whose mean is at most the limit is as good as the best.",
        "payable = {rank: losses of those with parameters <= budget}; best = the rank of the lowest mean; return the "
        "min of the ranks in payable whose mean is <= limit.",
    ),
)
def choose_rank(answer: Guard, cases: Cases) -> str:
    """The smallest rank that is as good as the best one within the budget."""
    count = judge(
        answer,
        _choice_cases(cases),
        right_choice,
        CHOICE_MISTAKES,
        look="sort the affordable ranks by their means and compare each with the limit",
        read=lambda got, want: _whole(got, "the result of your choose_rank"),
    )
    return f"the smallest rank that is as good as the best, in {count} sweeps"
