"""Answers to exercises 4.2 and 4.3 of notebook 04."""

import torch
from torch import nn

from . import right, wrong


def update(G, A, scale, lr, optimizer):
    grad_B = scale * G @ A.T
    step = grad_B if optimizer == "sgd" else torch.sign(grad_B)
    return -lr * scale * (step @ A)


def by_optimizer(G, A, scale, lr, optimizer):
    """The real thing: a layer of zeros and a loss whose gradient is G."""
    with torch.enable_grad():
        B = nn.Parameter(torch.zeros(len(G), len(A), dtype=G.dtype))
        (G * (scale * B @ A)).sum().backward()
        (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)([B], lr=lr).step()
    return scale * B.detach() @ A


def by_einsum(G, A, scale, lr, optimizer):
    grad_B = torch.einsum("oi,ri->or", scale * G, A)
    step = grad_B / (grad_B.abs() if optimizer == "adam" else 1)
    return torch.einsum("or,ri->oi", -lr * step, scale * A)


def power(sgd, adam):
    return lambda G, A, s, lr, o: update(G, A, 1, lr, o) * s ** (sgd if o == "sgd" else adam)


def in_place(G, A, scale, lr, optimizer):
    G *= scale
    return update(G, A, 1, lr, optimizer) * (1 if optimizer == "sgd" else scale)


UPDATE = [
    right("4.2", "matrix products", update),
    right("4.2", "torch's optimizers", by_optimizer),
    right("4.2", "einsum", by_einsum),
    wrong("4.2", "uphill", "goes uphill", lambda *args: -update(*args)),
    wrong("4.2", "scale once", "counts the scale once under SGD", power(1, 1)),
    wrong("4.2", "scale twice", "counts the scale twice under Adam", power(2, 2)),
    wrong("4.2", "scale of BA", "leaves out the scale in front of BA", power(1, 0)),
    wrong("4.2", "no scale", "leaves out the scale", power(0, 0)),
    wrong("4.2", "no rate", "leaves out the learning rate", lambda G, A, s, lr, o: update(G, A, s, 1, o)),
    wrong("4.2", "always SGD", "takes the SGD step in both cases", lambda G, A, s, lr, o: update(G, A, s, lr, "sgd")),
    wrong("4.2", "always Adam", "takes Adam's step in both cases", lambda G, A, s, lr, o: update(G, A, s, lr, "adam")),
    wrong(
        "4.2",
        "full fine-tune",
        "the step of a full fine-tune",
        lambda G, A, s, lr, o: -lr * (G if o == "sgd" else G.sign()),
    ),
    wrong(
        "4.2",
        "sign of W",
        "takes the sign of ΔW",
        lambda G, A, s, lr, o: update(G, A, s, lr, o) if o == "sgd" else -lr * s * (G @ A.T @ A).sign(),
    ),
    wrong(
        "4.2",
        "sign of G",
        "takes the sign of G before A",
        lambda G, A, s, lr, o: update(G, A, s, lr, o) if o == "sgd" else -lr * s * G.sign() @ A.T @ A,
    ),
    wrong("4.2", "only B", "that is ΔB", lambda G, A, s, lr, o: -lr * s * G @ A.T),
    wrong("4.2", "transposed", "is transposed", lambda *args: update(*args).T),
    wrong("4.2", "dtype", "the dtype got lost", lambda *args: update(*args).half()),
    wrong("4.2", "in place", "changed G itself", in_place),
    wrong("4.2", "doubled", "right except for a factor of 2", lambda *args: 2 * update(*args)),
]


def scale(rank, rule):
    return {"lora": 1 / rank, "rslora": rank**-0.5, "alpha = 2r": 2.0}[rule]


def gain(rank, rule, optimizer):
    return scale(rank, rule) ** (2 if optimizer == "sgd" else 1) * rank


def growth(rank, new_rank, rule, optimizer):
    return gain(new_rank, rule, optimizer) / gain(rank, rule, optimizer)


def by_table(rank, new_rank, rule, optimizer):
    exponents = {"lora": (-1, 0), "rslora": (0, 0.5), "alpha = 2r": (1, 1)}
    return (new_rank / rank) ** exponents[rule][optimizer == "adam"]


def by_ratios(rank, new_rank, rule, optimizer):
    larger, more = scale(new_rank, rule) / scale(rank, rule), new_rank / rank
    return larger * larger * more if optimizer == "sgd" else larger * more


def powers(sgd, adam):
    """The scale to the first power of each pair, the rank to the second."""

    def wrong_growth(rank, new_rank, rule, optimizer):
        a, b = sgd if optimizer == "sgd" else adam
        return (scale(new_rank, rule) / scale(rank, rule)) ** a * (new_rank / rank) ** b

    return wrong_growth


def swap(rule):
    return {"lora": "rslora", "rslora": "lora"}.get(rule, rule)


GROWTH = [
    right("4.3", "ratio of gains", growth),
    right("4.3", "table of exponents", by_table),
    right("4.3", "ratios", by_ratios),
    wrong("4.3", "upside down", "is upside down", lambda r, new, rule, o: growth(new, r, rule, o)),
    wrong("4.3", "no terms", "leaves out the number of terms", powers((2, 0), (1, 0))),
    wrong("4.3", "scale once", "counts the scale once under SGD", powers((1, 1), (1, 1))),
    wrong("4.3", "scale twice", "squares the scale under Adam", powers((2, 1), (2, 1))),
    wrong("4.3", "norm", "is how the norm of ΔW grows", powers((2, 0.5), (1, 0.5))),
    wrong("4.3", "swapped", "mixes the optimizers up", powers((1, 1), (2, 1))),
    wrong(
        "4.3",
        "alpha fixed",
        "treats 'alpha = 2r' as if alpha were fixed",
        lambda r, new, rule, o: growth(r, new, "lora" if rule == "alpha = 2r" else rule, o),
    ),
    wrong(
        "4.3",
        "alpha grows",
        "lets the scale of 'alpha = 2r' grow",
        lambda r, new, rule, o: (
            growth(r, new, rule, o) * (new / r if rule == "alpha = 2r" else 1) ** (2 if o == "sgd" else 1)
        ),
    ),
    wrong(
        "4.3", "rules swapped", "mixes 'lora' and 'rslora' up", lambda r, new, rule, o: growth(r, new, swap(rule), o)
    ),
    wrong(
        "4.3",
        "exponent",
        "with the same rank twice the factor is 1",
        lambda r, new, rule, o: growth(r, new, rule, o) + 1,
    ),
]
