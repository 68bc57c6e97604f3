"""Answers to exercise 1.6 of notebook 01."""

import torch

from lora_lab import spectrum

from . import right, wrong


def top(A, count):
    return torch.linalg.svd(A, full_matrices=False).Vh[:count]


def by_svd(A1, A2, i, j):
    return float((top(A1, i) @ top(A2, j).T).norm() ** 2 / min(i, j))


def by_eigenvectors(A1, A2, i, j):
    V1 = torch.linalg.eigh(A1.T @ A1).eigenvectors.flip(1)[:, :i]
    V2 = torch.linalg.eigh(A2.T @ A2).eigenvectors.flip(1)[:, :j]
    return (V1.T @ V2).square().sum() / min(i, j)


def by_transposed_svd(A1, A2, i, j):
    U1 = torch.linalg.svd(A1.T.double()).U[:, :i]
    U2 = torch.linalg.svd(A2.T.double()).U[:, :j]
    return torch.linalg.matrix_norm(U1.T @ U2).item() ** 2 / min(i, j)


def by_projectors(A1, A2, i, j):
    P1, P2 = (top(A, n).T @ top(A, n) for A, n in ((A1, i), (A2, j)))
    return torch.trace(P1 @ P2) / min(i, j)


def cosines(A1, A2, i, j):
    return top(A1, i) @ top(A2, j).T


def squares(A1, A2, i, j):
    return cosines(A1, A2, i, j).square().sum()


def spanned(basis):
    return lambda A1, A2, i, j: (basis(A1, i) @ basis(A2, j).T).square().sum() / min(i, j)


def divided(by):
    return lambda A1, A2, i, j: squares(A1, A2, i, j) / by(A1, A2, i, j)


def left(A, count):
    return torch.linalg.svd(A, full_matrices=False).U[:, :count].T


def first_rows(A, count):
    return torch.linalg.qr(A[:count].T).Q.T


def unit_rows(A, count):
    return torch.nn.functional.normalize(A, dim=1)[:count]


def columns_of_Vh(A, count):
    return torch.linalg.svd(A, full_matrices=False).Vh[:, :count].T


SUBSPACE = [
    right("1.6", "library", spectrum.subspace_similarity),
    right("1.6", "svd", by_svd),
    right("1.6", "eigenvectors", by_eigenvectors),
    right("1.6", "svd of the transpose in float64", by_transposed_svd),
    right("1.6", "projectors", by_projectors),
    right(
        "1.6",
        "principal angles",
        lambda A1, A2, i, j: torch.linalg.svdvals(cosines(A1, A2, i, j)).square().sum() / min(i, j),
    ),
    wrong("1.6", "by the larger", "divides by the larger", divided(lambda A1, A2, i, j: max(i, j))),
    wrong(
        "1.6",
        "no square",
        "forgot the square of the norm",
        lambda A1, A2, i, j: cosines(A1, A2, i, j).norm() / min(i, j),
    ),
    wrong("1.6", "root", "a root too many", lambda A1, A2, i, j: by_svd(A1, A2, i, j) ** 0.5),
    wrong("1.6", "not divided", "forgot to divide", squares),
    wrong("1.6", "norm", "gave the norm itself", lambda A1, A2, i, j: cosines(A1, A2, i, j).norm()),
    wrong("1.6", "by i", "divides by i", divided(lambda A1, A2, i, j: i)),
    wrong("1.6", "by j", "divides by j", divided(lambda A1, A2, i, j: j)),
    wrong("1.6", "mean", "mean over the entries", lambda A1, A2, i, j: cosines(A1, A2, i, j).square().mean()),
    wrong("1.6", "by the rank", "divides by the rank", divided(lambda A1, A2, i, j: min(len(A1), len(A2)))),
    wrong("1.6", "raw rows", "the rows of A as they are", spanned(lambda A, n: A[:n])),
    wrong("1.6", "unit rows", "length 1", spanned(unit_rows)),
    wrong("1.6", "first rows", "spans the first i and j rows", spanned(first_rows)),
    wrong("1.6", "left vectors", "compares column spaces", spanned(left)),
    wrong("1.6", "columns by qr", "compares column spaces", spanned(lambda A, n: torch.linalg.qr(A).Q[:, :n].T)),
    wrong("1.6", "columns of Vh", "takes columns of Vh", spanned(columns_of_Vh)),
    wrong(
        "1.6",
        "bottom",
        "takes the last directions",
        spanned(lambda A, n: torch.linalg.svd(A, full_matrices=False).Vh[-n:]),
    ),
    wrong("1.6", "i twice", "uses i for both", lambda A1, A2, i, j: squares(A1, A2, i, i) / min(i, j)),
    wrong("1.6", "j twice", "uses j for both", lambda A1, A2, i, j: by_svd(A1, A2, j, j)),
    wrong("1.6", "min twice", "uses min(i, j) directions", lambda A1, A2, i, j: by_svd(A1, A2, min(i, j), min(i, j))),
    wrong("1.6", "swapped", "swapped i and j", lambda A1, A2, i, j: by_svd(A1, A2, j, i)),
    wrong("1.6", "all directions", "uses every direction", lambda A1, A2, i, j: squares(A1, A2, 99, 99) / min(i, j)),
    wrong(
        "1.6",
        "diagonal",
        "compares direction 1 with 1",
        lambda A1, A2, i, j: cosines(A1, A2, i, j).diagonal().square().sum() / min(i, j),
    ),
    wrong(
        "1.6",
        "spectral norm",
        "the largest singular value",
        lambda A1, A2, i, j: torch.linalg.matrix_norm(cosines(A1, A2, i, j), ord=2) ** 2 / min(i, j),
    ),
    wrong(
        "1.6",
        "cosines not squared",
        "without squaring them",
        lambda A1, A2, i, j: torch.linalg.svdvals(cosines(A1, A2, i, j)).sum() / min(i, j),
    ),
    wrong("1.6", "whole matrix", "should be one number", cosines),
    wrong("1.6", "one minus", "is off for A1", lambda A1, A2, i, j: 1 - by_svd(A1, A2, i, j)),
]
