"""Task arithmetic on tensors, with pruning and with votes: the rules behind linear, magnitude_prune, DARE and TIES.

    sum:      Σ wᵢ P(τᵢ)
    elected:  Σ wᵢ P(τᵢ) mᵢ / Σ mᵢ    mᵢ = [sign P(τᵢ) = majority sign], elementwise

P prunes: `trim` keeps the largest (TIES), `drop` keeps a random share and rescales it (DARE).
Sources: TIES, Yadav et al. 2023 (arXiv:2306.01708), algorithm 1; DARE, Yu et al. 2023 (arXiv:2311.03099), section 3.

A rule works on ΔW itself ("..._svd": the result is dense and then cut to a rank), or, as PEFT's short names do, once
on the As and once on the Bs. The product of two such results also holds Bᵢ Aⱼ of different adapters: see `errors.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_lab.adapter import Factors
from lora_lab.combine.check import Part
from lora_lab.combine.exact import split, unscaled
from lora_lab.lowrank import top_svd


class Rule(NamedTuple):
    prune: str | None  # "trim", "drop" or None
    elect: bool


RULES = {
    "linear": Rule(None, elect=False),
    "magnitude_prune": Rule("trim", elect=False),
    "dare_linear": Rule("drop", elect=False),
    "ties": Rule("trim", elect=True),
    "dare_ties": Rule("drop", elect=True),
}


class Options(NamedTuple):
    density: float
    majority_sign_method: str
    generator: torch.Generator | None


def by_factors(parts: list[Part], rule: Rule, options: Options) -> Factors:
    """The rule on all A (rank, in), then on all B (out, rank), each adapter written with scale 1: √s·A, √s·B.

    A weight's sign goes to A before the vote, its size to both sides: √|w|. Thinner factors count as padded by zeros.
    """
    sides = [_signed(p) * p.scale**0.5 * p.A for p in parts], [p.scale**0.5 * p.B for p in parts]
    return unscaled(*(apply(rule, side, [abs(p.weight) ** 0.5 for p in parts], options) for side in sides))


def by_delta(parts: list[Part], rule: Rule, options: Options, rank: int | None) -> Factors:
    """The rule on the dense updates s·BA (out, in), then the nearest matrix of at most `rank`."""
    deltas = [_signed(p) * p.scale * (p.B @ p.A) for p in parts]
    dense = apply(rule, deltas, [abs(p.weight) for p in parts], options)
    rank = min(rank or max(p.rank for p in parts), *dense.shape)
    return split(*top_svd(dense, rank), rank, dense.dtype)


def apply(rule: Rule, tensors: list[Tensor], weights: list[float], options: Options) -> Tensor:
    """Prune each, then add up, elected or not. Pruned before padded: zeros of the padding are not among the kept."""
    pruned = [_prune(tensor, rule.prune, options) for tensor in tensors]
    rows, cols = (max(t.shape[axis] for t in pruned) for axis in (0, 1))
    stack = torch.stack([F.pad(t, (0, cols - t.shape[1], 0, rows - t.shape[0])) for t in pruned])
    weighted = stack * torch.tensor(weights, dtype=stack.dtype, device=stack.device)[:, None, None]
    if not rule.elect:
        return weighted.sum(0)
    agree = stack.sign() == majority_sign(stack, options.majority_sign_method)
    return (weighted * agree).sum(0) / agree.sum(0).clamp(min=1)


def majority_sign(stack: Tensor, method: str) -> Tensor:
    """+1 or -1 for every entry of stack (n, ...): that of the sum ("total"), or of most ("frequency"); +1 if even."""
    votes = stack if method == "total" else stack.sign()
    return torch.where(votes.sum(0) >= 0, 1, -1)


def _prune(tensor: Tensor, how: str | None, options: Options) -> Tensor:
    if how is None or options.density == 1:
        return tensor
    return trim(tensor, options.density) if how == "trim" else drop(tensor, options.density, options.generator)


def trim(tensor: Tensor, density: float) -> Tensor:
    """The ⌊density · n⌋ largest of n entries by absolute value (at least one), the others zero."""
    kept = tensor.abs().flatten().topk(max(1, int(density * tensor.numel()))).indices
    mask = torch.zeros_like(tensor).flatten()
    mask[kept] = 1
    return tensor * mask.view_as(tensor)


def drop(tensor: Tensor, density: float, generator: torch.Generator | None = None) -> Tensor:
    """Each entry kept with probability `density` and divided by it, so that its mean stays; the others zero.

    One Bernoulli draw in fp32 for each entry, on the tensor's device: the draws that PEFT makes.
    """
    chances = torch.full(tensor.shape, density, dtype=torch.float32, device=tensor.device)
    return tensor * torch.bernoulli(chances, generator=generator).to(tensor.dtype) / density


def _signed(part: Part) -> int:
    return -1 if part.weight < 0 else 1
