"""Many adapters into one:  ΔW ≈ Σ wᵢ ΔWᵢ.

Exact is "cat", whose rank is the sum of the ranks; "svd" is the best of a given rank. "linear" adds the As and the Bs
on their own. TIES, DARE and magnitude pruning take entries away first, so that adapters disturb each other less.
"""

from collections.abc import Sequence
from numbers import Real

import torch

from lora_lab.adapter import Adapter, Factors
from lora_lab.combine.check import Part, layers_of
from lora_lab.combine.errors import (
    CombinationError,
    CrossTerms,
    LayerError,
    combination_error,
    linear_cross_terms,
    refuse_different_layers,
)
from lora_lab.combine.exact import cat, rank_limit, svd
from lora_lab.combine.intruders import Reduction, reduce_intruders
from lora_lab.combine.sparse import RULES, Options, Rule, by_delta, by_factors
from lora_lab.init.check import check_rank

__all__ = [
    "METHODS",
    "CombinationError",
    "CrossTerms",
    "LayerError",
    "Reduction",
    "combination_error",
    "combine",
    "linear_cross_terms",
    "reduce_intruders",
]

METHODS = ("cat", "svd", *RULES, *(name + "_svd" for name in RULES if name != "linear"))
SIGN_METHODS = ("total", "frequency")


@torch.no_grad()
def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    method: str,
    *,
    rank: int | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
    generator: torch.Generator | None = None,
) -> Adapter:
    """One adapter for Σ wᵢ ΔWᵢ, with scale 1 (alpha = rank); the sources are left alone. A weight may be negative.

    method:
        "cat": exact, rank Σ rᵢ. Above min(out, in), more than a layer takes, "svd" loses nothing either.
        "svd": the best of `rank`, without forming an (out, in) matrix. `combination_error` tells what is lost.
        "linear": (Σ √|cᵢ| Bᵢ)(Σ ±√|cᵢ| Aᵢ), cᵢ = wᵢ sᵢ: cheap, with the cross terms that `linear_cross_terms` shows.
        "magnitude_prune", "dare_linear", "ties", "dare_ties": the same on pruned factors.
        "magnitude_prune_svd", "dare_linear_svd", "ties_svd", "dare_ties_svd": on the dense ΔWᵢ, then cut to `rank`.
    rank: of the svd methods; None is the largest rank among the adapters that have the layer. A layer whose sum has
        less gets less, down to what is there.
    density: share of the entries that pruning keeps, above 0 to 1.
    majority_sign_method: of TIES, the sign of the "total" or the more frequent sign ("frequency").
    generator: of DARE, on the adapters' device; None is torch's global one, in PEFT's order: As, then Bs, by layer.

    cat and the svd methods take adapters with different layers; the others want the same. Ranks, alphas and rsLoRA may
    differ: everything is first written with scale 1, and a negative weight is the negated adapter, also in a vote.

    Raises TypeError or ValueError, naming value and limit: no adapters, another number of weights, NaN, factors that
    do not fit, layers that differ in shape, an unknown method, rank or density missing, out of range or of no use.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: it is one of {', '.join(METHODS)}")
    layers = layers_of(adapters, weights)
    rule = RULES.get(method.removesuffix("_svd"))
    _check_rank(rank, method, layers)
    if majority_sign_method not in SIGN_METHODS:
        raise ValueError(f"majority_sign_method must be one of {SIGN_METHODS}, got {majority_sign_method!r}")
    options = Options(_check_density(density, method, rule), majority_sign_method, generator)
    _check_generator(generator, layers)
    if method in RULES:
        refuse_different_layers(adapters, method)

    def one(parts: list[Part]) -> Factors:
        if method == "cat":
            return cat(parts)
        if method == "svd":
            return svd(parts, rank)
        return by_factors(parts, rule, options) if method in RULES else by_delta(parts, rule, options, rank)

    return {path: one(parts) for path, parts in layers.items()}


def _check_rank(rank: int | None, method: str, layers: dict[str, list[Part]]) -> None:
    if rank is None:
        return
    if not method.endswith("svd"):
        raise ValueError(f"rank {rank!r} is of no use to {method}: only the svd methods cut to a rank")
    limit, path = rank_limit(layers)
    check_rank(rank, limit, f"rank, for {path!r},")


def _check_density(density: float | None, method: str, rule: Rule | None) -> float:
    if rule is None or rule.prune is None:
        if density is not None:
            raise ValueError(f"density {density!r} is of no use to {method}: it prunes nothing")
        return 1.0
    if isinstance(density, bool) or not isinstance(density, Real) or not 0 < density <= 1:
        raise ValueError(f"{method} needs a density above 0 and at most 1, got {density!r}")
    return float(density)


def _check_generator(generator: torch.Generator | None, layers: dict[str, list[Part]]) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    for path, parts in layers.items():
        if parts[0].A.device.type != generator.device.type:
            raise ValueError(f"generator is on {generator.device}, but layer {path!r} on {parts[0].A.device}")
