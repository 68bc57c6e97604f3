"""Answers to exercise 3.2 of notebook 03."""

import math

import torch
from torch import nn

from . import right, wrong


def filled(out_features, in_features, rank, generator):
    bound = 1 / math.sqrt(in_features)
    A = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
    return A, torch.zeros(out_features, rank)


def kaiming(out_features, in_features, rank, generator):
    A = nn.Parameter(torch.empty(rank, in_features))
    nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
    return [A, nn.Parameter(torch.zeros(out_features, rank))]


def shifted(out_features, in_features, rank, generator):
    A = torch.rand(rank, in_features, generator=generator, dtype=torch.float64) - 0.5
    return A * 2 * in_features**-0.5, torch.zeros(out_features, rank, dtype=torch.float64)


def start(draw, zero=torch.zeros):
    return lambda out, wide, rank, generator: (draw(out, wide, rank, generator), zero(out, rank))


def within(bound):
    return start(
        lambda out, wide, rank, g: torch.empty(rank, wide).uniform_(-1, 1, generator=g) * bound(out, wide, rank)
    )


def randn(out, wide, rank, g):
    return torch.randn(rank, wide, generator=g)


def A_of(out, wide, rank, g):
    return filled(out, wide, rank, g)[0]


def xavier(out, wide, rank, g):
    return nn.init.xavier_uniform_(torch.empty(rank, wide), generator=g)


def both_random(out, wide, rank, g):
    return filled(out, wide, rank, g)[0], torch.randn(out, rank, generator=g)


INIT = [
    right("3.2", "uniform_", filled),
    right("3.2", "kaiming_uniform_, as parameters", kaiming),
    right("3.2", "shifted rand in float64", shifted),
    wrong(
        "3.2", "Gaussian", "from a Gaussian", start(lambda out, wide, rank, g: randn(out, wide, rank, g) / wide**0.5)
    ),
    wrong(
        "3.2",
        "Gaussian of the same variance",
        "from a Gaussian",
        start(lambda out, wide, rank, g: randn(out, wide, rank, g) / (3 * wide) ** 0.5),
    ),
    wrong("3.2", "standard normal", "from a Gaussian", start(randn)),
    wrong("3.2", "bound from rank", "1/√rank", within(lambda out, wide, rank: rank**-0.5)),
    wrong("3.2", "bound from out", "1/√out", within(lambda out, wide, rank: out**-0.5)),
    wrong("3.2", "no root", "a square root is missing", within(lambda out, wide, rank: 1 / wide)),
    wrong("3.2", "not scaled", "have to be scaled", within(lambda out, wide, rank: 1)),
    wrong("3.2", "half as wide", "half of 1/√in", within(lambda out, wide, rank: 0.5 * wide**-0.5)),
    wrong("3.2", "std for bound", "that is the standard deviation", within(lambda out, wide, rank: (3 * wide) ** -0.5)),
    wrong("3.2", "variance for bound", "that is the variance", within(lambda out, wide, rank: 1 / (3 * wide))),
    wrong(
        "3.2",
        "bound for std",
        "the standard deviation, not the bound",
        within(lambda out, wide, rank: (3 / wide) ** 0.5),
    ),
    wrong(
        "3.2",
        "kaiming without a",
        "kaiming_uniform_ without a",
        start(lambda out, wide, rank, g: nn.init.kaiming_uniform_(torch.empty(rank, wide), generator=g)),
    ),
    wrong("3.2", "xavier", "Xavier", start(xavier)),
    wrong("3.2", "another bound", "about 1.7 times", within(lambda out, wide, rank: 1.7 * wide**-0.5)),
    wrong(
        "3.2",
        "one side",
        "one side of zero",
        start(lambda out, wide, rank, g: torch.rand(rank, wide, generator=g) * wide**-0.5),
    ),
    wrong(
        "3.2",
        "squeezed",
        "does not draw A uniformly",
        start(
            lambda out, wide, rank, g: (
                torch.sin(torch.pi / 2 * (2 * torch.rand(rank, wide, generator=g) - 1)) * wide**-0.5
            )
        ),
    ),
    wrong("3.2", "B random", "starts B at values", both_random),
    wrong("3.2", "B nearly zero", "starts B at values", start(A_of, lambda out, rank: torch.full((out, rank), 1e-5))),
    wrong(
        "3.2",
        "both zero",
        "two zero factors",
        lambda out, wide, rank, g: (torch.zeros(rank, wide), torch.zeros(out, rank)),
    ),
    wrong(
        "3.2",
        "A zero",
        "the other way round",
        lambda out, wide, rank, g: (torch.zeros(rank, wide), torch.randn(out, rank, generator=g)),
    ),
    wrong("3.2", "swapped", "returns B first", lambda *args: filled(*args)[::-1]),
    wrong("3.2", "A transposed", "it is transposed", start(lambda *args: A_of(*args).T)),
    wrong("3.2", "B transposed", "it is transposed", start(A_of, lambda out, rank: torch.zeros(rank, out))),
    wrong("3.2", "equal rows", "equal rows", start(lambda out, wide, rank, g: A_of(out, wide, 1, g).repeat(rank, 1))),
    wrong(
        "3.2",
        "global state",
        "pass generator=generator",
        start(lambda out, wide, rank, g: nn.Linear(wide, rank, bias=False).weight),
    ),
    wrong(
        "3.2", "reseeded", "without seeding it", lambda out, wide, rank, g: filled(out, wide, rank, g.manual_seed(0))
    ),
    wrong("3.2", "A alone", "should return (A, B), not a tensor", A_of),
]
