"""The inits that need nothing but the weight: layer by layer the same as PEFT's, and what their equations promise.

Where PEFT draws random numbers, bit for bit under the same seed; where it takes an SVD, up to the sign of a direction.
"""

import itertools
import math

import pytest
import torch
from models_for_tests import linear, peft_factors, peft_twin
from torch import Tensor, nn

from lora_lab.adapter import scale_of
from lora_lab.base import oriented_weight
from lora_lab.init.default import default_factors
from lora_lab.init.gaussian import gaussian_factors
from lora_lab.init.mica import mica_factors
from lora_lab.init.olora import olora_factors
from lora_lab.init.orthogonal import orthogonal_factors
from lora_lab.init.pissa import pissa_factors
from lora_lab.init.random import random_factors

RANDOM = {
    "default": (default_factors, True),
    "random": (random_factors, False),
    "gaussian": (gaussian_factors, "gaussian"),
    "orthogonal": (orthogonal_factors, "orthogonal"),
}
FROM_WEIGHT = {"pissa": pissa_factors, "olora": olora_factors, "mica": mica_factors}
EVERY = {name: factors for name, (factors, _) in RANDOM.items()} | FROM_WEIGHT
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "tall": (48, 20),
    "wide": (20, 48),
    "square": (24, 24),
    "large": (330, 250),
}  # out, in; full SVDs but the last
RANK, ALPHA = 4, 10


def layer(shape: tuple[int, int], dtype=torch.float32, conv1d=False) -> nn.Module:
    return nn.Sequential(linear(*shape, dtype=dtype, conv1d=conv1d))


def weight_of(model: nn.Module) -> Tensor:
    return oriented_weight(model[0]).detach().clone()


def theirs(model: nn.Module, init: str | bool, rslora=False, rank=RANK) -> tuple[Tensor, Tensor, Tensor]:
    """PEFT's A (rank, in), B (out, rank) and base weight (out, in) for the layer, with alpha = 10."""
    twin = peft_twin(model, ["0"], rank, ALPHA, rslora=rslora, init_lora_weights=init)
    ((A, B),) = peft_factors(twin).values()
    return A.detach(), B.detach(), oriented_weight(twin.base_model.model[0].base_layer).detach()


def with_signs_of(A: Tensor, B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """A and B with the signs of their directions chosen so that B is nearest to `like`."""
    signs = torch.where((B * like).sum(0) < 0, -1.0, 1.0)
    return A * signs[:, None], B * signs


def unit(dtype: torch.dtype) -> float:
    """Relative tolerance: 1e-5, or one step of a half precision."""
    return 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps


@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RANDOM)
def test_random_inits_bit_for_bit(name, dtype, conv1d):
    factors, init = RANDOM[name]
    for shape, rank in itertools.product(SHAPES.values(), (2, 6)):
        model = layer(shape, dtype, conv1d)
        torch.manual_seed(5)
        their_A, their_B, base = theirs(model, init, rank=rank)
        state = torch.get_rng_state()
        torch.manual_seed(5)
        A, B = factors(weight_of(model), rank, scale_of(rank, ALPHA))
        assert torch.equal(torch.get_rng_state(), state)
        assert (A.dtype, B.dtype) == (dtype, dtype)
        assert torch.equal(A.float(), their_A)
        assert torch.equal(B.float(), their_B)
        assert torch.equal(base, weight_of(model))


