"""Codes are the nearest, packed for real; scales are kept as promised; no error is ever above the derived bound."""

import math

import pytest
import torch
from models_for_tests import DTYPES
from torch import Tensor
from torch.nn import functional as F

from lora_lab.codebooks import dynamic_codebook, nf4_codebook
from lora_lab.quantize import QuantizedTensor, error_bound, quantize

# Dettmers et al. 2023 (arXiv:2305.14314), appendix E, and bitsandbytes' csrc/kernels.cu.
PUBLISHED_NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
SHAPES = [(1, 1), (3, 5), (7, 11), (16, 64), (70, 30), (1, 1000), (300, 41)]  # out, in: most no multiple of any block
KINDS = ["nf4", "int8"]
BLOCKS = [None, 64, 7, 1, 5000]


def weight_of(shape, dtype=torch.float32, seed=0) -> Tensor:
    """Rows of very different sizes, heavy tails, and a few exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    normal, sizes = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in (shape, (shape[0], 1)))
    weight = normal.sign() * normal.abs() ** 4 * 4**sizes
    return weight.where(torch.rand(shape, generator=generator) > 0.05, 0.0).clamp(-1e4, 1e4).to(dtype)


def largest_of_blocks(weight: Tensor, size: int) -> Tensor:
    return F.pad(weight.reshape(-1).abs(), (0, -weight.numel() % size)).view(-1, size).amax(dim=1)


def unpacked(q: QuantizedTensor) -> Tensor:
    """The code of every number, whatever holds it."""
    if q.kind == "int8":
        return q.codes.long()
    codes = torch.stack([q.codes.long() // 16, q.codes.long() % 16], dim=1).view(-1)
    return codes[: math.prod(q.shape)]


def numbers_of(kind: str) -> Tensor:
    """The codebook in fp64, ascending: int8's index is 127 more than its code."""
    return nf4_codebook().double() if kind == "nf4" else torch.arange(-127, 128).double() / 127


def test_nf4_is_the_published_codebook():
    assert nf4_codebook().tolist() == PUBLISHED_NF4


