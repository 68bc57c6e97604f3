"""Bytes at rest: weights in any dtype, 4- and 8-bit codes, and the adapter file to the byte.

a safetensors file = 8 + header + tensors     header: JSON, padded with spaces to a multiple of 8
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from lora_lab.adapter_notes import BASE_KEY, Notes
from lora_lab.budget.sites import Site
from lora_lab.provenance import WIDTH

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
SCALE_BLOCK = 256  # scales that share a scale in double quantization
# What the two libraries put into the header beside the tensors: lora_lab a digest of its config, of 64 digits, and
# which base the adapter was made for.
METADATA = {
    "peft": {"format": "pt"},
    "lora_lab": {"format": "pt", "lora_lab_config": "0" * 64, BASE_KEY: " " * WIDTH},
}


def code_bytes(out: int, in_: int, kind: str = "nf4", block_size: int | None = None, double: bool | None = None) -> int:
    """Bytes of a quantized W (out, in): codes, the scale of each block, and with `double` the scales of the scales.

    NF4 in blocks of 64 takes 4 + 32/64 = 4.5 bits a number, doubly quantized 4 + 8/64 + 32/(64·256) = 4.127.
    Settings as in `lora_lab.quantize.quantize`.
    """
    if kind not in ("nf4", "int8"):
        raise ValueError(f"kind must be 'nf4' or 'int8', got {kind!r}")
    if block_size is not None and (isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1):
        raise ValueError(f"block_size must be None or a whole number of at least 1, got {block_size!r}")
    if double is not None and not isinstance(double, bool):
        raise ValueError(f"double must be True, False or None, got {double!r}")
    size = out * in_
    codes = math.ceil(size / 2) if kind == "nf4" else size
    blocks = math.ceil(size / (block_size or (64 if kind == "nf4" else in_)))
    if not (kind == "nf4" if double is None else double):
        return codes + 4 * blocks
    return codes + blocks + 4 * math.ceil(blocks / SCALE_BLOCK) + 4  # the last: the mean of the scales


def safetensors_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, metadata: Mapping[str, str]) -> int:
    """Size of a safetensors file with these tensors, all of one dtype."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, shape in sorted(shapes.items()):
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + math.ceil(len(text) / 8) * 8 + start


def adapter_shapes(sites: Mapping[str, Site], dora: bool = False) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in adapter_model.safetensors, as PEFT and lora_lab write it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for site in sites.values():
        many, prefix = site.experts * site.rank, f"base_model.model.{site.key}"
        shapes[f"{prefix}.lora_A.weight"] = (many, site.in_)
        shapes[f"{prefix}.lora_B.weight"] = (site.out, many)
        if dora:
            shapes[f"{prefix}.lora_magnitude_vector"] = (site.out,)
    return shapes


def adapter_file_bytes(
    sites: Mapping[str, Site],
    dtype: torch.dtype = torch.float32,
    dora: bool = False,
    library: str = "peft",
    quantize: Mapping[str, Any] | None = None,
) -> int:
    """Size in bytes of adapter_model.safetensors, exactly, as `library` ("peft" or "lora_lab") saves it.

    PEFT keeps A and B in fp32 beside a half-precision base too (autocast_adapter_dtype=True), and so does lora_lab,
    which also notes in the header how it quantized the base (`quantize`: kind, block_size and double).
    """
    if library not in METADATA:
        raise ValueError(f"library must be one of {', '.join(METADATA)}, got {library!r}")
    if dtype not in _NAMES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, _NAMES))}, got {dtype!r}")
    note = Notes(quantize=dict(quantize)).metadata() if quantize and library == "lora_lab" else {}
    return safetensors_bytes(adapter_shapes(sites, dora), dtype, METADATA[library] | note)