@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FROM_WEIGHT)
def test_svd_inits_up_to_sign(name, dtype, rslora, conv1d):
    if name == "olora" and conv1d:
        pytest.skip("PEFT's olora does not turn a Conv1D round")
    scale = scale_of(RANK, ALPHA, rslora)
    for shape in SHAPES.values():
        model = layer(shape, dtype, conv1d)
        W = weight_of(model)
        their_A, their_B, base = theirs(model, name, rslora)
        A, B = FROM_WEIGHT[name](W, RANK, scale)
        assert (A.dtype, B.dtype) == (torch.float32, torch.float32)  # wide: PEFT rounds them to the base's dtype
        residual = W.float() - scale * B @ A if name != "mica" else W.float()
        difference = (
            residual.to(dtype).float() - base.float()
        )  # in half precision: an entry here and there, by one step
        assert difference.norm() <= (1e-5 if dtype == torch.float32 else unit(dtype) / 8) * W.float().norm()
        if name != "olora":  # whose signs are determined
            A, B = with_signs_of(A, B, their_B)
        # Single directions are less well determined than what they span, the more the closer their values are.
        loose = 200 if shape == SHAPES["large"] else 10
        for ours, other in ((A, their_A), (B, their_B)):
            close = {"rtol": unit(dtype), "atol": loose * 1e-6 * other.abs().max().item()}
            torch.testing.assert_close(ours.to(dtype).float(), other, **close)


