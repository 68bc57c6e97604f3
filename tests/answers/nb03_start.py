"""Answers to exercise 3.4 of notebook 03 about its start: the attribute scale, and how A is drawn."""

import numpy
import torch
from torch import nn
from torch.nn import functional as F

from . import right, wrong
from .nb03_layer import built, setting


class Notebook(nn.Module):
    """The solution of the notebook."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base.requires_grad_(False)
        out_features, in_features = base.weight.shape
        bound = in_features**-0.5
        self.A = nn.Parameter(torch.empty(rank, in_features).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        y = self.base(x)
        update = F.linear(F.linear(x.to(self.A.dtype), self.A), self.B)
        return (y + self.scale * update).to(y.dtype)


def drawn(start):
    """Plain, with A = start(rank, in)."""
    return setting(A=lambda self: nn.Parameter(start(*self.A.shape).float()))


def seeded(rank, wide):
    torch.manual_seed(0)
    return (2 * torch.rand(rank, wide) - 1) / wide**0.5


def from_numpy(rank, wide):
    return torch.from_numpy(numpy.random.default_rng().uniform(-1, 1, (rank, wide)) / wide**0.5)


START = [
    right("3.4", "notebook", Notebook),
    wrong("3.4", "no scale kept", "has no attribute scale", built(lambda self, *args: delattr(self, "scale"))),
    wrong(
        "3.4",
        "scale is alpha",
        "as its attribute scale, but self.scale is alpha / rank = ",
        setting(scale=lambda self: self.alpha),
    ),
    wrong("3.4", "scale of rsLoRA", "as its attribute scale", setting(scale=lambda self: self.alpha / self.rank**0.5)),
    wrong(
        "3.4",
        "scale is text",
        "the attribute scale of your MyLoRALinear should be one number",
        setting(scale=lambda self: "alpha / rank"),
    ),
    wrong("3.4", "A seeded", "gives two layers the same A", drawn(seeded)),
    wrong("3.4", "A from numpy", "the same torch.manual_seed", drawn(from_numpy)),
    wrong("3.4", "A not scaled", "draws A within ±1: rand and uniform_", drawn(lambda r, n: 2 * torch.rand(r, n) - 1)),
    wrong("3.4", "A Gaussian", "draws A from a Gaussian", drawn(lambda r, n: torch.randn(r, n) / n**0.5)),
    wrong(
        "3.4", "A too narrow", "draws A within ±half of 1/√in", drawn(lambda r, n: (torch.rand(r, n) - 0.5) / n**0.5)
    ),
    wrong("3.4", "A on one side", "on one side of zero", drawn(lambda r, n: torch.rand(r, n) / n**0.5)),
    wrong(
        "3.4", "A of plain kaiming", "without a = √5", drawn(lambda r, n: nn.init.kaiming_uniform_(torch.empty(r, n)))
    ),
]
