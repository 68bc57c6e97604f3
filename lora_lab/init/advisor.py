"""Which init for this model, this data and these limits? A decision with its reasons, and how good each reason is.

    print(advise(model, rank=16, examples=2_000, keep_knowledge=True))

What rules an init out is a fact about how it works. What speaks for one is evidence, of three kinds:

    measured    in this course, recorded in data/measurements/inits.json
    published   by the paper or in PEFT's own comparison, not measured here
    folklore    often said, without a measurement that we know of
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from lora_lab.base import weight_shape
from lora_lab.init.costs import Cost, Shapes, setup_cost
from lora_lab.init.evidence import Reason, measured, published
from lora_lab.init.table import INITS
from lora_lab.inject import count
from lora_lab.targets import find_targets

KINDS = ("linear", "embedding", "convolution", "experts")
WEIGHT = {"fact": 2.0, "measured": 2.0, "published": 1.0, "folklore": 0.25}


@dataclass(frozen=True)
class Advice:
    """An init, whether it can be used here, how much speaks for it, why, and what setting it up takes."""

    name: str
    cost: Cost
    reasons: list[Reason] = field(default_factory=list)

    @property
    def possible(self) -> bool:
        return all(reason.sign for reason in self.reasons)

    @property
    def score(self) -> float:
        return sum(reason.sign * WEIGHT[reason.evidence] for reason in self.reasons)


class Ranking(list):
    """`Advice` for every init, best first; those that are ruled out come last."""

    def __str__(self) -> str:
        lines = [f"{'init':<11}{'score':>6}  {'set-up':>10} {'memory':>9} {'tokens':>8}"]
        for advice in self:
            score = f"{advice.score:+.2f}" if advice.possible else "no"
            flops, size, tokens = advice.cost
            lines.append(f"{advice.name:<11}{score:>6}  {flops / 1e9:>7.3g} GF {size / 1e6:>6.3g} MB {tokens:>8,}")
            lines += [f"    {reason}" for reason in advice.reasons]
        return "\n".join(lines)


def advise(
    model: nn.Module | Shapes,
    rank: int,
    *,
    targets="all-linear",
    examples: int = 0,
    tokens_per_example: int = 256,
    quantized: bool = False,
    original_weights: bool = True,
    keep_knowledge: bool = False,
    short_run: bool = False,
    several_adapters: bool = False,
    memory_bytes: float | None = None,
    flops: float | None = None,
    layer_kinds: tuple[str, ...] = ("linear",),
) -> Ranking:
    """Rank all inits for a model, or for the `shapes` (out, in) of its weights by path.

    examples, tokens_per_example: the data at hand. quantized: will the base be held in 4 or 8 bits?
    original_weights: are its full-precision weights there? keep_knowledge: must what the base knows survive?
    short_run: are there only some dozens of steps? several_adapters: will others live on the same base?
    memory_bytes, flops: what the set-up may take (None: anything). layer_kinds: of the targets, out of `KINDS`.

    Raises ValueError for settings outside their limits, and as `find_targets` and `setup_cost` do.
    """
    if isinstance(model, nn.Module):
        shapes = {path: weight_shape(layer) for path, layer in find_targets(model, targets).items()}
        parameters = count(model).total
    elif isinstance(model, Mapping):
        shapes, parameters = dict(model), None
    else:
        raise TypeError(f"model must be a torch module or shapes by path, got {type(model).__name__}")
    for name, value in (("examples", examples), ("tokens_per_example", tokens_per_example)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number from 0, got {value!r}")
    for name, limit in (("memory_bytes", memory_bytes), ("flops", flops)):
        if limit is not None and not limit >= 0:
            raise ValueError(f"{name} must be None or not negative, got {limit!r}")
    odd = [kind for kind in layer_kinds if kind not in KINDS]
    if odd or not layer_kinds:
        raise ValueError(f"layer_kinds must be some of {KINDS}, got {layer_kinds!r}")
    case = Case(
        shapes=shapes,
        rank=rank,
        tokens=examples * tokens_per_example,
        quantized=quantized,
        original=original_weights,
        keep=keep_knowledge,
        short=short_run,
        several=several_adapters,
        memory=memory_bytes,
        flops=flops,
        kinds=layer_kinds,
    )
    ranking = [
        Advice(name, cost := setup_cost(name, shapes, rank, parameters), case.reasons(name, cost)) for name in INITS
    ]
    return Ranking(sorted(ranking, key=lambda advice: (not advice.possible, -advice.score, advice.cost.flops)))


@dataclass(frozen=True)
class Case:
    shapes: Shapes
    rank: int
    tokens: int
    quantized: bool
    original: bool
    keep: bool
    short: bool
    several: bool
    memory: float | None
    flops: float | None
    kinds: tuple[str, ...]

    def reasons(self, name: str, cost: Cost) -> list[Reason]:
        return [*self._ruled_out(name, cost), *self._facts(name), *measured(self, name), *published(self, name)]

    def _ruled_out(self, name: str, cost: Cost) -> list[Reason]:
        recipe, found = INITS[name], []

        def no(text: str) -> None:
            found.append(Reason(text, 0, "fact"))

        if name == "random":
            no("starts with a random change of the model: PEFT has it for debugging")
        if name == "orthogonal" and self.rank % 2:
            no(f"needs an even rank, not {self.rank}")
        if name == "lora_ga" and 2 * self.rank > min(min(s) for s in self.shapes.values()):
            no(f"needs 2·rank = {2 * self.rank} singular vectors, more than the smallest weight has")
        if recipe.needs in ("inputs", "gradient") and self.tokens < cost.tokens:
            no(f"wants about {cost.tokens:,} tokens of data, {self.tokens:,} are there")
        if recipe.base != "kept" and self.quantized and not self.original:
            no("takes its part out of the full-precision weights, which are not there")
        if name == "loftq" and not self.quantized:
            no("is about the error of quantization, and the base is not quantized")
        others = [kind for kind in self.kinds if kind != "linear"]
        if others and name not in ("default", "gaussian"):
            no(f"is defined for linear layers, not for {' and '.join(others)}")
        if self.memory is not None and cost.bytes > self.memory:
            no(f"holds {cost.bytes / 1e6:,.0f} MB beside the model, {self.memory / 1e6:,.0f} MB are free")
        if self.flops is not None and cost.flops > self.flops:
            no(f"takes {cost.flops / 1e9:,.0f} GFLOP to set up, {self.flops / 1e9:,.0f} are allowed")
        return found

    def _facts(self, name: str) -> list[Reason]:
        recipe, found = INITS[name], []
        if name == "default":
            found.append(Reason("no set-up, the base untouched, and every tool expects it", 1, "fact"))
        if recipe.base == "residual" and self.several:
            found.append(Reason("shifts the base that the others share, unless converted to rank 2r", -1, "fact"))
        return found
