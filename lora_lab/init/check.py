"""What every init refuses before it computes anything."""

from numbers import Integral, Real

import torch
from torch import Tensor


def check_rank(rank: int, limit: int, name: str = "rank") -> int:
    """`rank` as a plain int. Raises ValueError unless it is a whole number from 1 to `limit`."""
    if isinstance(rank, bool) or not isinstance(rank, Integral) or not 1 <= rank <= limit:
        raise ValueError(f"{name} must be a whole number from 1 to min(out, in) = {limit}, got {rank!r}")
    return int(rank)


def check_positive(value: float, name: str) -> float:
    """`value` as a float. Raises ValueError unless it is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return float(value)


def check_matrix(matrix: Tensor, name: str = "weight", meta: bool = False) -> Tensor:
    """`matrix` itself. Raises TypeError or ValueError unless it is a real, non-empty, floating-point matrix.

    `meta`: its numbers are not needed, so that it may be on the meta device.
    """
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(matrix).__name__}")
    if not matrix.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {matrix.dtype}: dequantize it first")
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ValueError(f"{name} must be a matrix (out, in), got the shape {tuple(matrix.shape)}")
    if matrix.is_meta and not meta:
        raise ValueError(f"{name} {tuple(matrix.shape)} is on the meta device: it has a shape but no numbers")
    return matrix


def check_weight(weight: Tensor, rank: int, scale: float = 1.0) -> Tensor:
    """`weight` (out, in) without gradient, in fp32 (fp64 stays fp64), ready for an SVD-like init.

    Raises TypeError or ValueError for a weight that is no finite matrix, or a rank or scale outside its limits.
    """
    check_matrix(weight)
    check_rank(rank, min(weight.shape))
    check_positive(scale, "scale")
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    refuse_not_finite(wide, f"weight {tuple(weight.shape)}")
    return wide


def refuse_not_finite(matrix: Tensor, name: str) -> None:
    """Raises ValueError if `matrix` holds NaN or infinity."""
    # A sum is many times faster than a look at each entry, and finite only if they all are.
    bad = 0 if matrix.sum().isfinite() else matrix.numel() - int(matrix.isfinite().sum())
    if bad:
        raise ValueError(f"{name} has {bad} entries that are NaN or infinite")
