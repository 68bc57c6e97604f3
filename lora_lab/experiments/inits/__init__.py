"""Which init starts best? Every init of the table on the support desk, each at its own learning rate.

python -m lora_lab.experiments.inits   measures, and writes data/measurements/inits.json as it goes

record()               what the file holds: "plain", "nf4", "longer", "traps", each init -> what `measure_init` returns
point("pissa", seed=1) one run made again now, at the rate of the record
"""

import json
from pathlib import Path

from lora_lab.experiments.inits.runs import STEPS, measure, world
from lora_lab.paths import MEASUREMENTS

FILE = "inits.json"


def record(folder: Path = MEASUREMENTS) -> dict:
    """What was measured. Raises FileNotFoundError if it has not been recorded."""
    return json.loads((folder / FILE).read_text(encoding="utf-8"))


def point(
    name: str, seed: int = 0, *, lr: float | None = None, steps: int = STEPS, quantize: str | None = None
) -> dict:
    """Train once from the init `name` and return the row (see `runs.results`).

    name: as in the record ("default", "pissa", "corda kpm", "loftq 5"). lr: None takes the rate that the record holds
    for this init, kind of base and number of steps. quantize: None, "nf4" or "int8". On the machine that made the
    record, and with the same versions, the row agrees with it to the digit (times apart).

    Raises ValueError for an unknown name, an init without a recorded rate where `lr` is None, or a loss that runs away.
    """
    if lr is None:
        known = _recorded(record(), steps, quantize)
        if name not in known:
            base = f" with {quantize} codes" if quantize else ""
            others = f", or one of {', '.join(known)}" if known else ""
            raise ValueError(f"no rate is recorded for {name!r} after {steps} steps{base}: give lr{others}")
        lr = known[name]["lr"]
    return measure(world(), name, lr, seed, steps, quantize)


def _recorded(content: dict, steps: int, quantize: str | None) -> dict:
    """The part of the record that holds runs of this kind. Other numbers of steps take the rates of the short runs."""
    if quantize:
        return content["nf4"] if quantize == "nf4" else {}
    if steps == content["settings"]["longer_steps"]:
        return content["longer"]
    return content["plain"] | content.get("traps", {})
