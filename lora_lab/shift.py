"""base <- write(W - s·B0 A0): the one step in which a residual init touches the base weight, and its inverse.

The difference is formed in fp32 (fp64 for an fp64 base) and rounded once to the base's dtype, or quantized once.
PEFT rounds A and B to a half-precision base's dtype after it has formed the residual, so that base + s·BA misses W by
more than one rounding; here A and B stay in fp32, and it does not.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from lora_lab.base import is_quantized, oriented_weight, write_weight_
from lora_lab.layer import LoRALinear


@torch.no_grad()
def shifted_weight(layer: LoRALinear, sign: int = -1) -> Tensor:
    """W + sign·s·B0 A0 (out, in), in fp32 or better. Raises ValueError if the base's dtype cannot hold it."""
    weight = oriented_weight(layer.base)
    result = weight + sign * layer.scale * (layer.B0 @ layer.A0)
    limit = torch.finfo(weight.dtype).max
    if not result.abs().max() <= limit:  # NaN fails every comparison
        raise ValueError(f"W - s·B0 A0 is not finite in {weight.dtype}: max = {result.abs().max():.3g} > {limit:.3g}")
    return result


def shift_(layers: Iterable[LoRALinear]) -> None:
    """Put every pending shift into its base, in place; layers without one are left as they are.

    All or nothing: if one fails, or the user interrupts, those done before are taken back (to rounding).
    """
    done = []
    try:
        for layer in layers:
            if layer.A0 is not None and not layer.shifted:
                write_weight_(layer.base, shifted_weight(layer))
                layer.shifted = True
                done.append(layer)
    except BaseException:
        unshift_(done)
        raise


def unshift_(layers: Iterable[LoRALinear]) -> None:
    """Give every base back its W, in place, to one rounding; the shift is pending again, and the function the same."""
    for layer in layers:
        if layer.shifted:
            write_weight_(layer.base, shifted_weight(layer, sign=+1))
            layer.shifted = False


def refuse_lost(layers: dict[str, LoRALinear]) -> None:
    """Raise ValueError if a shift cannot be taken back: a base that was quantized after it has forgotten W."""
    lost = [name for name, layer in layers.items() if layer.shifted and is_quantized(layer.base)]
    if lost:
        raise ValueError(
            f"{len(lost)} bases ({lost[0]}, ...) were quantized after their init shifted them: W is gone, load it again"
        )
