"""`python -m lora_lab.experiments.inits`: measure, and write data/measurements/inits.json."""

import argparse
from pathlib import Path

from lora_lab.experiments.inits.sweep_inits import SEEDS, make
from lora_lab.paths import MEASUREMENTS

parser = argparse.ArgumentParser(description="Runs from every init, on a plain and on an NF4 base.")
parser.add_argument("--seeds", type=int, default=SEEDS)
parser.add_argument("--out", type=Path, default=MEASUREMENTS / "inits.json")
arguments = parser.parse_args()
make(arguments.out, arguments.seeds)
