"""Answers to exercises 3.1 and 3.3 of notebook 03."""

import torch
from torch.nn import functional as F

from . import right, wrong


def forward(x, W, b, A, B, scale):
    y = x @ W.T + scale * (x @ A.T @ B.T)
    return y if b is None else y + b


def functional(x, W, b, A, B, scale):
    return F.linear(x, W, b) + F.linear(F.linear(scale * x, A), B)


def by_columns(x, W, b, A, B, scale):
    y = W @ x.T + scale * (B @ (A @ x.T))
    return y.T + (0 if b is None else b)


def by_einsum(x, W, b, A, B, scale):
    narrow = torch.einsum("bi,ri->br", x, A)
    y = torch.einsum("bi,oi->bo", x, W) + torch.einsum("br,or->bo", narrow, scale * B)
    return y if b is None else y + b[None]


def plus(b):
    return 0 if b is None else b


def base(x, W, b):
    return x @ W.T + plus(b)


def in_place(x, W, b, A, B, scale):
    W += scale * B @ A
    return base(x, W, b)


FORWARD = [
    right("3.1", "matrix products", forward),
    right("3.1", "F.linear, scale on x", functional),
    right("3.1", "columns", by_columns),
    right("3.1", "einsum", by_einsum),
    wrong("3.1", "no scale", "leaves out the scale", lambda x, W, b, A, B, scale: forward(x, W, b, A, B, 1)),
    wrong("3.1", "scale twice", "applies the scale twice", lambda x, W, b, A, B, s: forward(x, W, b, s * A, s * B, 1)),
    wrong(
        "3.1",
        "divided by scale",
        "divides by the scale",
        lambda x, W, b, A, B, scale: forward(x, W, b, A, B / scale, 1),
    ),
    wrong(
        "3.1", "whole output scaled", "scales the whole output", lambda x, W, b, A, B, s: s * forward(x, W, b, A, B, 1)
    ),
    wrong("3.1", "bias scaled", "scales the bias", lambda x, W, b, A, B, s: x @ W.T + s * (x @ A.T @ B.T + plus(b))),
    wrong("3.1", "bias dropped", "drops the bias", lambda x, W, b, A, B, s: forward(x, W, None, A, B, s)),
    wrong("3.1", "bias twice", "adds the bias twice", lambda x, W, b, A, B, s: forward(x, W, b, A, B, s) + plus(b)),
    wrong("3.1", "base dropped", "the frozen layer still answers", lambda x, W, b, A, B, s: s * (x @ A.T @ B.T)),
    wrong("3.1", "update dropped", "drops the update", lambda x, W, b, A, B, s: base(x, W, b)),
    wrong("3.1", "subtracted", "subtracts the update", lambda x, W, b, A, B, s: forward(x, W, b, A, B, -s)),
    wrong("3.1", "swapped factors", "in the wrong order", lambda x, W, b, A, B, s: base(x, W, b) + s * x @ B.T @ A.T),
    wrong("3.1", "no transposes", "in the wrong order", lambda x, W, b, A, B, s: base(x, W, b) + s * x @ A @ B),
    wrong("3.1", "one transpose", "in the wrong order", lambda x, W, b, A, B, s: base(x, W, b) + s * x @ A.T @ B),
    wrong("3.1", "W not transposed", "y = x Wᵀ", lambda x, W, b, A, B, s: x @ W + plus(b) + s * x @ A.T @ B.T),
    wrong("3.1", "one column", "W @ x and B @ (A @ x)", lambda x, W, b, A, B, s: W @ x + plus(b) + s * B @ (A @ x)),
    wrong("3.1", "update of columns", "B @ (A @ x), as if", lambda x, W, b, A, B, s: base(x, W, b) + s * B @ (A @ x)),
    wrong("3.1", "base of columns", "W @ x, as if", lambda x, W, b, A, B, s: W @ x + plus(b) + s * x @ A.T @ B.T),
    wrong("3.1", "A of columns", "A @ x, as if", lambda x, W, b, A, B, s: base(x, W, b) + s * (A @ x) @ B.T),
    wrong("3.1", "truth of b", "use `is not None`", lambda x, W, b, A, B, s: forward(x, W, b if b else None, A, B, s)),
    wrong(
        "3.1",
        "update through W",
        "sends the update through W",
        lambda x, W, b, A, B, s: base(x + s * x @ A.T @ B.T, W, b),
    ),
    wrong(
        "3.1",
        "update of the output",
        "feeds the output of W",
        lambda x, W, b, A, B, s: base(x, W, b) + s * (x @ W.T) @ A.T @ B.T,
    ),
    wrong("3.1", "product formed", "forms the product of B and A", lambda x, W, b, A, B, s: base(x, W + s * B @ A, b)),
    wrong(
        "3.1",
        "transposed product formed",
        "forms the product of B and A",
        lambda x, W, b, A, B, s: base(x, W, b) + s * x @ (A.T @ B.T),
    ),
    wrong("3.1", "in place on W", "changed W itself", in_place),
    wrong("3.1", "bias is None", "b = None", lambda x, W, b, A, B, s: x @ W.T + b + s * (x @ A.T) @ B.T),
    wrong("3.1", "detached", "cuts A and B off", lambda x, W, b, A, B, s: forward(x, W, b, A.detach(), B.detach(), s)),
    wrong("3.1", "half precision", "the dtype got lost", lambda *args: forward(*args).bfloat16()),
    wrong("3.1", "output transposed", "is off for x", lambda *args: forward(*args).T),
    wrong("3.1", "pair", "should be a tensor of", lambda x, W, b, A, B, s: (base(x, W, b), s * (x @ A.T) @ B.T)),
]


