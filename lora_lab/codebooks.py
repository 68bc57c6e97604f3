"""The numbers that codes stand for: NF4's for weights, the dynamic map's for scales, int8's.

Each is derived here, and equal to what bitsandbytes uses.
"""

import torch
from torch import Tensor


def nf4_codebook() -> Tensor:
    """The numbers of NF4 (16,), fp32: 7 normal quantiles below zero, zero, 8 above, divided by the largest."""
    # A level in the middle of each of n equally likely bins leaves half a bin, 1/(2n), outside the outermost. Eight
    # levels above zero are those of n = 16, seven below those of n = 15; NF4 takes the mean of the two for both ends
    # (Yoshida 2023, arXiv:2306.06965). bitsandbytes keeps seven digits of it, and its probabilities in fp32.
    outermost = torch.tensor(round(1 - (1 / 32 + 1 / 30) / 2, 7))
    below, above = (torch.linspace(outermost, 0.5, n + 1, dtype=torch.float64)[:-1].float() for n in (7, 8))
    below, above = (torch.special.ndtri(p.double()).float() for p in (below, above))
    numbers = torch.cat([-below, torch.zeros(1), above.flip(0)])
    return numbers / numbers[-1]


def dynamic_codebook() -> Tensor:
    """What holds scales in 8 bits (256,), fp32, ascending: ±10^(i-6) times the middles of 2^i equal parts of [0.1, 1],
    for i from 0 to 6, with 0 and 1. Source: Dettmers 2015 (arXiv:1511.04561), as bitsandbytes' signed dynamic map.
    """
    edges = [torch.linspace(0.1, 1, 2**i + 1) for i in range(7)]
    positive = torch.cat([10.0 ** (i - 6) * ((e[:-1] + e[1:]) / 2) for i, e in enumerate(edges)])
    return torch.cat([positive, -positive, torch.tensor([0.0, 1.0])]).sort().values


# int8's is ordered by the byte that holds k; -128 is never used.
CODEBOOKS = {"nf4": nf4_codebook(), "int8": torch.arange(256).to(torch.int8) / 127, "dynamic": dynamic_codebook()}
MIDDLES = {kind: (CODEBOOKS[kind][1:] + CODEBOOKS[kind][:-1]) / 2 for kind in ("nf4", "dynamic")}


def half_gaps(kind: str) -> Tensor:
    """By code: how far a number from -1 to 1 can be from that entry of the codebook if no other is nearer."""
    if kind == "int8":
        return torch.full((256,), 0.5 / 127)
    edges = torch.cat([torch.tensor([-1.0]), MIDDLES[kind], torch.tensor([1.0])])
    return torch.maximum(CODEBOOKS[kind] - edges[:-1], edges[1:] - CODEBOOKS[kind])
