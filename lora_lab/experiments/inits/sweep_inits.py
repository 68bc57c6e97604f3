"""The whole record: for each init a rate of its own, three seeds at it, and what setting up took.

How a rate is chosen, the same way for every init: one seed tries 3e-3 and 1e-2, and the grid grows by a factor of 3
while its edge is best. Every rate whose validation loss is below twice the lowest is then tried by all seeds, and the
lowest mean wins. The longer runs begin their search at the rate of the short ones.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

from lora_lab.experiments.inits.runs import STEPS, Trained, World, initial, results, settings, setup, trained, world
from lora_lab.experiments.sweep import best_rate, digits, found, one_thread
from lora_lab.train import mean_loss
from lora_lab.world.measure import circumstances, reading, write_json

COMMAND = "python -m lora_lab.experiments.inits"
RATES, FACTOR, CONTESTED = (3e-3, 1e-2), 3.0, 2.0
SEEDS, LONGER_STEPS = 3, 120
PLAIN = (
    "default",
    "lora_ga",
    "pissa",
    "orthogonal",
    "gaussian",
    "olora",
    "eva",
    "corda",
    "corda kpm",
    "mica",
    "pissa_niter_4",
)
LONGER = ("default", "orthogonal", "pissa")
QUANTIZED = ("default", "loftq 5", "pissa", "loftq", "olora")
TRAPS = ("corda kpm on the task",)  # what happens when an init is used wrongly


def jobs() -> Iterator[tuple[str, str, int, str | None]]:
    """(part of the record, init, steps, kind of quantization), in the order in which they are measured."""
    yield from (("plain", name, STEPS, None) for name in PLAIN)
    yield from (("nf4", name, STEPS, "nf4") for name in QUANTIZED)
    yield from (("longer", name, LONGER_STEPS, None) for name in LONGER)
    yield from (("traps", name, STEPS, None) for name in TRAPS)


def measure_init(
    world: World, name: str, steps: int, quantize: str | None, seeds: int, rates: tuple[float, ...] = RATES
) -> dict:
    """All of one init: its start, its rate, and the results of every seed, each a list in the order of the seeds."""
    runs: dict[tuple[float, int], Trained] = {}

    def validate(rate: float, seed: int = 0) -> float:
        if (rate, seed) not in runs:
            runs[rate, seed] = trained(world, name, rate, seed, steps, quantize)
        return runs[rate, seed].validation_loss

    best, first = best_rate(validate, rates, FACTOR)
    contested = [rate for rate, loss in first.items() if loss < CONTESTED * first[best]]
    means = {rate: statistics.fmean(validate(rate, seed) for seed in range(seeds)) for rate in contested}
    best = min(means, key=means.get)
    rows = [results(world, runs[best, seed]) for seed in range(seeds)]
    validation = {
        f"{rate:g}": [digits(runs[rate, seed].validation_loss) for seed in range(seeds) if (rate, seed) in runs]
        for rate in first
    }
    cell = {"start": initial(world, name, quantize), **setup(world, name, quantize)}
    cell |= {"steps": steps, "lr": best, "validation": validation}
    cell |= {key: [row[key] for row in rows] for key in rows[0] if key != "watched"}
    return cell | {"watched": {step: [row["watched"][step] for row in rows] for step in rows[0]["watched"]}}


def make(path: Path, seeds: int = SEEDS) -> dict:
    """Measure what `path` does not hold yet, and write it after every init. Returns the whole record."""
    where = world()
    content = {
        **circumstances(),
        "command": COMMAND,
        "settings": settings() | {"longer_steps": LONGER_STEPS, "seeds": seeds},
        "base": {
            "stories_loss": digits(mean_loss(where.base, where.stories)),
            "reading": reading(where.base, where.tokenizer, settings()["asked"])["all"],
        },
        "plain": {},
        "nf4": {},
        "longer": {},
        "traps": {},
    }
    content |= found(path, content, ("settings", "base", "versions", "hardware"))
    for part, name, steps, quantize in jobs():
        if name in content[part]:
            continue
        rates = RATES
        if part == "longer":  # best_rate goes on from there in the direction that is better
            rates = (content["plain"][name]["lr"] / FACTOR, content["plain"][name]["lr"])
        with one_thread():
            content[part][name] = measure_init(where, name, steps, quantize, seeds, rates)
        write_json(path, content)
        shown = ("lr", "validation", "test_loss", "exact")
        print(part, name, {key: content[part][name][key] for key in shown}, flush=True)
    return content
