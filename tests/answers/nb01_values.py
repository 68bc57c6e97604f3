"""Answers to exercises 1.3, 1.4 and 1.5 of notebook 01."""

import math

import numpy as np
import torch

from lora_lab import spectrum

from . import right, wrong


def by_loop(singular_values, rank):
    total = 0.0
    for k in range(rank, len(singular_values)):
        total += float(singular_values[k]) ** 2
    return math.sqrt(total)


def by_subtraction(singular_values, rank):
    squares = singular_values.double().square()
    return (squares.sum() - squares[:rank].sum()).clamp(min=0).sqrt()


ERROR = [
    right("1.3", "library", spectrum.truncation_error),
    right("1.3", "loop of floats", by_loop),
    right("1.3", "difference of squares", by_subtraction),
    right("1.3", "numpy scalar", lambda s, rank: np.linalg.norm(s.numpy()[rank:])),
    wrong("1.3", "no root", "forgot the square root", lambda s, rank: (s[rank:] ** 2).sum()),
    wrong("1.3", "no squares", "without squaring them", lambda s, rank: s[rank:].sum()),
    wrong("1.3", "spectral", "in the spectral norm", lambda s, rank: s[rank] if rank < len(s) else 0.0),
    wrong("1.3", "kept part", "that are kept", lambda s, rank: s[:rank].norm()),
    wrong("1.3", "one too late", "one singular value too late", lambda s, rank: s[rank + 1 :].norm()),
    wrong("1.3", "one too early", "one singular value too early", lambda s, rank: s[rank - 1 :].norm()),
    wrong("1.3", "all of W", "measures the whole matrix", lambda s, rank: s.norm()),
    wrong("1.3", "relative", "not the relative error", lambda s, rank: s[rank:].norm() / s.norm()),
    wrong("1.3", "energy lost", "share of the energy", lambda s, rank: (s[rank:] ** 2).sum() / (s**2).sum()),
    wrong(
        "1.3",
        "root mean square",
        "takes the mean",
        lambda s, rank: (s[rank:] ** 2).mean().sqrt() if rank < len(s) else 0,
    ),
    wrong("1.3", "difference of norms", "subtracts norms", lambda s, rank: s.norm() - s[:rank].norm()),
    wrong(
        "1.3", "squares left as a list", "should be one number, not a tensor of length", lambda s, rank: s[rank:] ** 2
    ),
    wrong(
        "1.3",
        "index out of range",
        "raised IndexError for singular_values of length 5, rank = 5",
        lambda s, rank: by_loop(s, rank) + 0 * s[rank],
    ),
    wrong(
        "1.3",
        "nan for nothing left",
        "a division by zero",
        lambda s, rank: by_loop(s, rank) / (rank < len(s) or math.nan),
    ),
    wrong(
        "1.3",
        "values zeroed in place",
        "changed singular_values itself",
        lambda s, rank: s[:rank].zero_().new_tensor(0) + s.norm(),
    ),
]


def by_categorical(singular_values):
    return torch.distributions.Categorical(probs=singular_values).entropy().exp()


def in_bits(singular_values):
    p = [float(s) for s in singular_values / singular_values.sum() if s > 0]
    return 2.0 ** -sum(share * math.log2(share) for share in p)


def as_product(singular_values):
    p = singular_values.double() / singular_values.sum().double()
    return (p**-p).prod()  # 0 ** -0 is 1


def with_epsilon(singular_values):
    p = singular_values / singular_values.sum()
    return torch.exp(-(p * torch.log(p + 1e-12)).sum()).item()


def entropy(p, log=torch.log):
    p = p[p > 0]
    return -(p * log(p)).sum()


def share(s):
    return s / s.sum()


