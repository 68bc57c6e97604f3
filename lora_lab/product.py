"""W + s·BA without a second matrix of W's size: formed a block of rows at a time, in fp32, and rounded once.

out[i:j] = round(W[i:j] + s · (B[i:j] A))        W, out (out, in); A (rank, in); B (out, rank)
"""

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 20  # of one block of BA: it stays in the processor's cache between product and sum


@torch.no_grad()
def add_low_rank(weight: Tensor, A: Tensor, B: Tensor, scale: float, out: Tensor) -> Tensor:
    """Write W + scale·BA to `out` (out, in), which may be `weight` itself, in any dtype. Returns `out`.

    A and B: fp32 or better, and the sum is theirs. On a GPU the whole product is one block.
    """
    rows, columns = weight.shape
    step = rows
    if weight.device.type == "cpu":
        step = max(1, min(rows, BLOCK_BYTES // (columns * A.element_size())))
    block = torch.empty(step, columns, dtype=A.dtype, device=A.device)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        update = torch.mm(B[start:stop], A, out=block[: stop - start]).mul_(scale)
        torch.add(weight[start:stop], update, out=out[start:stop])
    return out