def test_nf4_is_made_of_evenly_likely_quantiles():
    """Times the outermost quantile, the entries leave equal shares of a normal distribution between them."""
    outermost = torch.special.ndtri(torch.tensor(1 - (1 / 32 + 1 / 30) / 2, dtype=torch.float64))
    shares = torch.special.ndtr(nf4_codebook().double() * outermost).diff()
    half = 0.5 - (1 / 32 + 1 / 30) / 2
    torch.testing.assert_close(shares[:7], torch.full((7,), half / 7, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(shares[7:], torch.full((8,), half / 8, dtype=torch.float64), rtol=1e-5, atol=0)


def test_dynamic_codebook_by_decades():
    codebook = dynamic_codebook()
    expected = [0.0, 1.0]
    for decade in range(7):
        for part in range(2**decade):
            middle = (0.1 + 0.9 * (part + 0.5) / 2**decade) * 10.0 ** (decade - 6)
            expected += [middle, -middle]
    assert len(codebook) == len(expected) == 256
    torch.testing.assert_close(codebook, torch.tensor(sorted(expected)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_code_is_the_nearest(shape, kind, dtype):
    codebook = numbers_of(kind)
    for block_size in BLOCKS:
        weight = weight_of(shape, dtype)
        q = quantize(weight, kind, block_size, double=False)
        size = block_size or (64 if kind == "nf4" else shape[1])
        assert (q.kind, q.block_size, q.shape, q.dtype, q.double) == (kind, size, shape, dtype, False)
        codes = unpacked(q) + (0 if kind == "nf4" else 127)
        assert torch.equal(q.absmax, largest_of_blocks(weight, size).float())
        absmax = q.absmax.double().repeat_interleave(size)[: weight.numel(), None]
        distance = (weight.double().view(-1, 1) - codebook * absmax).abs()
        taken = distance.gather(1, codes[:, None])[:, 0]
        # Two entries can be equally near, up to the rounding of a product or two in fp32.
        assert (taken <= distance.min(dim=1).values + 1e-6 * absmax[:, 0]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantize_is_the_formula_rounded_once(shape, kind, dtype):
    for block_size, double in [(None, False), (None, True), (7, True), (5000, False)]:
        q = quantize(weight_of(shape, dtype), kind, block_size, double)
        codes = numbers_of(kind)[unpacked(q) + (0 if kind == "nf4" else 127)]
        scales = q.scales().repeat_interleave(q.block_size)[: codes.numel()].double()
        exact = (codes * scales).view(shape)
        assert q.dequantize().dtype == dtype
        for to in (None, *DTYPES):
            unit = torch.finfo(torch.float32).eps + torch.finfo(to or dtype).eps / 2
            error = (q.dequantize(to).double() - exact).abs()
            assert (error <= unit * exact.abs() + torch.finfo(to or dtype).tiny).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
def test_no_error_is_above_the_bound(kind, double, dtype):
    worst = 0.0
    for seed, shape in enumerate([*SHAPES, (64, 300)]):
        for block_size in BLOCKS:
            weight = weight_of(shape, dtype, seed)
            q = quantize(weight, kind, block_size, double)
            for to in (None, *DTYPES):
                error, bound = (weight.double() - q.dequantize(to).double()).abs(), error_bound(q, to).double()
                assert bound.shape == weight.shape
                assert (error <= bound).all()
                worst = max(worst, (error / bound).max().item())
    assert worst > 0.9  # a bound that is far above what happens would prove nothing


@pytest.mark.parametrize(("kind", "half_gap"), [("nf4", (1 - 0.6961928) / 2), ("int8", 0.5 / 127)])
def test_the_bound_is_half_a_gap_of_the_codebook(kind, half_gap):
    weight = weight_of((50, 64), torch.float64)
    once, twice = (quantize(weight, kind, 64, double) for double in (False, True))
    absmax = weight.abs().amax(dim=1, keepdim=True)
    bound = error_bound(once, torch.float64).double()
    assert (bound <= (half_gap + 1e-6) * absmax + 1e-30).all()
    off = (twice.scales() - once.scales()).abs().double()[:, None]
    scale = (once.absmax - once.absmax.mean()).abs().max()
    added = dynamic_codebook().diff().max() / 2 * scale  # what double quantization can add, at most
    assert (off <= added).all()
    assert off.any()
    assert (error_bound(twice, torch.float64).double() <= bound + 2.0001 * added).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_what_was_dequantized_changes_no_code(kind, dtype):
    for shape in SHAPES:
        weight = weight_of(shape, dtype)
        for double in (False, True):
            q = quantize(weight, kind, double=double)
            again = quantize(q.dequantize(torch.float32), kind, double=double)
            # A scale so small that double quantization makes it zero takes the codes with it.
            kept = (q.scales() > 0).repeat_interleave(q.block_size)[: weight.numel()]
            assert torch.equal(unpacked(again)[kept], unpacked(q)[kept])
            assert double or torch.equal(again.dequantize(dtype), q.dequantize())


@pytest.mark.parametrize("shape", [(256, 64), (1024, 128)], ids=str)
def test_bytes_are_those_of_the_paper(shape):
    weight = torch.randn(shape, dtype=torch.bfloat16)
    size = weight.numel()
    bits = {
        ("nf4", False): 4 + 32 / 64,
        ("nf4", True): 4 + 8 / 64 + 32 / (64 * 256) + 32 / size,  # 4.127 and one mean
        ("int8", False): 8 + 32 / shape[1],
    }
    for (kind, double), expected in bits.items():
        q = quantize(weight, kind, double=double)
        assert 8 * q.nbytes / size == expected
        # What is really allocated, not only what is claimed.
        assert q.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in q.tensors.values())
    assert round(bits["nf4", True] - 32 / size, 3) == 4.127


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_codes_a_byte_and_one_scale_a_block(shape):
    q = quantize(weight_of(shape), "nf4", 7, double=True)
    size = math.prod(shape)
    assert (q.codes.dtype, q.codes.shape) == (torch.uint8, (math.ceil(size / 2),))
    assert (q.absmax.dtype, q.absmax.shape) == (torch.uint8, (math.ceil(size / 7),))
    assert (q.absmax_scale.dtype, q.absmax_scale.shape) == (torch.float32, (math.ceil(len(q.absmax) / 256),))


def test_the_first_code_is_in_the_high_half():
    assert quantize(torch.tensor([[-1.0, 1.0, 0.0]]), double=False).codes.tolist()[0] == 0x0F
    assert quantize(torch.tensor([[-1.0, 1.0, 0.0]]), double=False).codes.tolist()[1] // 16 == 7


def test_midway_the_lower_code_is_taken_and_of_int8_the_even_one():
    book = nf4_codebook()
    middles = (book[1:] + book[:-1]) / 2
    q = quantize(torch.cat([torch.ones(1), middles])[None], double=False)
    assert unpacked(q).tolist() == [15, *range(15)]
    above = torch.nextafter(middles, torch.ones(15))
    assert unpacked(quantize(torch.cat([torch.ones(1), above])[None], double=False)).tolist() == [15, *range(1, 16)]
    q = quantize(torch.tensor([[127.0, 0.5, 1.5, -0.5, -2.5, 126.5]]), "int8")
    assert q.codes.tolist() == [127, 0, 2, 0, -2, 126]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
def test_zeros_stay_zeros(kind, double):
    """Also where double quantization makes their scale more than zero: beside blocks of about one size."""
    weight = torch.rand(20, 64)
    weight[3:5] = 0
    q = quantize(weight, kind, 64, double)
    assert bool(q.scales()[3]) == double
    assert not q.dequantize()[3:5].any()
    assert q.dequantize()[0].any()
    assert not quantize(torch.zeros(3, 70), kind, None, double).dequantize().any()


def test_scales_are_held_in_eight_bits_less_their_mean():
    weight = weight_of((300, 128))  # 600 scales: two blocks of 256 and a shorter one
    scales, q = quantize(weight, double=False).absmax, quantize(weight)
    mean = scales.mean()
    book = dynamic_codebook()
    assert torch.equal(q.absmax_mean, mean)
    for scale, codes, held in zip((scales - mean).split(256), q.absmax.split(256), q.absmax_scale, strict=True):
        assert held == scale.abs().max()
        distance = (scale[:, None] - book * held).abs()
        taken = distance.gather(1, codes.long()[:, None])[:, 0]
        assert (taken <= distance.min(dim=1).values + 1e-6 * held).all()
    expected = book[q.absmax.long()] * q.absmax_scale.repeat_interleave(256)[:600] + mean
    torch.testing.assert_close(q.scales(), expected.clamp(min=0), rtol=1e-6, atol=1e-6 * mean.item())


@pytest.mark.parametrize("block_size", [64, 7, 4096, 600_000])
def test_a_large_matrix_is_quantized_in_pieces_without_a_seam(block_size):
    """More than the 2^19 numbers that are handled at a time."""
    weight = torch.randn(1100, 1001)
    whole = quantize(weight, "nf4", block_size, double=False)
    values = whole.dequantize().view(-1)
    assert torch.equal(whole.absmax, largest_of_blocks(weight, block_size))
    for start in (0, 500_000 // block_size * block_size, weight.numel() // block_size * block_size):
        part = weight.view(-1)[start : start + 10 * block_size]
        if part.numel():
            expected = quantize(part[None], "nf4", block_size, double=False).dequantize()[0]
            assert torch.equal(values[start : start + part.numel()], expected)


def test_extremes():
    """fp16 stays finite although its doubly quantized scale may be rounded up; numbers below fp32 become zero."""
    weight = torch.full((100, 64), 65504.0, dtype=torch.float16)
    weight[0] = 60000.0
    assert quantize(weight).dequantize().isfinite().all()
    tiny = torch.tensor([[1e-300, 3e-42, -1e-39]], dtype=torch.float64)
    for kind in KINDS:
        q = quantize(tiny, kind)
        assert ((tiny - q.dequantize()).abs() <= error_bound(q)).all()


def test_the_weight_is_only_read():
    weight = weight_of((30, 70)).requires_grad_()
    before, state = weight.detach().clone(), torch.get_rng_state()
    q = quantize(weight)
    assert not q.dequantize().requires_grad
    q.dequantize().zero_()
    assert torch.equal(weight, before)
    assert weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert q.dequantize().any()
    column = weight_of((70, 30)).T  # rows are what counts, however the memory lies
    assert torch.equal(quantize(column).dequantize(), quantize(column.contiguous()).dequantize())
    assert torch.equal(q.to("cpu").dequantize(), q.dequantize())


REFUSED = {
    "NaN": (ValueError, r"\(2, 3\) has 1 entries", (torch.tensor([[1.0, math.nan, 2], [3, 4, 5]]),)),
    "infinite": (ValueError, "has 2 entries", (torch.tensor([[1.0, math.inf], [-math.inf, 2]]),)),
    "too large": (ValueError, "too large for fp32", (torch.tensor([[1e300, 1.0]], dtype=torch.float64),)),
    "integers": (TypeError, "floating point, got torch.int64", (torch.ones(2, 3, dtype=torch.int64),)),
    "a list": (TypeError, "got list", ([[1.0, 2.0]],)),
    "a vector": (ValueError, r"got the shape \(5,\)", (torch.ones(5),)),
    "three axes": (ValueError, r"\(2, 3, 4\)", (torch.ones(2, 3, 4),)),
    "empty": (ValueError, r"\(0, 4\)", (torch.ones(0, 4),)),
    "meta": (ValueError, "meta", (torch.ones(2, 3, device="meta"),)),
    "kind": (ValueError, "got 'fp4'", (torch.ones(2, 3), "fp4")),
    "kind in capitals": (ValueError, "got 'NF4'", (torch.ones(2, 3), "NF4")),
    "no kind": (ValueError, "got None", (torch.ones(2, 3), None)),
    "block of 0": (ValueError, "at least 1, got 0", (torch.ones(2, 3), "nf4", 0)),
    "negative block": (ValueError, "at least 1, got -64", (torch.ones(2, 3), "nf4", -64)),
    "block True": (ValueError, "at least 1, got True", (torch.ones(2, 3), "nf4", True)),
    "half a block": (ValueError, "at least 1, got 64.5", (torch.ones(2, 3), "nf4", 64.5)),
    "block as text": (ValueError, "at least 1, got '64'", (torch.ones(2, 3), "nf4", "64")),
    "double as text": (ValueError, "double must be .* got 'yes'", (torch.ones(2, 3), "nf4", 64, "yes")),
    "double 1": (ValueError, "double must be .* got 1", (torch.ones(2, 3), "nf4", 64, 1)),
}


@pytest.mark.parametrize(("error", "words", "arguments"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(error, words, arguments):
    with pytest.raises(error, match=words):
        quantize(*arguments)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_codes(kind):
    weight = weight_of((300, 128))
    ours, theirs = quantize(weight, kind, double=False), quantize(weight.cuda(), kind, double=False)
    assert all(tensor.device.type == "cuda" for tensor in theirs.tensors.values())
    assert torch.equal(ours.codes, theirs.codes.cpu())
    assert torch.equal(ours.dequantize(), theirs.dequantize().cpu())
    moved = quantize(weight, kind).to("cuda")
    assert torch.equal(moved.dequantize().cpu(), quantize(weight, kind).dequantize())


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("double", [False, True])
def test_nf4_is_bitsandbytes_to_the_bit(double, dtype):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    weight = torch.randn(256, 192, device="cuda").to(dtype)
    codes, state = bnb.functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    q = quantize(weight, "nf4", 64, double)
    assert torch.equal(q.codes, codes.view(-1))
    assert torch.equal(q.absmax, state.absmax)
    if double:
        assert torch.equal(q.absmax_scale, state.state2.absmax)
        assert torch.equal(q.absmax_mean, state.offset)
    assert torch.equal(q.dequantize(), bnb.functional.dequantize_4bit(codes, state))


@needs_cuda
def test_int8_is_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    weight = torch.randn(256, 192, device="cuda", dtype=torch.float16)
    codes, absmax, _ = bnb.functional.int8_vectorwise_quant(weight)
    q = quantize(weight, "int8")
    assert torch.equal(q.absmax, absmax.view(-1))
    # CUDA's fast division may differ in the last bit, and then a number midway takes the other of two codes.
    assert (q.codes.view(256, 192) - codes).abs().max() <= 1
    assert (q.codes.view(256, 192) != codes).float().mean() < 1e-3
