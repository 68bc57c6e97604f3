"""Answers to exercises 5.3 and 5.4 of notebook 05."""

import torch

from lora_lab.init.olora import olora_factors
from lora_lab.init.pissa import pissa_factors

from . import right, wrong


def by_svd(W, rank, scale):
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    A, B = torch.diag(root) @ Vh[:rank], U[:, :rank] @ torch.diag(root)
    return A, B, W - scale * B @ A


def by_library(W, rank, scale):
    A, B = pissa_factors(W, rank, scale)
    return [A, B, W - scale * (B @ A)]


def by_eigenvectors(W, rank, scale):
    """Signs and the order of the directions as they come, in float64."""
    wide = W.double()
    values, V = torch.linalg.eigh(wide.T @ wide)
    V, S = V[:, -rank:], values[-rank:].sqrt()
    A = (S / scale).sqrt()[:, None] * V.T
    B = wide @ V / S * (S / scale).sqrt()
    return -A, -B, wide - scale * B @ A


def pissa(share=lambda S, s: ((S / s).sqrt(), (S / s).sqrt()), residual=lambda W, A, B, s: W - s * B @ A, part=None):
    """PiSSA with S shared in this way and this residual."""

    def start(W, rank, scale):
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        keep = part(len(S), rank) if part else slice(rank)
        to_A, to_B = share(S[keep], scale)
        A, B = to_A[:, None] * Vh[keep], U[:, keep] * to_B
        return A, B, residual(W, A, B, scale)

    return start


def turned(W, rank, scale):
    """The right product, from factors that are mixed with a rotation."""
    A, B, residual = by_svd(W, rank, scale)
    angle = torch.tensor(0.7)
    mix = torch.eye(rank)
    if rank > 1:
        mix[:2, :2] = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    return mix @ A, B @ mix.T, residual


def half_root(S, s):
    return S.sqrt(), S.sqrt()


PISSA = [
    right("5.3", "svd", by_svd),
    right("5.3", "the library", by_library),
    right("5.3", "eigenvectors, other signs and order", by_eigenvectors),
    wrong("5.3", "scale forgotten", "divide S by the scale", pissa(half_root)),
    wrong("5.3", "scale multiplied", "multiplies S by the scale", pissa(lambda S, s: ((S * s).sqrt(), (S * s).sqrt()))),
    wrong("5.3", "S in both", "holds S twice", pissa(lambda S, s: (S / s, S / s))),
    wrong("5.3", "S whole in both, unscaled", "holds S twice", pissa(lambda S, s: (S, S))),
    wrong("5.3", "no S", "holds no S", pissa(lambda S, s: (torch.ones_like(S), torch.ones_like(S)))),
    wrong(
        "5.3", "scaled in both wholly", "divided by the scale twice", pissa(lambda S, s: (S.sqrt() / s, S.sqrt() / s))
    ),
    wrong("5.3", "smallest", "take the largest", pissa(part=lambda count, rank: slice(count - rank, None))),
    wrong("5.3", "S in A", "do not share S evenly", pissa(lambda S, s: (S / s, torch.ones_like(S)))),
    wrong("5.3", "S in B", "do not share S evenly", pissa(lambda S, s: (torch.ones_like(S), S / s))),
    wrong("5.3", "mixed", "mixes the directions", turned),
    wrong("5.3", "base kept", "is W itself", pissa(residual=lambda W, A, B, s: W.clone())),
    wrong("5.3", "residual without scale", "leaves out the scale", pissa(residual=lambda W, A, B, s: W - B @ A)),
    wrong("5.3", "residual added", "take it away", pissa(residual=lambda W, A, B, s: W + s * B @ A)),
    wrong("5.3", "part for rest", "taken out, not what is left", pissa(residual=lambda W, A, B, s: s * B @ A)),
    wrong("5.3", "swapped", "returns B first", lambda *args: (by_svd(*args)[1], by_svd(*args)[0], by_svd(*args)[2])),
    wrong("5.3", "no residual", "should return (A, B, residual)", lambda *args: by_svd(*args)[:2]),
    wrong("5.3", "in place", "changed W itself", lambda W, r, s: (*by_svd(W.clone(), r, s)[:2], W.mul_(0.5))),
]


