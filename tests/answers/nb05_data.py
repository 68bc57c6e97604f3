"""Answers to exercises 5.5 and 5.6 of notebook 05."""

import torch

from . import right, wrong


def by_svd(X, rank):
    return torch.linalg.svd(X - X.mean(0), full_matrices=False).Vh[:rank]


def by_covariance(X, rank):
    """Other signs, in float64."""
    centred = (X - X.mean(dim=0, keepdim=True)).double()
    return -torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :rank].T


def by_lowrank(X, rank):
    torch.manual_seed(0)
    return torch.pca_lowrank(X.double(), q=min(X.shape), niter=10)[2][:, :rank].T


def pca(centre, pick=lambda S, Vh, rank: Vh[:rank]):
    def directions(X, rank):
        S, Vh = torch.linalg.svd(centre(X), full_matrices=False)[1:]
        return pick(S, Vh, rank)

    return directions


def mean(X):
    return X - X.mean(0)


EVA = [
    right("5.5", "svd of the centred inputs", by_svd),
    right("5.5", "eigenvectors of the covariance, other signs", by_covariance),
    right("5.5", "pca_lowrank", by_lowrank),
    wrong("5.5", "not centred", "does not centre X", pca(lambda X: X)),
    wrong("5.5", "centred over inputs", "centres each token", pca(lambda X: X - X.mean(1, keepdim=True))),
    wrong("5.5", "one mean", "one number, the mean of all entries", pca(lambda X: X - X.mean())),
    wrong("5.5", "standardised", "PCA of correlations", pca(lambda X: (X - X.mean(0)) / X.std(0))),
    wrong("5.5", "smallest", "smallest variance", pca(mean, lambda S, Vh, r: Vh[-r:])),
    wrong("5.5", "smallest first", "smallest variance", pca(mean, lambda S, Vh, r: Vh.flip(0)[:r])),
    wrong("5.5", "ascending", "from the smallest variance to the largest", pca(mean, lambda S, Vh, r: Vh[:r].flip(0))),
    wrong(
        "5.5", "times S", "multiplies each direction by its singular", pca(mean, lambda S, V, r: S[:r, None] * V[:r])
    ),
    wrong("5.5", "times √S", "by the root of its singular", pca(mean, lambda S, V, r: S[:r, None].sqrt() * V[:r])),
    wrong("5.5", "whitened", "the option whiten", pca(mean, lambda S, V, r: V[:r] / S[:r, None].sqrt())),
    wrong("5.5", "columns of Vᵀ", "the components' columns", pca(mean, lambda S, Vh, r: Vh.T[:r])),
    wrong("5.5", "as columns", "returns the directions as columns", lambda X, rank: by_svd(X, rank).T),
    wrong("5.5", "in place", "changed X itself", lambda X, rank: by_svd(X.sub_(X.mean(0)), rank)),
]


def looped(samples):
    total = 0
    for X in samples:
        X = X.float()
        X = X / X.max().abs()
        total = total + X.T @ X
    return total / len(samples)


def stacked(samples):
    """All rows at once, in float64."""
    rows = torch.cat([X.double() / abs(X.double().max()) for X in samples])
    return rows.T @ rows / len(samples)


def products(samples):
    each = [torch.einsum("ti,tj->ij", X.float(), X.float()) / X.float().max() ** 2 for X in samples]
    return torch.stack(each).mean(0)


def total(change, end=lambda C, samples: C / len(samples)):
    """Σ XᵀX of the changed samples, and what is done to the sum."""

    def covariance(samples):
        changed = [change(X.float()) for X in samples]
        return end(sum(X.T @ X for X in changed), samples)

    return covariance


def scaled(X):
    return X / X.max().abs()


def tokens(samples):
    return sum(map(len, samples))


def in_half(samples):
    return sum((X / X.max().abs()).T @ (X / X.max().abs()) for X in samples) / len(samples)


def late_float(samples):
    return sum((X.T @ X).float() / X.max().float() ** 2 for X in samples) / len(samples)


def in_place(samples):
    for X in samples:
        X /= X.max().abs()
    return looped(samples)


def outer(samples):
    X = scaled(samples[0].float())
    return X @ X.T


def together(samples):
    X = scaled(torch.cat([X.float() for X in samples]))
    return X.T @ X / len(samples)


CORDA = [
    right("5.6", "a loop", looped),
    right("5.6", "all rows in float64", stacked),
    right("5.6", "einsum, divided afterwards", products),
    wrong("5.6", "mean over tokens", "number of all tokens", total(scaled, lambda C, s: C / tokens(s))),
    wrong("5.6", "sum", "divide by their number", total(scaled, lambda C, s: C)),
    wrong("5.6", "largest in size", "the largest entry in size", total(lambda X: X / X.abs().max())),
    wrong("5.6", "not divided", "does not divide each sample", total(lambda X: X)),
    wrong("5.6", "plain sum", "neither divides each sample", total(lambda X: X, lambda C, s: C)),
    wrong("5.6", "divided once", "it is max(X)²", total(lambda X: X / X.max().abs().sqrt())),
    wrong("5.6", "centred", "centres X", total(lambda X: scaled(X) - scaled(X).mean(0))),
    wrong("5.6", "centred, then divided", "centres X", total(lambda X: scaled(X - X.mean(0)))),
    wrong("5.6", "one largest entry", "all samples by one number", together),
    wrong("5.6", "mean of means", "the weight of its tokens", total(lambda X: scaled(X) / len(X) ** 0.5)),
    wrong("5.6", "first sample", "the first sample alone", lambda samples: looped(samples[:1])),
    wrong("5.6", "last sample", "the last sample alone", lambda samples: looped(samples[-1:])),
    wrong("5.6", "X Xᵀ", "Multiply Xᵀ X, not X Xᵀ", outer),
    wrong("5.6", "in float16", "computes in float16", lambda samples: in_half(samples)),
    wrong("5.6", "float32 too late", "overflow", late_float),
    wrong("5.6", "in place", "changes its samples", in_place),
]