@pytest.mark.parametrize("conv1d", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("niter", [0, 1, 4, 16])
def test_pissa_with_iterations_bit_for_bit(niter, dtype, conv1d):
    for shape, rslora in itertools.product(SHAPES.values(), (False, True)):
        model, scale = layer(shape, dtype, conv1d), scale_of(RANK, ALPHA, rslora)
        torch.manual_seed(6)
        their_A, their_B, base = theirs(model, f"pissa_niter_{niter}", rslora)
        state = torch.get_rng_state()
        torch.manual_seed(6)
        W = oriented_weight(model[0]).detach()
        A, B = pissa_factors(W, RANK, scale, niter=niter)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(A.to(dtype).float(), their_A)
        assert torch.equal(B.to(dtype).float(), their_B)
        torch.testing.assert_close((W.float() - scale * B @ A).to(dtype), base, rtol=unit(dtype), atol=unit(dtype) / 10)


@pytest.mark.parametrize("name", ["pissa", "olora"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_half_precision_base_is_met_to_one_rounding(name, dtype):
    """PEFT rounds A and B after it has formed the residual; then base + s·BA misses W by more."""
    model, scale = layer((96, 64), dtype), scale_of(RANK, ALPHA)
    W = weight_of(model).double()
    their_A, their_B, base = (part.double() for part in theirs(model, name))
    A, B = FROM_WEIGHT[name](weight_of(model), RANK, scale)
    residual = (W - scale * B.double() @ A.double()).to(dtype).double()
    ours = residual + scale * B.double() @ A.double() - W
    assert ours.norm() < 0.9 * (base + scale * their_B @ their_A - W).norm()
    assert (ours.abs() <= residual.abs() * torch.finfo(dtype).eps / 2 + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.3, 2.5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_pissa_takes_the_best_approximation_whatever_the_scale(shape, scale, dtype):
    W = weight_of(layer(shape, dtype))
    A, B = pissa_factors(W, RANK, scale)
    S = torch.linalg.svdvals(W.double())
    left = torch.linalg.svdvals((W - scale * B @ A).double())[: len(S) - RANK]
    torch.testing.assert_close(left, S[RANK:], rtol=1e-4, atol=1e-5 if dtype == torch.float32 else 1e-10)
    # Both factors carry the same share: A Aᵀ = BᵀB = S / s.
    for square in (A @ A.T, B.T @ B):
        torch.testing.assert_close(square.double(), (S[:RANK] / scale).diag(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 20])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_olora_is_the_first_part_of_the_qr(shape, rank, dtype):
    W = weight_of(layer(shape, dtype))
    A, B = olora_factors(W, rank, 2.5)
    Q, R = torch.linalg.qr(W.double())
    close = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(B.double(), Q[:, :rank], **close)
    torch.testing.assert_close(A.double(), R[:rank], **close)
    assert torch.equal(A[:, :rank], A[:, :rank].triu())
    torch.testing.assert_close(B.T @ B, torch.eye(rank, dtype=dtype), **close)
    torch.testing.assert_close((B @ A)[:, :rank], W[:, :rank], **close)  # a QR reproduces the columns it has seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 20])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_mica_writes_where_the_weight_does_least(shape, rank, dtype):
    W = weight_of(layer(shape, dtype))
    A, B = mica_factors(W, rank, 2.5)
    assert not A.any()
    assert A.shape == (rank, shape[1])
    torch.testing.assert_close(B.T @ B, torch.eye(rank, dtype=dtype), rtol=0, atol=1e-5)
    sizes, S = torch.linalg.vector_norm(W.T @ B, dim=0), torch.linalg.svdvals(W.double())
    torch.testing.assert_close(sizes.double(), S[-rank:], rtol=1e-3, atol=1e-5)


def test_random_inits_keep_their_equations():
    weight, rank = torch.empty(300, 500, device="meta"), 16  # only the shape is read
    torch.manual_seed(1)
    A, B = default_factors(weight.to("meta"), rank)
    assert not B.any()
    assert A.abs().max() <= 500**-0.5
    assert A.std().item() == pytest.approx((3 * 500) ** -0.5, rel=0.02)
    A, B = gaussian_factors(weight, rank)
    assert not B.any()
    assert A.std().item() == pytest.approx(1 / rank, rel=0.02)
    A, B = random_factors(weight, rank)
    assert B.std().item() == pytest.approx((3 * rank) ** -0.5, rel=0.02)
    A, B = orthogonal_factors(weight, rank)
    assert (B @ A).abs().max() < 1e-6
    assert torch.linalg.matrix_rank(A) == torch.linalg.matrix_rank(B) == rank // 2
    assert (A.shape, B.shape) == ((rank, 500), (300, rank))


@pytest.mark.parametrize("name", EVERY)
def test_the_weight_is_left_alone(name):
    weight = nn.Parameter(weight_of(layer((40, 30))))
    before = weight.detach().clone()
    A, B = EVERY[name](weight, RANK, 2.5)
    assert torch.equal(weight, before)
    assert not A.requires_grad
    assert not B.requires_grad
    for factor in (A, B):
        factor += 1  # no view of the weight
    assert torch.equal(weight, before)


@pytest.mark.parametrize("name", ["pissa", "olora", "mica"])
def test_no_random_number_is_drawn(name):
    state = torch.get_rng_state()
    EVERY[name](weight_of(layer((330, 250))), RANK, 2.5)
    assert torch.equal(torch.get_rng_state(), state)


W = torch.ones(6, 5)
BAD_CALLS = {
    "rank 0": (lambda f: f(W, 0, 1.0), ValueError, "1 to min.* = 5, got 0"),
    "rank above the limit": (lambda f: f(W, 6, 1.0), ValueError, "= 5, got 6"),
    "bool": (lambda f: f(W, True, 1.0), ValueError, "got True"),
    "vector": (lambda f: f(W[0], 2, 1.0), ValueError, r"\(5,\)"),
    "whole numbers": (lambda f: f(W.int(), 2, 1.0), TypeError, "int32"),
    "no tensor": (lambda f: f(W.tolist(), 2, 1.0), TypeError, "list"),
}
BAD_WEIGHTS = {
    "NaN": (lambda f: f(W * math.nan, 2, 1.0), ValueError, "30 entries"),
    "meta": (lambda f: f(W.to("meta"), 2, 1.0), ValueError, "meta"),
    "scale 0": (lambda f: f(W, 2, 0.0), ValueError, r"scale .*0\.0"),
    "scale NaN": (lambda f: f(W, 2, math.nan), ValueError, "scale .*nan"),
}
BAD = [(name, call) for name, call in itertools.product(EVERY, BAD_CALLS.values())]
BAD += [(name, call) for name, call in itertools.product(FROM_WEIGHT, BAD_WEIGHTS.values())]
BAD += [("orthogonal", (lambda f: f(W, 3, 1.0), ValueError, "even, got 3"))]
BAD += [
    ("pissa", (lambda f, n=n: f(W, 2, 1.0, niter=n), ValueError, f"niter .*{n!r}"))
    for n in (-1, 1.5, True, "4", math.inf)
]


@pytest.mark.parametrize(("name", "call"), BAD, ids=str)
def test_refused_before_anything_is_drawn(name, call):
    bad, error, message = call
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        bad(EVERY[name])
    assert torch.equal(torch.get_rng_state(), state)
