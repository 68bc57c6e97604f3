"""A weight in 4 or 8 bits: a code for each number, a scale for each block of numbers.

    Ŵᵢ = codebook[codeᵢ] · absmax_b        b = i // block_size, i counting along the rows of W (out, in)

absmax_b is the largest |Wᵢ| of the block, codeᵢ the entry nearest to Wᵢ / absmax_b.
nf4: 16 quantiles of a normal distribution, two codes a byte, blocks of 64 (Dettmers et al. 2023, arXiv:2305.14314).
int8: k / 127 for k from -127 to 127, a row is a block (Dettmers et al. 2022, arXiv:2208.07339, as in Linear8bitLt).
Double quantization holds the scales, less their mean, in 8 bits, in blocks of 256 (arXiv:2305.14314, section 3).
Codes, scales and layout are those of bitsandbytes, but for a block of zeros, which here stays exactly zero.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_lab.codebooks import CODEBOOKS, MIDDLES, half_gaps
from lora_lab.init.check import check_matrix

FP32 = torch.finfo(torch.float32)
SCALE_BLOCK = 256  # how many scales share one in double quantization
_LOOKUPS: dict[tuple[str, torch.device], Tensor] = {}


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A matrix (out, in) as codes and scales; `quantize` makes it.

    codes: two NF4 codes a byte, the first in its high half, uint8 (⌈out·in / 2⌉,), or int8 (out·in,).
    absmax: the scale of each block, fp32 (blocks,); with double quantization the codes, uint8 (blocks,), of
        (scale - absmax_mean) / absmax_scale, with absmax_mean fp32 () and absmax_scale fp32 (⌈blocks / 256⌉,).
    dtype: what it was quantized from, and what `dequantize` returns unless told otherwise.
    """

    codes: Tensor
    absmax: Tensor
    absmax_scale: Tensor | None
    absmax_mean: Tensor | None
    shape: tuple[int, int]
    dtype: torch.dtype
    kind: str
    block_size: int

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def double(self) -> bool:
        return self.absmax_scale is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors. NF4: 4 + 32/64 = 4.5 bits a number, doubly quantized 4 + 8/64 + 32/(64·256) = 4.127."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def to(self, device: torch.device | str) -> "QuantizedTensor":
        return dataclasses.replace(self, **{name: tensor.to(device) for name, tensor in self.tensors.items()})

    @torch.no_grad()
    def scales(self) -> Tensor:
        """The scale of each block as `dequantize` uses it, fp32 (blocks,)."""
        if not self.double:
            return self.absmax
        scales = _decode(self.absmax, _lookup("dynamic", self.codes.device), self.absmax_scale, SCALE_BLOCK)
        # The true scale lies in this range: clamping goes towards it, and no fp16 weight comes back infinite.
        return (scales + self.absmax_mean).clamp(0, min(FP32.max, torch.finfo(self.dtype).max))

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Ŵ (out, in) as a new tensor, in `dtype` (None: the original), multiplied in fp32 and rounded once."""
        lookup = _lookup(self.kind, self.codes.device)
        return _decode(self.codes, lookup, self.scales(), self.block_size, self.shape, dtype or self.dtype)


@torch.no_grad()
def quantize(
    weight: Tensor, kind: str = "nf4", block_size: int | None = None, double: bool | None = None
) -> QuantizedTensor:
    """Codes and scales of `weight` (out, in), any float dtype, on its device.

    kind: "nf4" or "int8". block_size: numbers that share a scale (None: 64 for NF4, a row for int8); the last block may
    be shorter. double: quantize the scales too (None: for NF4 only). Midway between two NF4 codes the lower is taken,
    between two int8 codes the even one. A block whose absmax is below 4e-37 can become zero.
    Raises TypeError or ValueError for a weight that is no matrix, or not finite in fp32, and for an unknown setting.
    """
    check_matrix(weight)
    if kind not in ("nf4", "int8"):
        raise ValueError(f"kind must be 'nf4' or 'int8', got {kind!r}")
    block_size = (64 if kind == "nf4" else weight.shape[1]) if block_size is None else block_size
    if isinstance(block_size, bool) or not isinstance(block_size, Integral) or block_size < 1:
        raise ValueError(f"block_size must be a whole number of at least 1, got {block_size!r}")
    double = kind == "nf4" if double is None else double
    if not isinstance(double, bool):
        raise ValueError(f"double must be True, False or None, got {double!r}")
    flat = weight.detach().reshape(-1)
    codes, absmax = _encode(flat, kind, block_size)
    if not absmax.isfinite().all():
        bad = flat.numel() - int(flat.float().isfinite().sum())
        raise ValueError(f"weight {tuple(weight.shape)} has {bad} entries that are NaN, infinite or too large for fp32")
    scale = mean = None
    if double:
        mean = absmax.mean()
        absmax, scale = _encode(absmax - mean, "dynamic", SCALE_BLOCK)
    return QuantizedTensor(codes, absmax, scale, mean, tuple(weight.shape), weight.dtype, kind, int(block_size))


@torch.no_grad()
def error_bound(quantized: QuantizedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """The largest |Wᵢ - Ŵᵢ| (out, in), fp32, of any W that `quantize` turns into this; Ŵ = dequantize(dtype).

        halfgap[codeᵢ] · absmax_b + |codebook[codeᵢ]| · |absmax_b - âbsmax_b| + rounding

    halfgap is how far a number can be from the code it takes: at most 0.152 for NF4, 1/254 for int8. âbsmax is absmax
    after double quantization: off by the same rule, with the gaps of the dynamic codebook and its own scale.
    """
    used, off = quantized.scales(), 0.0
    if quantized.double:
        off = _decode(quantized.absmax, _words(half_gaps("dynamic")), quantized.absmax_scale, SCALE_BLOCK)
        off = off + 4 * FP32.eps * (off + used + quantized.absmax_mean.abs())
    target = torch.finfo(dtype or quantized.dtype)

    def by_code(numbers: Tensor, scales: Tensor) -> Tensor:
        return _decode(quantized.codes, _words(numbers), scales, quantized.block_size, quantized.shape)

    # At most eight roundings to fp32 (scaling, comparing, multiplying), then one to the dtype of the result.
    bound = by_code(half_gaps(quantized.kind) + 4 * FP32.eps, used + off)
    bound += by_code(CODEBOOKS[quantized.kind].abs(), off + target.eps / 2 * (used + off))
    return bound + (128 * FP32.tiny + target.tiny * target.eps)


def _words(numbers: Tensor) -> Tensor:
    """By byte (256,): its number, or of 16 numbers its two, in fp32, as the bits of one integer."""
    # Looking up one 64-bit word is faster than looking up a row of two numbers.
    pairs = torch.cartesian_prod(numbers, numbers) if len(numbers) == 16 else None
    return numbers.view(torch.int32) if pairs is None else pairs.view(torch.int64)[:, 0]


def _lookup(kind: str, device: torch.device) -> Tensor:
    if (kind, device) not in _LOOKUPS:
        _LOOKUPS[kind, device] = _words(CODEBOOKS[kind]).to(device)
    return _LOOKUPS[kind, device]


def _spans(size: int, block_size: int, device: torch.device) -> Iterator[slice]:
    """Slices of whole blocks and whole bytes: on a CPU small enough for its cache, elsewhere few."""
    step = 2 * block_size * max(1, (2**18 if device.type == "cpu" else 2**24) // block_size)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _encode(flat: Tensor, kind: str, block_size: int) -> tuple[Tensor, Tensor]:
    """Codes as they are stored, and absmax, fp32 (blocks,), of the numbers (size,)."""
    codes, absmax = [], []
    for span in _spans(flat.numel(), block_size, flat.device):
        numbers = flat[span].float()
        width = min(block_size, numbers.numel())
        blocks = F.pad(numbers, (0, -numbers.numel() % width)).view(-1, width)
        absmax.append(blocks.abs().amax(dim=1))
        # Times the reciprocal, not divided: as bitsandbytes rounds. Of a block of zeros it is infinite.
        inverse = ((127 if kind == "int8" else 1) / absmax[-1]).nan_to_num(0, 0, 0)
        codes.append(_nearest((blocks * inverse[:, None]).view(-1)[: numbers.numel()], kind))
    return torch.cat(codes), torch.cat(absmax)


def _nearest(scaled: Tensor, kind: str) -> Tensor:
    if kind == "int8":
        return scaled.round().to(torch.int8)
    if kind == "dynamic":
        return torch.bucketize(scaled, MIDDLES[kind].to(scaled.device)).to(torch.uint8)
    codes = torch.zeros(scaled.shape, dtype=torch.uint8, device=scaled.device)
    # Fifteen vectorised comparisons are faster than the binary search of bucketize.
    for middle in MIDDLES[kind].tolist():
        codes += scaled > middle
    pairs = F.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
    return torch.add(pairs[:, 1], pairs[:, 0], alpha=16)


def _decode(codes: Tensor, words: Tensor, scales: Tensor, block_size: int, shape=None, dtype=torch.float32) -> Tensor:
    """number[code] · scale as a new tensor of `shape` (None: that of the codes), for any table of `_words`."""
    out = torch.empty(shape or codes.shape, dtype=dtype, device=codes.device)
    flat, words = out.view(-1), words.to(codes.device)
    codes, a_byte = codes.view(torch.uint8), words.element_size() // 4
    for span in _spans(flat.numel(), block_size, codes.device):
        found = words.index_select(0, codes[span.start // a_byte : -(-span.stop // a_byte)].int()).view(torch.float32)
        part, first = flat[span], span.start // block_size
        whole = part.numel() // block_size
        last, end = first + whole, whole * block_size
        blocks = found[:end].view(whole, block_size), scales[first:last, None]
        torch.mul(*blocks, out=part[:end].view(whole, block_size))
        if end < part.numel():
            torch.mul(found[end : part.numel()], scales[last], out=part[end:])
    return out
