"""What a base weight was before an init shifted it or its codes replaced it: digests that a LoRA layer remembers.

A file's adapter is an update of that W, which cannot be had back to the bit. A base that was given back W to rounding
alone is marked, and no digest of it is taken. `lora_lab.provenance` explains.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.base import is_quantized, oriented_weight

_ORIGIN = "_base_digests"
_ROUNDED = "_known_only_to_rounding"
ROUNDED = (torch.float32, torch.bfloat16, torch.float16)


@torch.no_grad()
def digests_of(weight: Tensor) -> dict[str, str]:
    """SHA-256 of shape and bytes by dtype, its own first, then rounded to those that are no wider. Empty: none held."""
    if weight.is_meta or not weight.numel():
        return {}
    weight = weight.detach().cpu()
    kinds = [weight.dtype, *(d for d in ROUNDED if d != weight.dtype and d.itemsize <= weight.dtype.itemsize)]
    found = {}
    for dtype in kinds:
        digest = hashlib.sha256(f"{tuple(weight.shape)} ".encode())
        digest.update(weight.to(dtype).contiguous().flatten().view(torch.uint8).numpy())
        found[str(dtype).removeprefix("torch.")] = digest.hexdigest()
    return found


def remember(layer: Any) -> None:
    """Let a `LoRALinear` remember its base as it is, before the first change to it. Later calls change nothing."""
    base: nn.Module = layer.base
    if _ORIGIN not in layer.__dict__ and not is_quantized(base):
        layer.__dict__[_ORIGIN] = {} if is_rounded(base) else digests_of(oriented_weight(base))


def origin_of(layer: Any) -> dict[str, str] | None:
    """What `remember` found: empty if W was not known even then, None if the base was never changed."""
    return layer.__dict__.get(_ORIGIN)


def mark_rounded(base: nn.Module) -> None:
    """Say that `base` holds its W only to rounding. The mark goes with the module and its copies, for good."""
    base.__dict__[_ROUNDED] = True


def is_rounded(base: nn.Module) -> bool:
    """Was `base` marked by `mark_rounded`?"""
    return _ROUNDED in base.__dict__


def mark_shifted_back(layers: Iterable[Any], look: bool = False) -> None:
    """Mark the base of each `LoRALinear` whose shift was taken back. Codes are as they were made: they get no mark.

    look: unless the base holds W to the bit (it may never have been written). That takes a pass over it.
    """
    for layer in layers:
        origin = origin_of(layer)
        if origin is None or is_quantized(layer.base):
            continue
        if not look or digests_of(oriented_weight(layer.base)) != origin:
            mark_rounded(layer.base)
