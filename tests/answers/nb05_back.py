"""Answers to exercise 5.7 of notebook 05."""

import torch

from . import right, wrong


def stacked(A, B, A0, B0, alpha):
    return torch.cat([A, A0]), torch.cat([B, -B0], dim=1), 2 * alpha


def sign_in_A(A, B, A0, B0, alpha):
    return [torch.vstack([A, -A0]), torch.hstack([B, B0]), alpha + alpha]


def start_first(A, B, A0, B0, alpha):
    return torch.cat((-A0, A)), torch.cat((B0, B), 1), alpha * 2.0


def scaled_factors(A, B, A0, B0, alpha):
    """alpha is kept, and B is twice as large instead."""
    return torch.cat([A, A0]), 2 * torch.cat([B, -B0], dim=1), alpha


def stack(A_rows, B_columns, times=2.0):
    return lambda A, B, A0, B0, alpha: (
        torch.cat(A_rows(A, A0)),
        torch.cat(B_columns(B, B0), dim=1),
        times * alpha,
    )


def plain(A, A0):
    return [A, A0]


def minus(B, B0):
    return [B, -B0]


BACK = [
    right("5.7", "stacked", stacked),
    right("5.7", "the sign in A", sign_in_A),
    right("5.7", "the start first", start_first),
    right("5.7", "alpha kept, B doubled", scaled_factors),
    wrong("5.7", "alpha kept", "Double alpha too", stack(plain, minus, times=1.0)),
    wrong("5.7", "alpha four times", "doubling alpha once", stack(plain, minus, times=4.0)),
    wrong("5.7", "no sign", "adds B0 A0: the original W", stack(plain, lambda B, B0: [B, B0])),
    wrong("5.7", "no sign and alpha kept", "and halves the scale", stack(plain, lambda B, B0: [B, B0], times=1.0)),
    wrong("5.7", "two signs", "adds B0 A0", stack(lambda A, A0: [A, -A0], minus)),
    wrong("5.7", "start not taken away", "trained factors alone", lambda A, B, A0, B0, alpha: (A, B, alpha)),
    wrong("5.7", "the other sign", "the wrong way round", stack(plain, lambda B, B0: [-B, B0])),
    wrong("5.7", "differences", "subtracts the factors", lambda A, B, A0, B0, alpha: (A - A0, B - B0, alpha)),
    wrong("5.7", "crossed", "pairs B with A0", stack(lambda A, A0: [A0, A], minus)),
    wrong("5.7", "beside", "stack A above A0", lambda A, B, A0, B0, alpha: (torch.cat([A, A0], 1), B, alpha)),
    wrong(
        "5.7",
        "B below B0",
        "put B beside B0",
        lambda A, B, A0, B0, alpha: (torch.cat([A, A0]), torch.cat([B, -B0]), alpha),
    ),
    wrong("5.7", "two of three", "should return (A, B, alpha)", lambda *args: stacked(*args)[:2]),
    wrong("5.7", "B first", "returns B first", lambda *args: (stacked(*args)[1], stacked(*args)[0], stacked(*args)[2])),
]
