"""W + s·BA, formed a block of rows at a time, in fp32 or better, and rounded once.

    out[i:j] = round(W[i:j] + s · (B[i:j] A))        W, out (out, in); A (rank, in); B (out, rank)

On a CPU a block stays in the processor's cache between product and sum; on a GPU it is as large as 64 MB, for few
launches. A second matrix of W's size is never made.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = {"cpu": 2**18}  # elements of a block
LARGE_BLOCK = 2**24


def low_rank_blocks(A: Tensor, B: Tensor, scale: float) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of scale·BA in fp32 or better, and the rows that each is. The next overwrites the last."""
    wide = torch.promote_types(A.dtype, torch.float32)
    A, B = A.to(wide), B.to(wide)
    step = min(len(B), max(1, BLOCK.get(A.device.type, LARGE_BLOCK) // A.shape[1]))
    # Given a place for the result, torch does not round the factors as autocast demands.
    block = torch.empty(step, A.shape[1], dtype=wide, device=A.device)
    for start in range(0, len(B), step):
        rows = slice(start, min(start + step, len(B)))
        yield rows, torch.mm(B[rows], A, out=block[: rows.stop - start]).mul_(scale)


@torch.no_grad()
def add_low_rank(weight: Tensor, A: Tensor, B: Tensor, scale: float, out: Tensor) -> Tensor:
    """Write W + scale·BA to `out` (out, in), which may be `weight` itself, in any dtype. Returns `out`."""
    for rows, update in low_rank_blocks(A, B, scale):
        torch.add(weight[rows], update, out=out[rows])
    return out
