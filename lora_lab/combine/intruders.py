"""Take the intruder dimensions of an adapted layer down, by a change to the adapter alone.

    ΔW' = ΔW + (keep − 1) Σ sⱼ uⱼ vⱼᵀ  over the intruders (uⱼ, sⱼ, vⱼ) of W + ΔW;   n intruders: rank at most r + n

Source: Shuttleworth et al. 2024 (arXiv:2410.21228), the intervention λ = keep. 1 leaves all as it is, 0 removes them.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_lab.adapter import Adapter, Factors
from lora_lab.base import is_linear, oriented_weight, weight_shape
from lora_lab.combine.check import check_adapter
from lora_lab.combine.exact import precise, ratio
from lora_lab.layer import LoRALinear
from lora_lab.spectrum import Intruders, factor_svd, intruder_dimensions
from lora_lab.spectrum.check import matrix
from lora_lab.spectrum.intruders import check_intruders


class Reduction(NamedTuple):
    """The new adapter; what was found, by layer; and ‖lost‖ / ‖ΔW'‖ by layer: 0 unless the rank was kept."""

    adapter: Adapter
    intruders: dict[str, Intruders]
    lost: dict[str, float]


@torch.no_grad()
def reduce_intruders(
    adapter: Adapter,
    base: nn.Module | Mapping[str, Tensor],
    k: int = 10,
    epsilon: float = 0.5,
    keep: float = 0.75,
    keep_rank: bool = False,
) -> Reduction:
    """Scale every intruder dimension of W + ΔW to the share `keep` of its singular value.

    base: the model, adapted or not, or the weights W (out, in) by path. It is only read.
    k, epsilon: what counts as an intruder, as in `intruder_dimensions`.
    keep: what stays of each, 0 to 1 (PEFT: `mitigation_lambda`, whose description there is the wrong way round).
    keep_rank: cut to the rank that the layer had, as PEFT does, at the price of `lost`. Otherwise ΔW' is exact, and
        its rank r (`result.adapter[path].rank`) grows by one for each intruder that lies neither in B's column
        space nor in A's row space.

    Scale and rsLoRA of each layer stay. Raises TypeError or ValueError with nothing changed: a layer that the base
    lacks or has in another shape, a base that holds an update (merged, or shifted by its init), settings out of range.
    """
    check_adapter(adapter)
    check_intruders(k, epsilon)
    if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 <= keep <= 1:
        raise ValueError(f"keep must be from 0 (remove) to 1 (leave), got {keep!r}")
    sources = _sources(base, adapter)
    result = Reduction({}, {}, {})
    for path, factors in adapter.items():
        source = sources[path]
        weight = matrix(oriented_weight(source) if isinstance(source, nn.Module) else source, path)
        found = intruder_dimensions(weight, factors.delta().to(weight.device), k, epsilon)
        result.intruders[path] = found
        result.adapter[path], result.lost[path] = _reduced(factors, found, keep, keep_rank)
    return result


def _reduced(factors: Factors, found: Intruders, keep: float, keep_rank: bool) -> tuple[Factors, float]:
    dtype = torch.promote_types(torch.promote_types(factors.A.dtype, factors.B.dtype), torch.float32)
    A, B = (factor.detach().to(factors.A.device, dtype, copy=True) for factor in factors[:2])
    if not len(found.s):
        return factors._replace(A=A, B=B), 0.0
    change = (keep - 1) * found.s[:, None] * found.Vh
    stacked_A = torch.cat([factors.scale * A, change.to(A)])
    U, s, Vh = factor_svd(precise(stacked_A), precise(torch.cat([B, found.U.to(B)], dim=1)))
    # Directions below the rounding of what came in are not there.
    there = int((s > max(len(U), Vh.shape[1]) * torch.finfo(dtype).eps * s[0]).sum())
    rank = min(factors.rank, len(s)) if keep_rank else max(1, there)
    root = (s[:rank] / factors.scale).sqrt()
    alpha = factors.scale * (math.sqrt(rank) if factors.rslora else rank)
    kept = Factors((root[:, None] * Vh[:rank]).to(dtype), (U[:, :rank] * root).to(dtype), alpha, factors.rslora)
    return kept, ratio(s[rank:].norm().item(), s.norm().item()) if keep_rank else 0.0


def _sources(base: nn.Module | Mapping[str, Tensor], adapter: Adapter) -> dict[str, nn.Module | Tensor]:
    """By path what holds W (out, in) as it was before the adapter; a quantized layer is read when its turn comes."""
    if not isinstance(base, nn.Module | Mapping):
        raise TypeError(f"base must be a model or map paths to weights, got {type(base).__name__}")
    modules = dict(base.named_modules()) if isinstance(base, nn.Module) else base
    missing = [path for path in adapter if path not in modules]
    if missing:
        raise ValueError(f"the base lacks {len(missing)} of {len(adapter)} layers ({missing[0]!r}, ...)")
    sources = {path: _source(modules[path], path) for path in adapter}
    for path, source in sources.items():
        wanted = adapter[path].B.shape[0], adapter[path].A.shape[1]
        got = weight_shape(source) if isinstance(source, nn.Module) else tuple(source.shape)
        if got != wanted:
            raise ValueError(f"{path!r}: the adapter wants a weight (out, in) = {wanted}, the base has {got}")
    return sources


def _source(found: nn.Module | Tensor, path: str) -> nn.Module | Tensor:
    if isinstance(found, LoRALinear):
        if found.merged or found.shifted:
            held = "an update, it is merged" if found.merged else "the shift of its init"
            raise ValueError(f"{path!r}: the base weight holds {held}; intruders are told by the weight before")
        found = found.base
    if not isinstance(found, Tensor) and not (isinstance(found, nn.Module) and is_linear(found)):
        raise TypeError(f"{path!r}: the base must have a linear layer or a weight there, got {type(found).__name__}")
    return found