def thin(W, rank, scale):
    B = torch.linalg.qr(W[:, :rank]).Q
    A = B.T @ W
    return A, B, W - scale * B @ A


def whole(W, rank, scale):
    Q, R = torch.linalg.qr(W)
    return R[:rank], Q[:, :rank], W - scale * Q[:, :rank] @ R[:rank]


def by_library_olora(W, rank, scale):
    A, B = olora_factors(W, rank, scale)
    return [A, B, W - scale * (B @ A)]


def gram_schmidt(W, rank, scale):
    """Other signs than Householder's, in float64."""
    columns = []
    for column in W.double().T[:rank]:
        for known in columns:
            column = column - (column @ known) * known
        columns.append(-column / column.norm())
    B = torch.stack(columns, 1)
    A = B.T @ W.double()
    return A, B, W.double() - scale * B @ A


def olora(residual=lambda W, A, B, s: W - s * B @ A, size=lambda s: 1.0, factors=lambda W, r: whole(W, r, 1.0)[:2]):
    def start(W, rank, scale):
        A, B = factors(W, rank)
        A = A * size(scale)
        return A, B, residual(W, A, B, scale)

    return start


def by_rows(W, rank):
    Q, R = torch.linalg.qr(W.T)
    return Q[:, :rank].T, R[:rank].T


def last(W, rank):
    Q, R = torch.linalg.qr(W)
    return R[-rank:], Q[:, -rank:]


def principal(W, rank):
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return S[:rank, None] * Vh[:rank], U[:, :rank]


def in_A(W, rank):
    """The right product with the orthonormal factor on the wrong side."""
    A, B = whole(W, rank, 1.0)[:2]
    Q, R = torch.linalg.qr(A.T)
    return Q.T, B @ R.T


OLORA = [
    right("5.4", "thin", thin),
    right("5.4", "the whole QR", whole),
    right("5.4", "the library", by_library_olora),
    right("5.4", "Gram-Schmidt, other signs", gram_schmidt),
    wrong("5.4", "scale divided out", "scale divided out, as PiSSA does", olora(size=lambda s: 1 / s)),
    wrong("5.4", "scale multiplied in", "applies the scale twice", olora(size=lambda s: s)),
    wrong("5.4", "QR of Wᵀ", "QR of W transposed", olora(factors=by_rows)),
    wrong("5.4", "last columns", "take the first", olora(factors=last)),
    wrong("5.4", "svd", "that is PiSSA", olora(factors=principal)),
    wrong("5.4", "orthonormal A", "A has them instead", olora(factors=in_A)),
    wrong(
        "5.4",
        "B not normed",
        "should have orthonormal columns",
        lambda W, r, s: (thin(W, r, s)[0] / 3, 3 * thin(W, r, s)[1], thin(W, r, s)[2]),
    ),
    wrong("5.4", "base kept", "is W itself", olora(residual=lambda W, A, B, s: W.clone())),
    wrong("5.4", "residual without scale", "leaves out the scale", olora(residual=lambda W, A, B, s: W - B @ A)),
    wrong("5.4", "residual added", "take it away", olora(residual=lambda W, A, B, s: W + s * B @ A)),
    wrong("5.4", "part for rest", "taken out, not what is left", olora(residual=lambda W, A, B, s: s * B @ A)),
    wrong("5.4", "swapped", "returns B first", lambda *args: (thin(*args)[1], thin(*args)[0], thin(*args)[2])),
    wrong("5.4", "factors alone", "should return (A, B, residual)", lambda *args: thin(*args)[:2]),
]
