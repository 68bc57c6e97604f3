"""LoftQ: choose codes and adapter together, so that the quantized base plus the adapter starts nearest to W.

    Q_t  = dequantize(quantize(W - s·B_{t-1} A_{t-1}))          A_0 = B_0 = 0
    W - Q_t = U diag(σ) Vᵀ,   A_t = diag(√(σ/s)) Vᵀ[:rank],   B_t = U[:, :rank] diag(√(σ/s))

for t = 1 ... iterations. s·B_t A_t is the best rank-`rank` fit of what quantization lost, at any scale s: B_t A_t
alone, as PEFT has it, is that only for s = 1. The base becomes quantize(W - s·B_{t-1} A_{t-1}), so its codes hold Q_t.
Source: Li et al. 2023 (arXiv:2310.08659), algorithm 1.
"""

from numbers import Integral

import torch
from torch import Tensor

from lora_lab.init.check import check_weight
from lora_lab.lowrank import top_svd
from lora_lab.quantize import quantize


@torch.no_grad()
def loftq_factors(
    weight: Tensor,
    rank: int,
    scale: float,
    kind: str = "nf4",
    iterations: int = 1,
    block_size: int | None = None,
    double: bool | None = None,
    keep: str = "best",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return A (rank, in), B (out, rank) and the A0, B0 of the same shapes for which the base is
    quantize(weight - scale · B0 @ A0, kind, block_size, double), for a `weight` (out, in).

    kind, block_size, double: as in `quantize`, and to be the base's. iterations: 1 or more; with 1, A0 = B0 = 0.
    keep: "last" is the paper's and PEFT's last iterate. The alternation is not bound to descend, since rounding to
    codes is no projection that knows of the fit, so "best" takes the iterate with the smallest ‖W - Q - s·BA‖_F.

    In fp32 (fp64 for fp64), on the weight's device. Raises TypeError or ValueError as `check_weight` and `quantize` do.
    """
    wide = check_weight(weight, rank, scale)
    if isinstance(iterations, bool) or not isinstance(iterations, Integral) or iterations < 1:
        raise ValueError(f"iterations must be a whole number of at least 1, got {iterations!r}")
    if keep not in ("best", "last"):
        raise ValueError(f"keep must be 'best' or 'last', got {keep!r}")
    A, B = wide.new_zeros(rank, wide.shape[1]), wide.new_zeros(wide.shape[0], rank)
    smallest, kept = float("inf"), None
    for _ in range(iterations):
        A0, B0 = A, B
        # Exactly what the caller quantizes, to the bit: the fit must be to the codes that the base will hold.
        lost = wide - quantize(wide - scale * (B0 @ A0), kind, block_size, double).dequantize()
        A, B = _fit(lost, rank, scale)
        error = float(torch.linalg.matrix_norm(lost - scale * (B @ A)))
        if kept is None or keep == "last" or error < smallest:
            smallest, kept = error, (A, B, A0, B0)
    return kept


def _fit(matrix: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B with scale·BA the nearest matrix of rank `rank`."""
    U, sigma, Vh = top_svd(matrix, rank)
    root = (sigma / scale).sqrt()
    return root[:, None] * Vh, U * root
