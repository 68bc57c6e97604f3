"""The table of all inits: PEFT's names, what each reads, and what it does to the base weight.

    named("pissa")(weight (out, in), rank, scale) -> Start(A, B, shift)

`INITS` is what the rest of the package knows about inits. A new one is a file and a row.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lora_lab.init.corda import corda_factors
from lora_lab.init.default import default_factors
from lora_lab.init.eva import eva_factors
from lora_lab.init.gaussian import gaussian_factors
from lora_lab.init.loftq import loftq_factors
from lora_lab.init.lora_ga import lora_ga_factors
from lora_lab.init.mica import mica_factors
from lora_lab.init.olora import olora_factors
from lora_lab.init.orthogonal import orthogonal_factors
from lora_lab.init.pissa import pissa_factors
from lora_lab.init.random import random_factors
from lora_lab.init.start import Init, Start


@dataclass(frozen=True)
class Recipe:
    """One way to start.

    factors: (weight, rank, scale, **options) -> (A, B); LoftQ's returns its shift (A0, B0) as well.
    base: what happens to the base weight W: "kept"; "residual" (W - s·BA); "quantized" (codes of W - s·B0 A0).
    needs: what it reads: "nothing" (the shape), "weight", "inputs" (of the layer) or "gradient" (of W), both on data.
    no_op: does the adapted model answer like W before the first step (to rounding)?
    trains: the factors that learn.
    """

    factors: Callable[..., tuple[Tensor, ...]]
    base: str
    needs: str
    no_op: bool
    source: str
    trains: str = "AB"


INITS: dict[str, Recipe] = {
    "default": Recipe(default_factors, "kept", "nothing", True, "Hu et al. 2021, arXiv:2106.09685"),
    "random": Recipe(random_factors, "kept", "nothing", False, "PEFT's False, for debugging"),
    "gaussian": Recipe(gaussian_factors, "kept", "nothing", True, "PEFT, after diffusers"),
    "orthogonal": Recipe(
        orthogonal_factors, "kept", "nothing", True, "PEFT, after datta0.github.io/posts/rethink-lora-init"
    ),
    "pissa": Recipe(pissa_factors, "residual", "weight", True, "Meng et al. 2024, arXiv:2404.02948"),
    "olora": Recipe(olora_factors, "residual", "weight", True, "Büyükakyüz 2024, arXiv:2406.01775"),
    "mica": Recipe(mica_factors, "kept", "weight", True, "MiCA 2026, arXiv:2604.01694", "A"),
    "corda": Recipe(corda_factors, "residual", "inputs", True, "Yang et al. 2024, arXiv:2406.05223"),
    "eva": Recipe(eva_factors, "kept", "inputs", True, "Paischer et al. 2024, arXiv:2410.07170"),
    "lora_ga": Recipe(lora_ga_factors, "residual", "gradient", True, "Wang et al. 2024, arXiv:2407.05000"),
    "loftq": Recipe(loftq_factors, "quantized", "weight", False, "Li et al. 2023, arXiv:2310.08659"),
}
DATA_DRIVEN = tuple(name for name, recipe in INITS.items() if recipe.needs in ("inputs", "gradient"))


@dataclass(frozen=True, eq=False)  # options may hold tensors
class NamedInit:
    """A row of the table with its options filled in: an `Init`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return INITS[self.name]

    def __call__(self, weight: Tensor, rank: int, scale: float) -> Start:
        A, B, *shift = self.recipe.factors(weight, rank, scale, **self.options)
        if self.recipe.base == "residual":
            shift = A, B
        # LoftQ's first iterate has a shift of zeros, which is none.
        return Start(A, B, tuple(shift) if any(factor.any() for factor in shift) else None, self.recipe.trains)


def named(name: str, **options: Any) -> NamedInit:
    """The init of that name, with options: `named("pissa", niter=16)`, `named("loftq", iterations=5)`.

    "pissa_niter_16" is PEFT's way to write the first of these. Upper and lower case count.
    Raises ValueError for a name that is not in the table.
    """
    niter = re.fullmatch(r"pissa_niter_(\d+)", name)
    if niter:
        name, options = "pissa", {"niter": int(niter[1]), **options}
    if name not in INITS:
        raise ValueError(f"unknown init {name!r}: one of {', '.join(INITS)}, pissa_niter_N")
    return NamedInit(name, options)


def resolve(init: Init | str | bool) -> Init:
    """An init from what people write: a function, a name, True (default) or False (random, as in PEFT).

    Raises TypeError for anything else (None is random in PEFT; here it is refused), ValueError for an unknown name or
    one that needs data, which `lora_lab.init.prepare` gathers.
    """
    if isinstance(init, bool):
        return NamedInit("default" if init else "random")
    if isinstance(init, str):
        found = named(init)
        if found.name in DATA_DRIVEN:
            raise ValueError(
                f"init {init!r} needs data: inject(model, **prepare({init!r}, model, targets, batches, rank, alpha))"
            )
        return found
    if not callable(init):
        raise TypeError(f"init must be a function, a name, True or False, got {init!r}")
    return init
