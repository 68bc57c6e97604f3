"""A few singular triplets by block Lanczos: those of the full SVD, always the same, or None where that pays more."""

import pytest
import torch
from models_for_tests import DTYPES
from torch import Tensor

from lora_lab.lanczos import largest_triplets, top_svd
from lora_lab.spectrum import principal_angles

SHAPES = {"square": (500, 500), "tall": (700, 520), "wide": (520, 900)}
RANK = 10


def matrix(out: int, in_: int, power: float, dtype=torch.float32) -> Tensor:
    """Singular values i^-power."""
    generator = torch.Generator().manual_seed(out)
    k = min(out, in_)
    U, V = (torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64)).Q for n in (out, in_))
    return (U * torch.arange(1, k + 1) ** -power @ V.T).to(dtype)


def of(W: Tensor, rank: int, **more):
    return largest_triplets(lambda X: X @ W.T, lambda Y: Y @ W, tuple(W.shape), rank, W, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_triplets_are_those_of_the_full_svd(shape, power, dtype):
    W = matrix(*shape, power, dtype)
    before = torch.get_rng_state()
    U, S, Vh = of(W, RANK)
    assert torch.equal(torch.get_rng_state(), before)
    assert U.dtype == S.dtype == Vh.dtype == dtype
    true_U, true_S, true_Vh = torch.linalg.svd(W.double(), full_matrices=False)
    rounding = 20 * torch.finfo(dtype).eps
    small = max(10 * rounding, (rounding * true_S[0] / (true_S[RANK - 1] - true_S[RANK])).item())
    torch.testing.assert_close(S.double(), true_S[:RANK], rtol=0, atol=rounding)
    assert principal_angles(U.T, true_U[:, :RANK].T).max() < small
    assert principal_angles(Vh, true_Vh[:RANK]).max() < small
    # Each one for itself, and the pairs with matching signs.
    assert (1 - (U.double() * true_U[:, :RANK]).sum(0).abs()).max() < small
    torch.testing.assert_close(U * S, W @ Vh.T, rtol=0, atol=rounding)
    assert all(torch.equal(a, b) for a, b in zip((U, S, Vh), of(W, RANK), strict=True))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_the_tolerance_bounds_the_angle(tolerance):
    W = matrix(*SHAPES["square"], 0.5)
    true = torch.linalg.svd(W.double()).Vh[:RANK]
    assert principal_angles(of(W, RANK, tolerance=tolerance)[2], true).max() < tolerance


@pytest.mark.parametrize("true_rank", [0, 5, RANK, 40])
def test_a_map_of_lower_rank(true_rank):
    """What is beyond the rank is zero, the directions stay orthonormal."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(n, true_rank, generator=generator) for n in (300, 260))
    U, S, Vh = of(left @ right.T, RANK)
    kept = min(RANK, true_rank)
    torch.testing.assert_close(S[:kept], torch.linalg.svdvals(left @ right.T)[:kept], rtol=1e-5, atol=0)
    assert (S[kept:] <= 1e-5 * S[:1].clamp(min=1e-30)).all()
    for vectors in (U.T, Vh):
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(RANK), rtol=0, atol=1e-5)


def test_equal_singular_values():
    """No gap behind the last one wanted: any directions of the group are right, and a small residual says so."""
    Q = torch.linalg.qr(torch.randn(300, 300, generator=torch.Generator().manual_seed(1))).Q
    size = torch.cat([torch.full((20,), 5.0), 1 / torch.arange(2, 282)])
    W = Q * size @ Q.T
    U, S, Vh = of(W, RANK)
    torch.testing.assert_close(S, torch.full((RANK,), 5.0))
    torch.testing.assert_close(W.T @ U, 5 * Vh.T, rtol=0, atol=1e-4)


def test_a_map_that_is_no_matrix():
    """W C, with W and C applied one after the other."""
    W, C = matrix(300, 260, 1.0), matrix(260, 260, 0.5)
    U, S, _ = largest_triplets(lambda X: X @ C.T @ W.T, lambda Y: Y @ W @ C, (300, 260), RANK, W)
    true_U, true_S, _ = torch.linalg.svd((W @ C).double(), full_matrices=False)
    torch.testing.assert_close(S.double(), true_S[:RANK], rtol=1e-5, atol=0)
    assert principal_angles(U.T, true_U[:, :RANK].T).max() < 2e-5


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_where_it_does_not_pay(dtype):
    """A small matrix, and one of which half of all directions would be needed: then by the full SVD."""
    small, flat = matrix(40, 30, 1.0, dtype), torch.eye(120, dtype=dtype) + 1e-3 * matrix(120, 120, 0.0, dtype)
    for W in (small, flat):
        assert of(W, RANK) is None
        U, S, Vh = top_svd(W, RANK)
        torch.testing.assert_close(S, torch.linalg.svdvals(W)[:RANK])
        torch.testing.assert_close(U * S, W @ Vh.T)
    W = matrix(*SHAPES["wide"], 1.0, dtype)
    assert all(torch.equal(a, b) for a, b in zip(top_svd(W, RANK), of(W, RANK), strict=True))
