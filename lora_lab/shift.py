"""base <- write(W - s·B0 A0): the one step in which a residual init touches the base weight, and its inverse.

The difference is formed in fp32 (fp64 for an fp64 base) and rounded once to the base's dtype, or quantized once.
PEFT rounds A and B to a half-precision base's dtype after it has formed the residual, so that base + s·BA misses W by
more than one rounding; here A and B stay in fp32, and it does not.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_lab.base import is_quantized, oriented_weight, rewrite_, write_weight_
from lora_lab.layer import LoRALinear
from lora_lab.origin import remember


@torch.no_grad()
def shifted_weight(layer: LoRALinear, sign: int = -1) -> Tensor:
    """W + sign·s·B0 A0 (out, in), in fp32 or better. Raises ValueError if the base's dtype cannot hold it."""
    weight = oriented_weight(layer.base)
    result = weight + sign * layer.scale * (layer.B0 @ layer.A0)
    limit = torch.finfo(weight.dtype).max
    if not result.abs().max() <= limit:  # NaN fails every comparison
        formula = f"W {'-' if sign < 0 else '+'} s·B0 A0"
        raise ValueError(f"{formula} is not finite in {weight.dtype}: max = {result.abs().max():.3g} > {limit:.3g}")
    return result


def shift_(layers: Mapping[str, LoRALinear]) -> None:
    """Put every pending shift of these layers (by path) into its base, in place; the others are left as they are.

    Every base is checked before the first is written. If the user interrupts, those done before are taken back, to the
    rounding of W - s·B0 A0.
    Raises ValueError for a merged layer, and for a shift that the base's dtype cannot hold.
    """
    pending = {name: layer for name, layer in layers.items() if layer.A0 is not None and not layer.shifted}
    _refuse_merged(pending)
    for name, layer in pending.items():
        try:
            shifted_weight(layer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for layer in pending.values():
        remember(layer)
    done: dict[str, LoRALinear] = {}
    spare: list[Tensor] = []
    try:
        for name, layer in pending.items():
            done[name] = layer
            _rewrite(layer, True, spare)
    except BaseException:
        unshift_(done)
        raise


def unshift_(layers: Mapping[str, LoRALinear]) -> None:
    """Give every base back its W, in place, to the rounding of W - s·B0 A0. The shift is pending again, and the
    function the same.

    Raises ValueError, with nothing changed, for a merged layer, and where W is gone: a base that was quantized after
    its shift has forgotten it.
    """
    shifted = {name: layer for name, layer in layers.items() if layer.shifted}
    _refuse_merged(shifted)
    refuse_lost(shifted)
    spare: list[Tensor] = []
    for layer in shifted.values():
        _rewrite(layer, False, spare)


def refuse_lost(layers: Mapping[str, LoRALinear]) -> None:
    """Raise ValueError if a shift cannot be taken back."""
    lost = [name for name, layer in layers.items() if layer.shifted and is_quantized(layer.base)]
    if lost:
        raise ValueError(
            f"{len(lost)} bases ({lost[0]}, ...) were quantized after their init shifted them: W is gone, load it again"
        )


def _rewrite(layer: LoRALinear, shifted: bool, spare: list[Tensor]) -> None:
    weight = shifted_weight(layer, -1 if shifted else +1)

    def done(so: bool) -> None:
        layer.shifted = shifted if so else not shifted

    spare += rewrite_(layer.base, lambda: write_weight_(layer.base, weight), done, spare).values()


def _refuse_merged(layers: Mapping[str, LoRALinear]) -> None:
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(f"{len(merged)} layers are merged ({merged[0]}, ...): unmerge_ first")