def gradients(A, B, scale, x, G):
    return scale * (G @ B).T @ x, scale * G.T @ (x @ A.T)


def by_einsum_gradients(A, B, scale, x, G):
    grad_A = torch.einsum("bo,or,bi->ri", G, B, x)
    grad_B = torch.einsum("bo,bi,ri->or", G, x, A)
    return [scale * grad_A, scale * grad_B]


def by_full_gradient(A, B, scale, x, G):
    grad_W = scale * G.T @ x  # the gradient of ΔW = s B A, then the product rule
    return B.T @ grad_W, grad_W @ A.T


def by_examples(A, B, scale, x, G):
    grad_A, grad_B = torch.zeros_like(A), torch.zeros_like(B)
    for row, g in zip(x, G, strict=True):
        grad_A += scale * torch.outer(B.T @ g, row)
        grad_B += scale * torch.outer(g, A @ row)
    return grad_A, grad_B


def autograd(A, B, scale, x, G):
    A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
    with torch.enable_grad():
        y = scale * x @ A.T @ B.T
        (y * G).sum().backward()
    return A.grad, B.grad


def both(change):
    return lambda A, B, scale, x, G: change(*gradients(A, B, scale, x, G), scale, len(x))


def per_example(A, B, scale, x, G):
    return gradients(A, B, scale, x, G)[0], scale * torch.einsum("bo,br->bor", G, x @ A.T)


GRADIENTS = [
    right("3.3", "matrix products", gradients),
    right("3.3", "einsum, as a list", by_einsum_gradients),
    right("3.3", "through the gradient of W", by_full_gradient),
    right("3.3", "one example at a time", by_examples),
    wrong("3.3", "no scale", "∂L/∂A is right except for a factor of", both(lambda gA, gB, s, n: (gA / s, gB / s))),
    wrong("3.3", "no scale in A", "is s applied to both gradients?", both(lambda gA, gB, s, n: (gA / s, gB))),
    wrong("3.3", "no scale in B", "∂L/∂B is right except for a factor of", both(lambda gA, gB, s, n: (gA, gB / s))),
    wrong("3.3", "scale twice", "it is applied twice", both(lambda gA, gB, s, n: (s * gA, s * gB))),
    wrong("3.3", "mean", "is a mean over the batch:", both(lambda gA, gB, s, n: (gA / n, gB / n))),
    wrong(
        "3.3",
        "mean without scale",
        "mean over the batch without the scale",
        both(lambda gA, gB, s, n: (gA / n / s, gB / n / s)),
    ),
    wrong("3.3", "sign", "has the wrong sign", both(lambda gA, gB, s, n: (-gA, -gB))),
    wrong("3.3", "sign of B", "∂L/∂B has the wrong sign", both(lambda gA, gB, s, n: (gA, -gB))),
    wrong("3.3", "swapped", "return (grad_A, grad_B), in this order", both(lambda gA, gB, s, n: (gB, gA))),
    wrong("3.3", "transposed", "∂L/∂A is transposed", both(lambda gA, gB, s, n: (gA.T, gB.T))),
    wrong("3.3", "B transposed", "∂L/∂B is transposed", both(lambda gA, gB, s, n: (gA, gB.T))),
    wrong(
        "3.3", "A in its own gradient", "not A itself", lambda A, B, s, x, G: (s * (G @ A).T @ x, s * G.T @ (x @ A.T))
    ),
    wrong("3.3", "B in its own gradient", "not B itself", lambda A, B, s, x, G: (s * (G @ B).T @ x, s * G.T @ (x @ B))),
    wrong("3.3", "A left out", "∂L/∂B leaves out A", lambda A, B, s, x, G: (s * (G @ B).T @ x, s * G.T @ x)),
    wrong("3.3", "B left out", "∂L/∂A leaves out B", lambda A, B, s, x, G: (s * G.T @ x, s * G.T @ (x @ A.T))),
    wrong(
        "3.3",
        "B the wrong way round",
        "∂L/∂A uses B transposed",
        lambda A, B, s, x, G: (s * (G @ B.T).T @ x, s * G.T @ (x @ A.T)),
    ),
    wrong(
        "3.3",
        "A the wrong way round",
        "∂L/∂B uses A transposed",
        lambda A, B, s, x, G: (s * (G @ B).T @ x, s * G.T @ (x @ A)),
    ),
    wrong("3.3", "doubled", "a factor of 2", both(lambda gA, gB, s, n: (2 * gA, 2 * gB))),
    wrong("3.3", "one example kept apart", "sum over the batch", per_example),
    wrong("3.3", "autograd", "asks autograd", autograd),
    wrong("3.3", "one of them", "(grad_A, grad_B), not a tensor", both(lambda gA, gB, s, n: gA)),
    wrong("3.3", "in place on G", "changed G itself", lambda A, B, s, x, G: gradients(A, B, 1.0, x, G.mul_(s))),
]
