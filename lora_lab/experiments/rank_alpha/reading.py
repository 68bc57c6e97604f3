"""Reading the recorded sweeps: what was tried, which rates cannot be told apart, what chance alone does to means.

find(recorded("ranks")["cells"], rank=8)       the rows or cells in which these settings have these values
tried(recorded("ranks"), "rank", rule="alpha/r")   {rank: {rate: {"validation_loss": [seeds], "test_loss": [seeds]}}}
undecided({0.005: [...], 0.01: [...]})         the rates within one standard error of the lowest mean
print(rate_table(...))                         all of it, as text
by_chance({1: [...], 2: [...]})                (distance of the means, share of shuffles with one at least as large)
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

RULE_NAMES = {"alpha/r": "α/r", "alpha/sqrt(r)": "α/√r"}  # as they are written for the reader
LOSSES = ("validation_loss", "test_loss")
Seeds = Mapping[float, Sequence[float]]  # setting -> the losses of the seeds
Tried = dict[float, dict[str, list[float]]]  # rate -> "validation_loss" and "test_loss" of the seeds


def find(rows: Iterable[dict], **wanted) -> list[dict]:
    """The rows, or cells, in which each of these settings has this value."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def tried(experiment: dict, by: str, **wanted) -> dict[object, Tried]:
    """Every rate that was run with every seed: {value of `by`: {rate: {"validation_loss": [...], "test_loss": [...]}}}.

    Rates ascend, the losses are in the order of the seeds; rates with fewer seeds than the experiment's, or with a run
    that went astray, are left out. At rank 1 both rules are one and the same: it is found under either.
    Raises ValueError when nothing fits."""
    rows = find(experiment["runs"], **wanted)
    if not rows:
        raise ValueError(f"no run has {wanted}")
    if by == "rank" and "rule" in wanted:
        others = {key: value for key, value in wanted.items() if key != "rule"}
        rows = find(experiment["runs"], **others, rank=1) + [row for row in rows if row["rank"] != 1]
    found: dict[object, dict[float, list[dict]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(row[by], {}).setdefault(row["lr"], []).append(row)
    seeds = experiment["settings"]["seeds"]
    whole = {
        value: {
            rate: {loss: [row[loss] for row in some] for loss in LOSSES}
            for rate, some in sorted(rates.items())
            if len(some) == seeds and not any(row["stopped"] for row in some)
        }
        for value, rates in found.items()
    }
    return {value: rates for value, rates in whole.items() if rates}


def standard_error(losses: Sequence[float]) -> float:
    """Of the mean: the standard deviation (divided by n - 1) over √n."""
    return stdev(losses) / len(losses) ** 0.5


def undecided(validation: Seeds) -> list[float]:
    """The rates whose mean is at most one standard error of the best rate above the lowest mean; the best is one."""
    best = min(validation, key=lambda rate: fmean(validation[rate]))
    limit = fmean(validation[best]) + standard_error(validation[best])
    return [rate for rate in validation if fmean(validation[rate]) <= limit]


def of(rates: Tried, loss: str) -> dict[float, list[float]]:
    """{rate: the seeds' values} of one of the two losses."""
    return {rate: losses[loss] for rate, losses in rates.items()}


def rate_table(found: Mapping[object, Tried], head: str) -> str:
    """Mean validation and test loss, "0.96/1.06", at each rate, one line for each value.

    * marks the lowest validation loss, ~ what is `undecided` beside it. The last column is the range of the mean test
    loss over the marked rates."""
    rates = sorted({rate for some in found.values() for rate in some})
    names = {value: f"{value:g}" if isinstance(value, float) else str(value) for value in found}
    width = max(len(head), *map(len, names.values()))
    lines = [f"{head:<{width}}" + "".join(f"{rate:>12g}" for rate in rates) + "    test, marked"]
    for value, some in found.items():
        validation = of(some, "validation_loss")
        best, ties = min(validation, key=lambda rate: fmean(validation[rate])), undecided(validation)
        line = f"{names[value]:<{width}}"
        for rate in rates:
            mark = "*" if rate == best else "~" if rate in ties else " "
            shown = "/".join(f"{fmean(some[rate][loss]):.2f}" for loss in LOSSES) + mark if rate in some else ""
            line += f"{shown:>12}"
        lines.append(f"{line}    {span([fmean(some[rate]['test_loss']) for rate in ties], '{:.2f}')}")
    return "\n".join(lines)


def by_chance(groups: Seeds, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """(lowest to highest mean, share of `draws` shuffles of all losses among the groups with one at least as large).

    A share that is not small says: chance alone, without any difference between the groups, does as much."""

    def apart(losses: list[list[float]]) -> float:
        means = [fmean(some) for some in losses]
        return max(means) - min(means)

    sizes = [len(losses) for losses in groups.values()]
    pool = [loss for losses in groups.values() for loss in losses]
    seen = apart([list(losses) for losses in groups.values()])
    draw, as_large = random.Random(seed), 0
    for _ in range(draws):
        draw.shuffle(pool)
        rest = iter(pool)
        as_large += apart([[next(rest) for _ in range(size)] for size in sizes]) >= seen - 1e-12
    return seen, as_large / draws


def span(values: Sequence[float], form: str = "{:.3g}") -> str:
    """'0.5', or '0.5 to 2'."""
    low, high = (form.format(f(values)) for f in (min, max))
    return low if low == high else f"{low} to {high}"


def plus_minus(losses: Sequence[float], places: int = 2) -> str:
    """'1.23 ± 0.04': mean and standard deviation of the seeds."""
    return f"{fmean(losses):.{places}f} ± {stdev(losses):.{places}f}"


def name_of(cell: dict) -> str:
    """'LoRA, rank 8', 'full' or 'full, linear layers'."""
    return cell["method"] if cell["rank"] is None else f"LoRA, rank {cell['rank']}"


def runs_of(experiment: dict, cell: dict) -> list[dict]:
    """The runs of a cell at its own rate, one for each seed."""
    return find(experiment["runs"], **{k: cell[k] for k in ("task", "examples", "method", "rank", "steps", "lr")})


def curve_of(runs: Sequence[dict]) -> dict[float, tuple[float, ...]]:
    """{step in the middle of a share of the run: the training loss of each seed there}."""
    parts = list(zip(*(run["loss"] for run in runs), strict=True))
    return {(i + 0.5) * runs[0]["steps"] / len(parts): part for i, part in enumerate(parts)}


def leaves_plateau(run: dict) -> int | None:
    """The step by which the training loss has halved from the plateau (its third share); None if it never does."""
    plateau = run["loss"][2]
    left = next((i for i, loss in enumerate(run["loss"]) if loss < plateau / 2), None)
    return None if left is None else (left + 1) * run["steps"] // len(run["loss"])


def looks(runs: Iterable[dict]) -> dict[int, list[float]]:
    """{step: the validation loss of each run then} of runs that were watched."""
    watched = [run["watched"] for run in runs]
    return {int(step): [look[step][1] for look in watched] for step in watched[0]}
