"""What an optimizer keeps for each parameter, and what it needs for a moment while it steps.

    adamw          m and v, in the parameter's own dtype (torch.optim.AdamW): 2 numbers for each parameter
    adamw-8bit     m and v in 8 bits, a scale in fp32 for every 256 of them (bitsandbytes); tensors below 4,096 in fp32
    adafactor      v as one row and one column for each matrix (torch.optim.Adafactor; Shazeer & Stern 2018)
    sgd-momentum   m: 1 number                  sgd    nothing

With master copies the optimizer works on an fp32 copy of each half-precision parameter, and its states are fp32 too:
2 (weight) + 2 (gradient) + 4 (copy) + 8 (m and v) = 16 bytes for each parameter with AdamW.
"""

import math
from collections.abc import Iterable

import torch

Shapes = Iterable[tuple[tuple[int, ...], torch.dtype]]

OPTIMIZERS = ("adamw", "adamw-8bit", "adafactor", "sgd-momentum", "sgd")
BLOCK, SMALL = 256, 4096  # of bitsandbytes: numbers that share a scale; below that many, fp32


def state_bytes(optimizer: str, shapes: Shapes, master: bool = False) -> int:
    """Bytes of the optimizer's states for parameters of these shapes and dtypes (step counters left out).

    Raises ValueError for an unknown optimizer.
    """
    check_optimizer(optimizer)
    return sum(_states(optimizer, shape, torch.float32.itemsize if master else d.itemsize) for shape, d in shapes)


def _states(optimizer: str, shape: tuple[int, ...], item: int) -> int:
    size = math.prod(shape)
    if optimizer == "adamw":
        return 2 * size * item
    if optimizer == "adamw-8bit":
        return 2 * size * 4 if size < SMALL else 2 * (size + 4 * math.ceil(size / BLOCK))
    if optimizer == "adafactor":
        return (size // shape[-1] + size // shape[-2] if len(shape) > 1 else size) * item
    return size * item if optimizer == "sgd-momentum" else 0


def master_bytes(shapes: Shapes) -> int:
    """Bytes of the fp32 copies."""
    return sum(4 * math.prod(shape) for shape, _ in shapes)


def step_bytes(optimizer: str, shapes: Shapes, master: bool = False, device: str = "cuda") -> int:
    """Bytes that exist only during the step.

    On a GPU torch's AdamW steps all tensors at once by default ("foreach"), with √v of all of them in between; on a
    CPU one after the other, with two copies of each. fused=True would need nothing.
    """
    check_optimizer(optimizer)
    sizes = [math.prod(shape) * (4 if master else dtype.itemsize) for shape, dtype in shapes]
    largest = max(sizes, default=0)
    if optimizer == "adamw":
        return sum(sizes) if device == "cuda" else 2 * largest
    return largest if optimizer == "adafactor" else 0


def check_optimizer(optimizer: str) -> None:
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
