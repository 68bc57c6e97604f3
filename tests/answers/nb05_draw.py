"""Answers to exercises 5.1 and 5.2 of notebook 05."""

import torch
from torch import nn

from . import right, wrong


def divided(out_features, in_features, rank, generator):
    return torch.randn(rank, in_features, generator=generator) / rank, torch.zeros(out_features, rank)


def filled(out_features, in_features, rank, generator):
    A = nn.Parameter(torch.empty(rank, in_features))
    nn.init.normal_(A, mean=0.0, std=1 / rank, generator=generator)
    return [A, nn.Parameter(torch.zeros(out_features, rank))]


def drawn(out_features, in_features, rank, generator):
    spread = torch.full((rank, in_features), 1 / rank, dtype=torch.float64)
    return torch.normal(0.0, spread, generator=generator), torch.zeros(out_features, rank, dtype=torch.float64)


def times(factor):
    def start(out, wide, rank, g):
        return torch.randn(rank, wide, generator=g) * factor(out, wide, rank), torch.zeros(out, rank)

    return start


def uniform(out, wide, rank, g):
    return (2 * torch.rand(rank, wide, generator=g) - 1) * 3**0.5 / rank, torch.zeros(out, rank)


GAUSSIAN = [
    right("5.1", "randn over rank", divided),
    right("5.1", "normal_, as parameters", filled),
    right("5.1", "torch.normal in float64", drawn),
    wrong("5.1", "variance 1/rank", "the variance is 1/rank²", times(lambda o, w, r: r**-0.5)),
    wrong("5.1", "variance for deviation", "that is the variance", times(lambda o, w, r: r**-2.0)),
    wrong("5.1", "from in", "does not look at it", times(lambda o, w, r: w**-0.5)),
    wrong("5.1", "of the default", "the default's standard deviation", times(lambda o, w, r: (3 * w) ** -0.5)),
    wrong("5.1", "not scaled", "divided by the rank", times(lambda o, w, r: 1.0)),
    wrong("5.1", "uniform", "uniform distribution", uniform),
    wrong("5.1", "B random", "starts B at values", lambda o, w, r, g: (divided(o, w, r, g)[0], torch.randn(o, r) / r)),
    wrong("5.1", "both zero", "two zero factors", lambda o, w, r, g: (torch.zeros(r, w), torch.zeros(o, r))),
    wrong("5.1", "A zero", "the other way round", lambda o, w, r, g: (torch.zeros(r, w), torch.randn(o, r))),
    wrong("5.1", "swapped", "returns B first", lambda *args: divided(*args)[::-1]),
    wrong(
        "5.1", "global state", "pass generator=generator", lambda o, w, r, g: (torch.randn(r, w) / r, torch.zeros(o, r))
    ),
]


def halves(rank):
    if rank % 2:
        raise ValueError(f"rank must be even, got {rank}")
    return rank // 2


def as_peft(out_features, in_features, rank, generator):
    half = halves(rank)
    Q = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
    A = (torch.randn(in_features, half, generator=generator) @ Q[0::2]).T / 10
    return A, torch.randn(half, out_features, generator=generator).T @ Q[1::2] / 10


def by_columns(out_features, in_features, rank, generator):
    half = halves(rank)
    Q = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
    A = 0.1 * Q[:, :half] @ torch.randn(half, in_features, generator=generator)
    return A, 0.1 * torch.randn(out_features, half, generator=generator) @ Q[:, half:].T


def by_svd(out_features, in_features, rank, generator):
    half = halves(rank)
    U = torch.linalg.svd(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).U
    top, rest = U.split(half, dim=1)
    A = top @ torch.randn(half, in_features, generator=generator, dtype=torch.float64) / 10
    return [A, torch.randn(out_features, half, generator=generator, dtype=torch.float64) @ rest.T / 10]


def mixed(for_A, for_B, of=lambda X: torch.linalg.qr(X).Q, size=0.1, draw=torch.randn):
    """A and B from the rows that these take of Q."""

    def start(out, wide, rank, g):
        halves(rank)
        Q = of(torch.randn(rank, rank, generator=g))
        rows_A, rows_B = for_A(Q), for_B(Q)
        A = (draw(wide, len(rows_A), generator=g) @ rows_A).T * size
        return A, draw(out, len(rows_B), generator=g) @ rows_B * size

    return start


def even(Q):
    return Q[0::2]


def odd(Q):
    return Q[1::2]


def one_zero(zero):
    def start(*args):
        A, B = as_peft(*args)
        return (A * 0, B) if zero == "A" else (A, B * 0)

    return start


def any_rank(out, wide, rank, g):
    half = rank // 2
    Q = torch.linalg.qr(torch.randn(rank, rank, generator=g)).Q
    A = (torch.randn(wide, half, generator=g) @ Q[:half]).T / 10
    return A, torch.randn(out, half, generator=g) @ Q[half : 2 * half] / 10


def assertion(out, wide, rank, g):
    assert rank % 2 == 0, "rank must be even"
    return as_peft(out, wide, rank, g)


def padded(out, wide, rank, g):
    """Disjoint rows, but only one of each."""
    halves(rank)
    Q = torch.linalg.qr(torch.randn(rank, rank, generator=g)).Q
    return Q[:1].T @ torch.randn(1, wide, generator=g) / 10, torch.randn(out, 1, generator=g) @ Q[1:2] / 10


ORTHOGONAL = [
    right("5.2", "even and odd rows", as_peft),
    right("5.2", "columns of Q", by_columns),
    right("5.2", "left singular vectors in float64", by_svd),
    wrong("5.2", "B zero", "makes B zero", one_zero("B")),
    wrong("5.2", "A zero", "makes A zero", one_zero("A")),
    wrong("5.2", "same rows", "lets A and B meet", mixed(even, even)),
    wrong("5.2", "rows of X, not of Q", "lets A and B meet", mixed(even, odd, of=lambda X: X / len(X) ** 0.5)),
    wrong("5.2", "rows of R", "lets A and B meet", mixed(even, odd, of=lambda X: torch.linalg.qr(X).R)),
    wrong("5.2", "all rows", "gives A and B all", mixed(lambda Q: Q, lambda Q: Q)),
    wrong("5.2", "one row each", "rank/2 = ", padded),
    wrong("5.2", "Q the identity", "at zero: mix all of them", mixed(even, odd, of=lambda X: torch.eye(len(X)))),
    wrong("5.2", "not divided", "divide by 10", mixed(even, odd, size=1.0)),
    wrong("5.2", "of another size", "not of the right size", mixed(even, odd, size=0.02)),
    wrong("5.2", "one side", "take randn, not rand", mixed(even, odd, size=0.1 * 3**0.5, draw=torch.rand)),
    wrong("5.2", "odd rank taken", "an odd rank has no half", any_rank),
    wrong("5.2", "assert for ValueError", "raises AssertionError", assertion),
    wrong("5.2", "swapped", "returns B first", lambda *args: as_peft(*args)[::-1]),
    wrong("5.2", "A transposed", "it is transposed", lambda *args: (as_peft(*args)[0].T, as_peft(*args)[1])),
    wrong("5.2", "reseeded", "without seeding it", lambda o, w, r, g: as_peft(o, w, r, g.manual_seed(0))),
]
