"""ΔW: read off two models, or taken apart as s·BA without ever forming (out, in).

    B = Q_B R_B,  Aᵀ = Q_A R_A   (thin QR)        s·BA = Q_B (s · R_B R_Aᵀ) Q_Aᵀ,  the middle at most (rank, rank)

Its singular values are those of ΔW, whose other min(out, in) - rank are zero.
"""

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from lora_lab.base import is_conv1d, is_linear, is_quantized
from lora_lab.spectrum.check import matrix, same_type, wide


def factor_svd(A: Tensor, B: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), s (k,), Vh (k, in) with s·BA = U diag(s) Vh; A (rank, in), B (out, rank), k = min(out, rank, in).

    Costs (out + in)·rank² operations instead of out·in·min(out, in). Small values are right to rounding of the
    largest, as in any SVD. Raises ValueError for factors that do not fit each other or are not finite.
    """
    Q_out, core, Q_in = _thin(A, B, scale)
    U, s, Vh = torch.linalg.svd(core, full_matrices=False)
    return Q_out @ U, s, Vh @ Q_in.T


def factor_singular_values(A: Tensor, B: Tensor, scale: float = 1.0) -> Tensor:
    """The singular values (k,) of scale·BA from large to small, k = min(out, rank, in). Sizes as in `factor_svd`."""
    return torch.linalg.svdvals(_thin(A, B, scale)[1])


def factor_norm(A: Tensor, B: Tensor, scale: float = 1.0) -> float:
    """‖scale·BA‖_F, without forming (out, in). Sizes as in `factor_svd`."""
    return torch.linalg.matrix_norm(_thin(A, B, scale)[1]).item()


def _thin(A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Q_B, s · R_B R_Aᵀ and Q_A of the head of this file."""
    A, B = same_type(matrix(A, "A"), matrix(B, "B"))
    if A.shape[0] != B.shape[1]:
        raise ValueError(f"A {tuple(A.shape)} and B {tuple(B.shape)} are not (rank, in) and (out, rank) of one rank")
    if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    Q_out, R_out = torch.linalg.qr(B)
    Q_in, R_in = torch.linalg.qr(A.T)
    return Q_out, scale * (R_out @ R_in.T), Q_in


@torch.no_grad()
def delta_weights(before: nn.Module | Mapping[str, Tensor], after: nn.Module) -> dict[str, Tensor]:
    """ΔW (out, in) = after − before, in fp32 (fp64 stays), for every linear layer of `after`, by the layer's path.

    before: the same model as it was, or its `state_dict()` (cloned, or it moves along in training). Embeddings and
    norms are left out, an output head is not; a `Conv1D` is turned to (out, in). Merge or eject an adapter first.
    Raises ValueError for a layer that the model before does not have, or has in another shape, or a quantized one.
    """
    old = before.state_dict() if isinstance(before, nn.Module) else before
    deltas = {}
    for path, layer in after.named_modules():
        if not is_linear(layer):
            continue
        if is_quantized(layer):
            raise ValueError(f"{path or 'the layer'} is quantized: compare what it dequantizes to")
        name = f"{path}.weight" if path else "weight"
        if name not in old:
            raise ValueError(f"the model before has no {name!r}: not the same model, or with an adapter in one of them")
        if old[name].shape != layer.weight.shape:
            raise ValueError(f"{name}: {tuple(old[name].shape)} before, {tuple(layer.weight.shape)} after")
        delta = wide(layer.weight) - wide(old[name].to(layer.weight.device))
        deltas[path] = delta.T if is_conv1d(layer) else delta
    return deltas
