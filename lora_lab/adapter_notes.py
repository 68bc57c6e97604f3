"""What PEFT's files have no word for: a note in the header of the weights, which other programs pass over.

shifted   {path: alpha}   these layers' factors are [A; A0] and [B, -B0]; alpha is that of A and B alone
quantize  {kind, ...}     the base was quantized, after its shift
trains    "A"             the other factor stays frozen (MiCA)

Under a key of its own: base {dtype: digits}, which base the adapter was made for (`lora_lab.provenance`).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from lora_lab.base import is_quantized
from lora_lab.layer import LoRALinear
from lora_lab.provenance import as_text, from_text

KEY, BASE_KEY = "lora_lab", "lora_lab_base"


@dataclass(frozen=True)
class Notes:
    shifted: dict[str, float] = field(default_factory=dict)
    quantize: dict[str, Any] = field(default_factory=dict)
    trains: str = "AB"
    base: dict[str, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """For the header of a safetensors file; nothing if there is nothing to say."""
        text = {BASE_KEY: as_text(self.base)} if self.base else {}
        if replace(self, base={}) != Notes():
            text[KEY] = json.dumps({key: value for key, value in asdict(self).items() if key != "base"}, sort_keys=True)
        return text

    def quantizes(self, base: nn.Module) -> bool:
        """Is `base` still to be quantized?"""
        return bool(self.quantize) and not is_quantized(base)

    def check(self, found: Mapping[str, nn.Module]) -> None:
        """Raise ValueError if a base is quantized already, but not as this adapter wants it."""
        for name, base in found.items():
            if is_quantized(base) and name in self.shifted:
                raise ValueError(f"{name}: the adapter wants its base quantized after a shift: load the original base")
            here = _settings(base, by_row=self.quantize.get("block_size", 0) is None)
            if is_quantized(base) and self.quantize and here != self.quantize:
                raise ValueError(f"{name} is quantized with {here}, the adapter wants {self.quantize}")


def notes_of(layers: Mapping[str, LoRALinear]) -> Notes:
    """The notes of an injected model. Raises ValueError if its layers differ in what one note can say."""
    shifted = {name: layer.alpha for name, layer in layers.items() if layer.A0 is not None}
    trained = {"".join(f for f in "AB" if getattr(layer, f).requires_grad) or "AB" for layer in layers.values()}
    bases = [layer.base for layer in layers.values()]
    by_row = all(is_quantized(base) and base.kind == "int8" and base.block_size == base.in_features for base in bases)
    codes = {json.dumps(_settings(base, by_row), sort_keys=True) for base in bases}
    for what, values in (("factors that train", trained), ("quantization", codes)):
        if len(values) > 1:
            raise ValueError(f"the layers differ in {what} ({sorted(values)}), which one adapter file cannot say")
    return Notes(shifted, json.loads(codes.pop()), trained.pop())


def read_notes(metadata: Mapping[str, str], ranks: Mapping[str, int]) -> Notes:
    """The notes in a header; empty where there are none. Raises ValueError if they do not fit layers of these ranks."""
    base = from_text(metadata[BASE_KEY]) if BASE_KEY in metadata else {}
    if KEY not in metadata:
        return Notes(base=base)
    try:
        notes = Notes(**json.loads(metadata[KEY]), base=base)
        fits = all(ranks[name] % 2 == 0 and 0 < alpha < math.inf for name, alpha in notes.shifted.items())
        fits = fits and notes.trains in ("A", "B", "AB") and isinstance(notes.quantize, dict)
    except (TypeError, ValueError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"the header's note {metadata[KEY][:200]!r} does not fit the adapter: was the file edited?")
    return notes


def _settings(base: nn.Module, by_row: bool) -> dict[str, Any]:
    """`by_row`: where each row is a block, int8's default and another number in each layer, None stands for it."""
    if not is_quantized(base):
        return {}
    row = by_row and base.block_size == base.in_features
    return {"kind": base.kind, "block_size": None if row else base.block_size, "double": base.double}
