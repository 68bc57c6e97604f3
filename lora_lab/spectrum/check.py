"""What every question about a spectrum refuses, and the type it is computed in: fp64 stays, all other types in fp32."""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from lora_lab.init.check import refuse_not_finite

Values = Tensor | Sequence[float]  # singular values, in any order


def wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def same_type(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes, on the first one's device."""
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(first.device, dtype)


def matrix(W: Tensor, name: str = "W") -> Tensor:
    """W as a finite matrix in fp32 or fp64, without gradient."""
    if not isinstance(W, Tensor) or W.ndim != 2 or not W.is_floating_point() or W.numel() == 0:
        found = f"{tuple(W.shape)} of {W.dtype}" if isinstance(W, Tensor) else type(W).__name__
        raise ValueError(f"{name} must be a matrix (out, in) of floating-point numbers, got {found}")
    if W.is_meta:
        raise ValueError(f"{name} {tuple(W.shape)} is on the meta device: it has a shape but no numbers")
    refuse_not_finite(W, name)
    return wide(W.detach())


def values(given: Values) -> Tensor:
    """Singular values as fp64 (k,), from large to small."""
    s = torch.as_tensor(given, dtype=torch.float64).detach()
    if s.ndim != 1 or len(s) == 0:
        raise ValueError(f"singular values must be one list of numbers (k,), got the shape {tuple(s.shape)}")
    if not s.isfinite().all() or s.min() < 0:
        raise ValueError(f"singular values are finite and at least 0, got {s.tolist()[:8]}")
    return s.sort(descending=True).values


def shares(s: Tensor) -> Tensor:
    """Share of Σ s² in the first 0, 1, ..., k values, (k + 1,); all 1 for a zero matrix."""
    # Divided first, as squares of tiny values would vanish; by a power of two, which rounds nothing.
    squares = (s / 2.0 ** math.frexp(s[0].item())[1]).square()
    sums = torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    return sums / sums[-1] if sums[-1] > 0 else torch.ones_like(sums)


def count(s: Tensor, shape: tuple[int, ...]) -> int:
    """Numerical rank of a matrix of this shape with the singular values s, from large to small."""
    return int((s > max(shape) * torch.finfo(s.dtype).eps * s[0]).sum())


def check_rank(rank: int, limit: int, name: str = "rank", low: int = 0) -> int:
    """`rank` as a plain int. Raises TypeError if it is no whole number, ValueError if it is outside its limits."""
    if isinstance(rank, bool):
        raise TypeError(f"{name} must be a whole number, got {rank!r}")
    if not low <= operator.index(rank) <= limit:
        raise ValueError(f"{name} {rank} is outside {low} to {limit}")
    return operator.index(rank)
