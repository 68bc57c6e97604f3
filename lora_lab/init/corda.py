"""CorDA: the singular directions of W seen through the inputs that W gets, not of W alone.

    W (out, in), C' (in, in) the damped input covariance.      U S Vᵀ = svd(W C')
    U_r, S_r: the first r of them (ipm: what the data uses most), or the last r (kpm: what it uses least)
    A = diag(√(S_r / s)) V_rᵀ C'⁻¹      B = U_r diag(√(S_r / s))      base <- W - s·BA

The inverse drops out: V_rᵀ C'⁻¹ = S_r⁻¹ U_rᵀ W, so that s·BA = U_r U_rᵀ W, a projection of W. Only U_r and S_r have to
be computed. PEFT multiplies by an explicit inverse, and finds all singular vectors for r of them.

Source: Yang et al. 2024 (arXiv:2406.05223), and the authors' code (github.com/iboing/CorDA) for the damping. There the
kpm data (questions about the world) shows what to keep, and the ipm data (instructions) what to learn. The covariance
is `lora_lab.init.statistics.input_covariances`.
"""

import math

import torch
from torch import Tensor

from lora_lab.init.check import check_matrix, check_weight, refuse_not_finite
from lora_lab.lowrank import bottom_left, top_of_map

METHODS = ("ipm", "kpm")
INVERSE_ERROR = 0.05  # of ‖C' C'⁻¹ - I‖_F, by which the authors' code and PEFT choose the damping
COLUMNS = 256
MOST_DAMPING = 1e6  # C' is all damping by then
TOLERANCE = 1e-5  # of the smallest directions: bounds their angle to the true ones, which is well below it


@torch.no_grad()
def corda_factors(
    weight: Tensor, rank: int, scale: float, covariance: Tensor, method: str = "ipm"
) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) for a `weight` (out, in) whose inputs have this `covariance` (in, in).

    method: "ipm" takes the `rank` largest singular values of W C', "kpm" the smallest of its min(out, in). Those are
        below fp32's rounding of the largest once layers are some 500 wide: kpm is computed in fp64, and PEFT's noise.
    Returned in fp32 (fp64 if the weight or the covariance is).
    Raises ValueError or TypeError for a rank, scale or method outside its limits, a weight that is not finite, and a
    covariance that is of another size, not finite, not symmetric, or zero.
    """
    W = check_weight(weight, rank, scale)
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    C = check_covariance(covariance, W.shape[1]).to(W.device)
    wide = torch.promote_types(W.dtype, C.dtype)
    W, C = W.to(wide), damped(C.to(wide))
    if method == "kpm":
        W, C = W.double(), C.double()
    U = _largest_left(W, C, rank) if method == "ipm" else bottom_left(W @ C, rank, TOLERANCE)
    projected = U.T @ W  # S Vᵀ C'⁻¹
    # Of the same rows, so that a direction that W maps to (nearly) nothing stays as small as it is.
    S = torch.linalg.vector_norm(projected @ C, dim=1)
    safe = torch.where(S > 0, S, 1)
    return (projected / (scale * safe).sqrt()[:, None]).to(wide), (U * (S / scale).sqrt()).to(wide)


def _largest_left(W: Tensor, C: Tensor, rank: int) -> Tensor:
    """The first left singular vectors (out, rank) of W C, which is formed only if it must be."""
    return top_of_map(lambda X: W @ (C @ X), lambda Y: C @ (W.T @ Y), W.shape, rank, W)[0]


def damped(C: Tensor) -> Tensor:
    """C' = C + d · mean(diag C) · I with d = 0.01, doubled until C' can be inverted to within 0.05, as in PEFT.

    The error of the inverse, ‖C' C'⁻¹ - I‖_F, is rounding. PEFT forms all of C'⁻¹ and C' C'⁻¹ for it; 256 columns say
    the same to 3 % (measured), so that a covariance that near to the limit may be damped once more or less than there.
    """
    damping, unit = 0.01, C.diagonal().mean()
    while damping < MOST_DAMPING:
        shifted = C.clone()
        shifted.diagonal().add_(damping * unit)
        if _invertible(shifted):
            return shifted
        damping *= 2
    raise ValueError(f"covariance with a mean diagonal of {unit:.3g} cannot be inverted in {C.dtype}, however damped")


def _invertible(C: Tensor) -> bool:
    some = torch.randperm(len(C), generator=torch.Generator().manual_seed(0))[:COLUMNS].to(C.device)
    unit = torch.eye(len(C), dtype=C.dtype, device=C.device)[:, some]
    inverse, singular = torch.linalg.solve_ex(C, unit)
    error = torch.linalg.matrix_norm(C @ inverse - unit) * math.sqrt(len(C) / len(some))
    return not singular and bool(error < INVERSE_ERROR)


def check_covariance(covariance: Tensor, size: int) -> Tensor:
    """`covariance` in fp32 or fp64. Raises TypeError or ValueError unless it is one of `size` inputs."""
    C = check_matrix(covariance, "covariance").detach()
    if C.shape != (size, size):
        raise ValueError(f"covariance must be (in, in) = {(size, size)}, got {tuple(C.shape)}")
    C = C.to(torch.promote_types(C.dtype, torch.float32))
    refuse_not_finite(C, f"covariance {tuple(C.shape)}")
    mean, skew = C.diagonal().mean().item(), (C - C.T).abs().max().item()
    if C.diagonal().min() < 0 or mean == 0:
        raise ValueError(
            f"covariance has a diagonal from {C.diagonal().min():.3g} with mean {mean:.3g}: no sum of squares"
        )
    if skew > 1e-2 * C.abs().max():
        raise ValueError(f"covariance is not symmetric: |C - Cᵀ| up to {skew:.3g}, |C| up to {C.abs().max():.3g}")
    return C
