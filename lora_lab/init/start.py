"""How an adapter starts: the two factors, and what is taken out of the base in exchange.

    base <- write(W - s·B0 A0)       (A0, B0) = `shift`;  write rounds to the base's dtype, or quantizes

An init that leaves the base alone has no shift. A residual init (PiSSA, OLoRA, CorDA, LoRA-GA) has its own A and B as
the shift, so that base + s·BA = W at the start. LoftQ's shift is its last iterate but one.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Start(NamedTuple):
    """A (rank, in) and B (out, rank); `shift` (A0, B0) of the same shapes, or None; `trains`: which factors learn."""

    A: Tensor
    B: Tensor
    shift: tuple[Tensor, Tensor] | None = None
    trains: str = "AB"


# What `LoRALinear` and `inject` take: (weight (out, in), rank, scale) -> (A, B) or Start(...).
Init = Callable[[Tensor, int, float], "Start | tuple[Tensor, Tensor]"]
