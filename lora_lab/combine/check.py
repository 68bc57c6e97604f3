"""What `combine` refuses, and how it looks at a layer: as the weighted `Part` of each adapter that has it."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from lora_lab.adapter import Adapter, Factors
from lora_lab.init.check import check_matrix, check_positive, refuse_not_finite


class Part(NamedTuple):
    """What one adapter puts into one layer: weight · scale · BA.  A (rank, in), B (out, rank), fp32 or fp64."""

    A: Tensor
    B: Tensor
    scale: float
    weight: float

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]


def layers_of(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, list[Part]]:
    """The parts of every layer that any adapter has, in the order in which the layers first appear.

    All parts of a layer are in one dtype (the widest, at least fp32), on the device of the first.
    Raises TypeError or ValueError naming adapter, layer, value and limit.
    """
    weights = check_weights(adapters, weights)
    for number, adapter in enumerate(adapters):
        check_adapter(adapter, f"adapter {number}")
    layers: dict[str, list[tuple[int, Factors, float]]] = {}
    for number, (adapter, weight) in enumerate(zip(adapters, weights, strict=True)):
        for path, factors in adapter.items():
            layers.setdefault(path, []).append((number, factors, weight))
    return {path: _unify(path, found) for path, found in layers.items()}


def check_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> list[float]:
    """One finite number for each adapter, as floats."""
    if isinstance(adapters, Mapping) or not isinstance(adapters, Sequence):
        raise TypeError(f"adapters must be a list of adapters, got {type(adapters).__name__}")
    if not adapters:
        raise ValueError("there are no adapters to combine")
    weights = weights.tolist() if isinstance(weights, Tensor) else weights
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"weights must be a list of numbers, one for each adapter, got {type(weights).__name__}")
    if len(weights) != len(adapters):
        raise ValueError(f"{len(weights)} weights for {len(adapters)} adapters: one for each is needed")
    for number, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise ValueError(f"weight {number} must be a finite number, got {weight!r}")
    return [float(weight) for weight in weights]


def check_adapter(adapter: Adapter, name: str = "the adapter") -> None:
    """Raise TypeError or ValueError unless `adapter` maps some path to finite factors that fit, and none is DoRA's."""
    if not isinstance(adapter, Mapping):
        raise TypeError(f"{name} must map module paths to Factors, got {type(adapter).__name__}")
    if not adapter:
        raise ValueError(f"{name} has no layers")
    for path, factors in adapter.items():
        if not isinstance(factors, Factors):
            raise TypeError(f"{name}, {path!r}: must be Factors(A, B, alpha, rslora), got {type(factors).__name__}")
        if factors.magnitude is not None:
            raise ValueError(f"{name}, {path!r}: is a DoRA layer, whose update is not s·BA alone: merge it instead")
        for letter in "AB":
            factor = check_matrix(getattr(factors, letter), f"{name}, {path!r}: {letter}")
            refuse_not_finite(factor, f"{name}, {path!r}: {letter}")
        if factors.A.shape[0] != factors.B.shape[1]:
            shapes = f"A {tuple(factors.A.shape)} and B {tuple(factors.B.shape)}"
            raise ValueError(f"{name}, {path!r}: {shapes} are not (rank, in) and (out, rank) of one rank")
        check_positive(factors.alpha, f"{name}, {path!r}: alpha")


def _unify(path: str, found: list[tuple[int, Factors, float]]) -> list[Part]:
    first_number, first, _ = found[0]
    dtype = torch.float32
    for number, factors, _ in found:
        shapes = [(f.B.shape[0], f.A.shape[1]) for f in (first, factors)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"layer {path!r} is (out, in) = {shapes[0]} in adapter {first_number}, but {shapes[1]} in {number}"
            )
        dtype = torch.promote_types(dtype, torch.promote_types(factors.A.dtype, factors.B.dtype))
    kept = {"dtype": dtype, "device": first.A.device}
    return [Part(f.A.detach().to(**kept), f.B.detach().to(**kept), f.scale, weight) for _, f, weight in found]
