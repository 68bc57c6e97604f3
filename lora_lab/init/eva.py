"""EVA: A holds the directions in which the inputs of a layer vary most, and layers whose inputs say more get more rank.

    X (tokens, in) the layer's inputs, centred.      U S Vᵀ = svd(X)      A = Vᵀ[:rank]      B = 0      base untouched
    explained variance ratio of direction i: Sᵢ² / Σ S².  The rank·layers largest of all layers' ratios say which
    layer gets how many directions, each at most rank·rho.

Source: Paischer et al. 2024 (arXiv:2410.07170), algorithm 1. The directions are found while a model runs, by
`lora_lab.init.statistics.input_components`.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from lora_lab.init.check import check_matrix, check_positive, check_rank


class Components(NamedTuple):
    """Principal components of a layer's inputs: directions (n, in), orthonormal rows; singular values (n,) of the
    centred inputs; explained (n,), the share of the inputs' variance along each direction."""

    directions: Tensor
    singular_values: Tensor
    explained: Tensor


@torch.no_grad()
def eva_factors(
    weight: Tensor, rank: int, scale: float, components: Components, whiten: bool = False
) -> tuple[Tensor, Tensor]:
    """A (rank, in), the first `rank` directions, and B = 0 (out, rank), for a `weight` (out, in).

    Only shape, dtype and device of `weight` are read; `scale` is unused. fp32, or fp64 if components or weight are.
    whiten: divide each direction by the square root of its singular value. (PEFT does so once for every layer that
        shares the same inputs, in place: with q, k and v it divides three times.)
    Raises ValueError or TypeError for a rank or scale outside its limits, or components that are too few, of another
    width, not finite, or zero where `whiten` would divide.
    """
    check_matrix(weight)
    check_positive(scale, "scale")
    check_rank(rank, min(weight.shape))
    V, S = components.directions, components.singular_values
    check_matrix(V, "components")
    if V.shape[1] != weight.shape[1] or len(V) < rank or len(S) != len(V):
        raise ValueError(
            f"components must be (n >= {rank}, in = {weight.shape[1]}) with n singular values, got {tuple(V.shape)} "
            f"and {tuple(S.shape)}"
        )
    A, S = V[:rank], S[:rank]
    if not A.isfinite().all() or not S.isfinite().all():
        raise ValueError(f"components {tuple(V.shape)} are not all finite")
    if whiten:
        if not (S > 0).all():
            raise ValueError(f"cannot whiten: {int((S <= 0).sum())} of {rank} singular values are 0 (too few tokens)")
        A = A / S.sqrt()[:, None]
    wide = torch.promote_types(torch.promote_types(A.dtype, weight.dtype), torch.float32)
    B = torch.zeros(len(weight), rank, dtype=wide, device=weight.device)
    return A.to(weight.device, wide, copy=True), B


def eva_ranks(explained: Mapping[str, Tensor], rank: int, rho: float = 2.0) -> dict[str, int]:
    """The rank of each layer, 0 included: how many of the rank·layers largest ratios are its own.

    explained: each layer's explained variance ratios (n,), from large to small. At most round(rank·rho) of them count.
    Equal ratios (layers with the same inputs) are served in the order of the layers, as in PEFT.
    Raises ValueError if `explained` is empty, holds anything but numbers from 0, or fewer than `rank` for a layer.
    """
    limit = most_components(rank, rho)
    if not explained:
        raise ValueError("explained is empty: no layer to give a rank to")
    for path, ratios in explained.items():
        if ratios.ndim != 1 or len(ratios) < rank or not (ratios >= 0).all():  # NaN fails as well
            raise ValueError(f"{path}: needs at least {rank} ratios >= 0, got {ratios.tolist()}")
    layers, ratios = list(explained), [ratios[:limit].cpu() for ratios in explained.values()]
    owner = torch.repeat_interleave(torch.tensor([len(r) for r in ratios]))
    order = torch.cat(ratios).argsort(descending=True, stable=True)
    counts = owner[order[: rank * len(layers)]].bincount(minlength=len(layers))
    return dict(zip(layers, counts.tolist(), strict=True))


def eva_alphas(ranks: Mapping[str, int], rank: int, alpha: float, rslora: bool = False) -> dict[str, float]:
    """The alpha of each layer that keeps a rank, so that its scale is what it was before the ranks were dealt out.

    alpha·rₗ/rank, or alpha·√(rₗ/rank) with `rslora` (where PEFT takes the first, so that its scale changes).
    """
    kept = {path: r for path, r in ranks.items() if r}
    return {path: alpha * (math.sqrt(r / rank) if rslora else r / rank) for path, r in kept.items()}


def positive(V: Tensor) -> Tensor:
    """The sign (n,) that makes the largest entry of each row of V positive: of v and -v, always the same one."""
    return V.gather(1, V.abs().argmax(1, keepdim=True)).sign().squeeze(1)


def most_components(rank: int, rho: float) -> int:
    """round(rank·rho), the most directions that a layer may get. Raises ValueError unless rank >= 1 and rho >= 1."""
    check_rank(rank, 2**31)
    if isinstance(rho, bool) or not isinstance(rho, Real) or not 1 <= rho < math.inf:
        raise ValueError(f"rho must be a finite number of at least 1, got {rho!r}")
    return round(rank * rho)
