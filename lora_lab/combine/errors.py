"""How far a combination is from the exact sum, and what "linear" adds that nobody asked for.

    linear:  (Σ √cᵢ Bᵢ)(Σ √cⱼ Aⱼ) = Σ cᵢ Bᵢ Aᵢ  +  Σ_{i≠j} √(cᵢ cⱼ) Bᵢ Aⱼ        cᵢ = wᵢ sᵢ
                                    the wanted sum   the cross terms

Norms are Frobenius norms, taken from thin factors: no (out, in) matrix is formed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_lab.adapter import Adapter, Factors
from lora_lab.combine.check import Part, check_adapter, layers_of
from lora_lab.combine.exact import cat, precise, ratio, unscaled
from lora_lab.combine.sparse import RULES, Options, by_factors
from lora_lab.spectrum import factor_norm


class LayerError(NamedTuple):
    """‖combined − wanted‖ and ‖wanted‖ of one layer."""

    error: float
    norm: float

    @property
    def relative(self) -> float:
        return ratio(self.error, self.norm)


class CombinationError(NamedTuple):
    """`relative`: √(Σ error²) / √(Σ norm²) over all layers; `layers`: each by its path."""

    relative: float
    layers: dict[str, LayerError]


class CrossTerms(NamedTuple):
    """Of one layer under "linear". `terms[i, j]` (n, n) = ‖√|cᵢ cⱼ| Bᵢ Aⱼ‖: the diagonal is wanted, the rest is not."""

    wanted: Factors
    cross: Factors
    terms: Tensor
    wanted_norm: float
    cross_norm: float

    @property
    def relative(self) -> float:
        return ratio(self.cross_norm, self.wanted_norm)


@torch.no_grad()
def combination_error(adapters: Sequence[Adapter], weights: Sequence[float], combined: Adapter) -> CombinationError:
    """Distance of `combined` from Σ wᵢ ΔWᵢ, layer by layer and in all; a layer that one side lacks counts as zero.

    For "cat" it is the rounding of its factors, for "svd" what the rank leaves out: no adapter of it has less.
    Raises as `combine` does, and ValueError if a layer of `combined` has another shape than in `adapters`.
    """
    wanted = {
        path: cat([part._replace(A=precise(part.A), B=precise(part.B)) for part in parts])
        for path, parts in layers_of(adapters, weights).items()
    }
    check_adapter(combined, "combined")
    layers = {}
    for path in dict.fromkeys([*wanted, *combined]):
        error = _distance(path, wanted.get(path), combined.get(path))
        layers[path] = LayerError(error, _norm(wanted[path]) if path in wanted else 0.0)
    error, norm = torch.tensor(list(layers.values()), dtype=torch.float64).norm(dim=0).tolist()
    return CombinationError(ratio(error, norm), layers)


@torch.no_grad()
def linear_cross_terms(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, CrossTerms]:
    """For every layer what "linear" makes, taken apart: linear's ΔW = wanted.delta() + cross.delta().

    Raises as `combine(adapters, weights, "linear")` does.
    """
    layers = layers_of(adapters, weights)
    refuse_different_layers(adapters, "linear")
    return {path: _taken_apart(parts) for path, parts in layers.items()}


def refuse_different_layers(adapters: Sequence[Adapter], method: str) -> None:
    """Raise ValueError unless all adapters have the same layers."""
    for number, adapter in enumerate(adapters):
        odd = sorted(adapter.keys() ^ adapters[0].keys())
        if odd:
            raise ValueError(
                f"{method} mixes factor with factor and wants the same layers in all adapters, but {len(odd)} of them "
                f"({odd[0]!r}, ...) are in only one of adapters 0 and {number}: use cat or an svd method"
            )


def _taken_apart(parts: list[Part]) -> CrossTerms:
    wanted = cat(parts)
    rule, options = RULES["linear"], Options(1.0, "total", None)
    mixed = by_factors(parts, rule, options)
    alone = [by_factors([part], rule, options) for part in parts]
    # Each adapter's B meets what the others put into A. Only its own rows of it: beyond, B is padded with zeros.
    others = [mixed.A[: own.rank] - own.A for own in alone]
    cross = unscaled(torch.cat(others), torch.cat([own.B for own in alone], dim=1))
    terms = torch.tensor([[_product_norm(left, right) for right in alone] for left in alone], dtype=torch.float64)
    return CrossTerms(wanted, cross, terms, _norm(wanted), _norm(cross))


def _product_norm(left: Factors, right: Factors) -> float:
    """‖B of left times A of right‖; the longer meets the zeros that pad the shorter."""
    rank = min(left.rank, right.rank)
    return factor_norm(precise(right.A[:rank]), precise(left.B[:, :rank]))


def _norm(factors: Factors) -> float:
    return factor_norm(precise(factors.A), precise(factors.B), factors.scale)


def _distance(path: str, wanted: Factors | None, combined: Factors | None) -> float:
    if wanted is None or combined is None:
        return _norm(wanted or combined)
    shapes = [(f.B.shape[0], f.A.shape[1]) for f in (wanted, combined)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"layer {path!r} is (out, in) = {shapes[0]} in the adapters, but {shapes[1]} in combined")
    device = wanted.A.device
    # wanted − combined as one product: its norm, unlike that of two dense matrices, costs next to nothing.
    A, B = precise(combined.A.to(device)), precise(combined.B.to(device))
    return factor_norm(torch.cat([wanted.A, -combined.scale * A]), torch.cat([wanted.B, B], dim=1))
