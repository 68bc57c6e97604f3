"""Answers to exercises 4.7 and 4.6 of notebook 04."""

import math
import statistics

import torch

from . import right, wrong


def rank(shapes, budget):
    cost = sum(out + inside for out, inside in shapes)
    return min(budget // cost, min(min(shape) for shape in shapes))


def by_search(shapes, budget):
    best = 0
    for r in range(1, min(map(min, shapes)) + 1):
        if sum(r * out + r * inside for out, inside in shapes) <= budget:
            best = r
    return best


def by_largest(shapes, budget):
    fitting = (r for r in range(1, highest(shapes) + 1) if r * sum(map(sum, shapes)) <= budget)
    return max(fitting, default=0)


def highest(shapes):
    return min(map(min, shapes))


def own_budgets(shapes, budget):
    return min(highest(shapes), max(budget // sum(shape) for shape in shapes))


def shared_out(shapes, budget):
    return min(min(*shape, budget // len(shapes) // sum(shape)) for shape in shapes)


RANK = [
    right("4.7", "division", rank),
    right("4.7", "search", by_search),
    right("4.7", "the largest that fits", by_largest),
    wrong("4.7", "no limit", "no layer takes a rank above", lambda shapes, b: b // sum(map(sum, shapes))),
    wrong(
        "4.7",
        "each layer",
        "spends the budget on every layer",
        lambda shapes, b: min(highest(shapes), *(b // sum(s) for s in shapes)),
    ),
    wrong(
        "4.7",
        "W",
        "counts W instead of A and B",
        lambda shapes, b: min(highest(shapes), b // sum(o * i for o, i in shapes)),
    ),
    wrong("4.7", "own budgets", "one rank is for all", own_budgets),
    wrong("4.7", "shared out", "shares the budget out", shared_out),
    wrong(
        "4.7",
        "larger side",
        "takes the larger side",
        lambda shapes, b: min(b // sum(map(sum, shapes)), min(map(max, shapes))),
    ),
    wrong(
        "4.7",
        "largest layer",
        "the smallest layer decides",
        lambda shapes, b: min(b // sum(map(sum, shapes)), max(map(min, shapes))),
    ),
    wrong("4.7", "A only", "counts A only", lambda shapes, b: min(highest(shapes), b // sum(i for o, i in shapes))),
    wrong("4.7", "B only", "counts B only", lambda shapes, b: min(highest(shapes), b // sum(o for o, i in shapes))),
    wrong(
        "4.7", "rounded up", "round down", lambda shapes, b: min(highest(shapes), math.ceil(b / sum(map(sum, shapes))))
    ),
    wrong("4.7", "at least one", "say 0", lambda shapes, b: max(1, rank(shapes, b))),
    wrong("4.7", "strictly below", "to the last number", lambda shapes, b: rank(shapes, b - 1)),
    wrong(
        "4.7",
        "not whole",
        "a rank is a whole number",
        lambda shapes, b: min(b / sum(map(sum, shapes)), highest(shapes)),
    ),
]


def affordable(runs, budget):
    return {r: losses for r, (parameters, losses) in runs.items() if parameters <= budget}


def choose(runs, budget):
    payable = affordable(runs, budget)
    means = {r: statistics.fmean(losses) for r, losses in payable.items()}
    best = min(means, key=means.get)
    limit = means[best] + statistics.stdev(payable[best]) / math.sqrt(len(payable[best]))
    return min(r for r in means if means[r] <= limit)


def by_tensor(runs, budget):
    limit, answer = None, None
    for r in sorted(affordable(runs, budget)):
        losses = torch.tensor(runs[r][1], dtype=torch.float64)
        if limit is None or losses.mean() < limit[0]:
            limit = (losses.mean(), losses.mean() + losses.std() / len(losses) ** 0.5)
    for r in sorted(affordable(runs, budget), reverse=True):
        if torch.tensor(runs[r][1], dtype=torch.float64).mean() <= limit[1]:
            answer = r
    return answer


def with_error(error):
    def answer(runs, budget):
        payable = affordable(runs, budget)
        best = min(payable, key=lambda r: statistics.fmean(payable[r]))
        limit = statistics.fmean(payable[best]) + error(payable[best])
        return min(r for r in payable if statistics.fmean(payable[r]) <= limit)

    return answer


def against_the_best_of_all(runs, budget):
    losses = min((losses for _, losses in runs.values()), key=statistics.fmean)
    limit = statistics.fmean(losses) + statistics.stdev(losses) / math.sqrt(len(losses))
    return min((r for r, found in affordable(runs, budget).items() if statistics.fmean(found) <= limit), default=-1)


def largest_as_good(runs, budget):
    payable = affordable(runs, budget)
    best = min(payable.values(), key=statistics.fmean)
    limit = statistics.fmean(best) + statistics.stdev(best) / math.sqrt(len(best))
    return max(r for r in payable if statistics.fmean(payable[r]) <= limit)


def own_error(runs, budget):
    payable = affordable(runs, budget)
    best = min(map(statistics.fmean, payable.values()))
    return min(r for r, found in payable.items() if statistics.fmean(found) - statistics.stdev(found) / 2 <= best)


def best_of_all_and_no_default(runs, budget):
    best = min((losses for _, losses in runs.values()), key=statistics.fmean)
    limit = statistics.fmean(best) + statistics.stdev(best) / math.sqrt(len(best))
    return min(r for r, losses in affordable(runs, budget).items() if statistics.fmean(losses) <= limit)


def strictly_within(runs, budget):
    return choose({r: run for r, run in runs.items() if run[0] < budget}, budget)


def below_the_limit(runs, budget):
    payable = affordable(runs, budget)
    best = min(payable.values(), key=statistics.fmean)
    limit = statistics.fmean(best) + statistics.stdev(best) / math.sqrt(len(best))
    return min(r for r in payable if statistics.fmean(payable[r]) < limit)


def first_good_one(runs, budget):
    payable = affordable(runs, budget)
    best = min(payable.values(), key=statistics.fmean)
    limit = statistics.fmean(best) + statistics.stdev(best) / math.sqrt(len(best))
    return next(r for r in payable if statistics.fmean(payable[r]) <= limit)


def by_sorting(runs, budget):
    found = sorted(
        (statistics.mean(losses), statistics.stdev(losses) / math.sqrt(len(losses)), rank)
        for rank, (cost, losses) in runs.items()
        if cost <= budget
    )
    lowest, error, _ = found[0]
    return min(rank for mean, _, rank in found if mean <= lowest + error)


CHOICE = [
    right("4.6", "statistics", choose),
    right("4.6", "torch", by_tensor),
    right("4.6", "sorted", by_sorting),
    wrong("4.6", "no budget", "ignores the budget", lambda runs, budget: choose(runs, math.inf)),
    wrong("4.6", "best of all", "which the budget does not allow", against_the_best_of_all),
    wrong("4.6", "best of all, crashing", "which the budget does not allow", best_of_all_and_no_default),
    wrong("4.6", "strictly within", "costs exactly", strictly_within),
    wrong("4.6", "below the limit", "at most means that it counts", below_the_limit),
    wrong("4.6", "first good one", "they stand in no order", first_good_one),
    wrong("4.6", "lowest mean", "takes the lowest mean", with_error(lambda losses: 0)),
    wrong(
        "4.6",
        "luckiest run",
        "takes the luckiest single run",
        lambda runs, b: min(affordable(runs, b), key=lambda r: min(runs[r][1])),
    ),
    wrong("4.6", "smallest", "the smallest rank that can be paid", lambda runs, b: min(affordable(runs, b))),
    wrong("4.6", "largest", "the largest rank that can be paid", lambda runs, b: max(affordable(runs, b))),
    wrong("4.6", "deviation", "allows one standard deviation", with_error(statistics.stdev)),
    wrong(
        "4.6",
        "divided by n",
        "divides the variance by n",
        with_error(lambda losses: statistics.pstdev(losses) / math.sqrt(len(losses))),
    ),
    wrong("4.6", "own error", "uses the candidate's own error", own_error),
    wrong("4.6", "largest as good", "takes the largest of the ranks", largest_as_good),
    wrong("4.6", "the losses", "should be one number", lambda runs, b: runs[choose(runs, b)][1]),
]
