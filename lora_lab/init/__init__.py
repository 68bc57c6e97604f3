"""Where A and B start. An init is a function `(weight (out, in), rank, scale) -> (A (rank, in), B (out, rank))`.

One file per family; `table.py` lists them all.
"""

from lora_lab.init.default import default_factors
from lora_lab.init.start import Init, Start
from lora_lab.init.table import DATA_DRIVEN, INITS, NamedInit, Recipe, named, resolve

__all__ = ["DATA_DRIVEN", "INITS", "Init", "NamedInit", "Recipe", "Start", "default_factors", "named", "resolve"]