EFFECTIVE = [
    right("1.4", "library", spectrum.effective_rank),
    right("1.4", "categorical", by_categorical),
    right("1.4", "bits and powers of two", in_bits),
    right("1.4", "product of powers", as_product),
    right("1.4", "epsilon in the logarithm", with_epsilon),
    wrong("1.4", "entropy not exponentiated", "gave the entropy itself", lambda s: entropy(share(s))),
    wrong("1.4", "log2 with exp", "in bits (log2)", lambda s: entropy(share(s), torch.log2).exp()),
    wrong("1.4", "log10 with exp", "in decimal digits", lambda s: entropy(share(s), torch.log10).exp()),
    wrong("1.4", "ln with power of two", "2 to the power of", lambda s: 2 ** entropy(share(s))),
    wrong("1.4", "bits", "gave the entropy in bits", lambda s: entropy(share(s), torch.log2)),
    wrong("1.4", "sign", "lost a sign", lambda s: (-entropy(share(s))).exp()),
    wrong("1.4", "sign of the entropy", "lost a sign", lambda s: -entropy(share(s))),
    wrong("1.4", "squares", "normalises squared", lambda s: entropy(share(s**2)).exp()),
    wrong("1.4", "not normalised", "does not normalise", lambda s: entropy(s).exp()),
    wrong("1.4", "by the largest", "divides by the largest", lambda s: entropy(s / s.max()).exp()),
    wrong("1.4", "by the norm", "divides by the norm", lambda s: entropy(s / s.norm()).exp()),
    wrong("1.4", "plain rank", "that is the rank", lambda s: int((s > 0).sum())),
    wrong("1.4", "stable rank", "the stable rank", spectrum.stable_rank),
    wrong("1.4", "participation ratio", "participation ratio", lambda s: s.sum() ** 2 / (s**2).sum()),
    wrong("1.4", "softmax", "takes a softmax", lambda s: entropy(s.softmax(0)).exp()),
    wrong("1.4", "mean", "takes the mean", lambda s: (entropy(share(s)) / len(s)).exp()),
    wrong("1.4", "nan for zeros", "leave the zeros out", lambda s: (-(share(s) * share(s).log()).sum()).exp()),
    wrong(
        "1.4", "float nan for zeros", "leave the zeros out", lambda s: float((-(share(s) * share(s).log()).sum()).exp())
    ),
    wrong(
        "1.4",
        "math domain",
        "raised ValueError for singular_values of length",
        lambda s: math.exp(-sum(p * math.log(p) for p in share(s).tolist())),
    ),
    wrong(
        "1.4", "last one dropped", "is off for singular_values", lambda s: entropy(share(s[: max(1, len(s) - 1)])).exp()
    ),
    wrong(
        "1.4", "normalised in place", "changed singular_values itself", lambda s: entropy(s.div_(s.sum() * 1.5)).exp()
    ),
]


def cumulative(s):
    return (s**2).cumsum(0) / (s**2).sum()


def by_search(singular_values, share):
    return int(torch.searchsorted(cumulative(singular_values.double()), share)) + 1


def by_while(singular_values, share):
    energies = [float(s) ** 2 for s in singular_values]
    rank = 0
    while sum(energies[:rank]) < share * sum(energies):
        rank += 1
    return rank


def by_argmax(singular_values, share):
    return (cumulative(singular_values) >= share).int().argmax() + 1  # a 0-d tensor


def first(condition):
    return int(condition.int().argmax()) + 1


ENERGY = [
    right("1.5", "library", spectrum.energy_rank),
    right("1.5", "searchsorted", by_search),
    right("1.5", "while loop", by_while),
    right("1.5", "argmax as 0-d tensor", by_argmax),
    wrong("1.5", "not squared", "does not square", lambda s, share: first(s.cumsum(0) / s.sum() >= share)),
    wrong("1.5", "more than", "at least means >=", lambda s, share: int((cumulative(s) <= share).sum()) + 1),
    wrong("1.5", "index not count", "is one too small", lambda s, share: by_while(s, share) - 1),
    wrong("1.5", "one too many", "is one too large", lambda s, share: by_while(s, share) + 1),
    wrong("1.5", "norms", "compares norms", lambda s, share: first(cumulative(s).sqrt() >= share)),
    wrong("1.5", "from the smallest", "adds up from the smallest", lambda s, share: by_while(s.flip(0), share)),
    wrong("1.5", "share of the number", "a share of their number", lambda s, share: math.ceil(share * len(s))),
    wrong("1.5", "threshold", "single values above", lambda s, share: int((s >= share * s[0]).sum())),
    wrong(
        "1.5", "threshold of squares", "single squared values", lambda s, share: int((s**2 >= share * s[0] ** 2).sum())
    ),
    wrong("1.5", "not divided", "divide by the sum of the squares", lambda s, share: first((s**2).cumsum(0) >= share)),
    wrong("1.5", "all", "returned all of them", lambda s, share: len(s)),
    wrong("1.5", "float", "returned the float", lambda s, share: float(by_while(s, share))),
    wrong(
        "1.5", "share held", "returned the float", lambda s, share: float(cumulative(s)[by_while(s, share) - 1]) * 0.999
    ),
    wrong("1.5", "mask", "should be one number, not a tensor", lambda s, share: cumulative(s) < share),
]
