"""spectrum of s·BA from its factors, and what chance gives: against dense matrices and against random draws."""

import math

import numpy as np
import pytest
import torch
from adapters_for_tests import random
from torch.testing import assert_close

from lora_lab import spectrum

SHAPES = {"tall": (20, 12, 3), "wide": (12, 20, 3), "square": (9, 9, 9), "rank 1": (7, 5, 1), "more rank": (6, 8, 15)}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def pair(out: int, in_: int, rank: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return random(rank, in_, seed=1, dtype=dtype), random(out, rank, seed=2, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_singular_values_of_factors_are_those_of_the_product(sizes, dtype):
    out, in_, _ = sizes
    A, B = pair(*sizes, dtype)
    dense = torch.linalg.svdvals(-2.5 * B.double() @ A.double())
    k = min(sizes)
    found = spectrum.factor_singular_values(A, B, -2.5)
    assert found.shape == (k,)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close = 50 * torch.finfo(found.dtype).eps * dense[0].item()
    assert_close(found.double(), dense[:k], rtol=0, atol=close)
    assert dense[k:].sum() < 1e-12 * dense[0]  # and no others
    assert spectrum.factor_norm(A, B, -2.5) == pytest.approx(dense.norm().item(), rel=1e-5)
    U, s, Vh = (x.double() for x in spectrum.factor_svd(A, B, -2.5))
    assert (U.shape, s.shape, Vh.shape) == ((out, k), (k,), (k, in_))
    assert_close(s, dense[:k], rtol=0, atol=close)
    assert_close((U * s) @ Vh, -2.5 * B.double() @ A.double(), rtol=0, atol=close)
    for turned in (U.T @ U, Vh @ Vh.T):
        assert_close(turned, torch.eye(k).double(), rtol=0, atol=50 * torch.finfo(found.dtype).eps)


def test_factors_of_a_matrix_too_large_to_form():
    """Dense, this update would take 320 GB."""
    A, B = torch.zeros(2, 200_000), torch.zeros(400_000, 2)
    A[0, 7], A[1, 100_000], B[3, 0], B[300_000, 1] = 3, 2, 5, 10
    assert_close(spectrum.factor_singular_values(A, B, 0.5), torch.tensor([10, 7.5]))
    assert spectrum.factor_norm(A, B, 0.5) == pytest.approx(12.5)
    U, _, Vh = spectrum.factor_svd(A, B, 0.5)
    assert U[300_000, 0].abs() == Vh[0, 100_000].abs() == 1


def test_dependent_factors_have_zero_singular_values():
    A, B = pair(20, 12, 2)
    both = spectrum.factor_singular_values(torch.cat([A, A]), torch.cat([B, -B], dim=1))
    assert both.shape == (4,)
    assert both.max() < 1e-12
    assert_close(spectrum.factor_singular_values(A, B, 0.0), torch.zeros(2).double())


def test_factors_carry_no_gradients():
    A, B = (x.requires_grad_() for x in pair(20, 12, 3))
    assert not any(x.requires_grad for x in (*spectrum.factor_svd(A, B), spectrum.factor_singular_values(A, B)))


def test_random_similarity_is_what_random_subspaces_have():
    inputs = 24
    sums = torch.zeros(4, 7).double()
    for seed in range(1000):
        first, second = (random(r, inputs, seed=2 * seed + n, dtype=torch.float64) for n, r in enumerate((4, 7)))
        sums += spectrum.similarity_grid(first, second)
    baseline = spectrum.random_similarity_grid(inputs, 4, 7)
    assert_close(sums / 1000, baseline.double(), rtol=0.1, atol=0)
    for i in range(1, 5):
        for j in range(1, 8):
            assert spectrum.random_similarity(inputs, i, j) == pytest.approx(baseline[i - 1, j - 1].item())
    assert spectrum.random_similarity(24, 24, 3) == 1  # the whole space holds every other


def test_projections_are_a_row_of_the_papers_table():
    delta, W = random(7, 12, dtype=torch.float64), random(7, 12, seed=1, dtype=torch.float64)
    u, _, vh = np.linalg.svd(delta.numpy())
    values = np.linalg.svd(W.numpy(), compute_uv=False)
    for rank in (1, 3, 7):
        found = spectrum.projections(delta, W, rank)
        onto_delta = np.linalg.norm(u[:, :rank].T @ W.numpy() @ vh[:rank].T)
        assert found.onto_delta == pytest.approx(onto_delta)
        assert found.onto_weight == pytest.approx(np.linalg.norm(values[:rank]))
        assert found.delta == pytest.approx(np.linalg.norm(delta))
        assert found.weight == pytest.approx(np.linalg.norm(W))
        assert spectrum.amplification_factor(delta, W, rank) == pytest.approx(found.delta / found.onto_delta)
        squares = []
        for seed in range(500):
            left, right = (torch.linalg.qr(random(n, rank, seed=n * seed, dtype=W.dtype)).Q for n in (7, 12))
            squares.append((left.T @ W @ right).square().sum().item())
        assert found.onto_random == pytest.approx(math.sqrt(np.mean(squares)), rel=0.1)


def test_bad_factors_and_sizes_are_refused():
    A, B = pair(20, 12, 3)
    for ask in (spectrum.factor_svd, spectrum.factor_singular_values, spectrum.factor_norm):
        with pytest.raises(ValueError, match=r"A \(3, 12\) and B \(20, 2\) are not"):
            ask(A, B[:, :2])
        with pytest.raises(ValueError, match="B has 60 entries that are NaN"):
            ask(A, B * math.nan)
        with pytest.raises(ValueError, match="A must be a matrix"):
            ask(A[0], B)
        with pytest.raises(ValueError, match=r"A .* is on the meta device"):
            ask(A.to("meta"), B)
        for scale in (math.nan, math.inf, None, True):
            with pytest.raises(ValueError, match=f"scale must be a finite number, got {scale}"):
                ask(A, B, scale)
    for call, message in {
        (0, 1, 1): "inputs 0 is outside 1",
        (9, 0, 1): "i 0 is outside 1 to 9",
        (9, 2, 10): "j 10 is outside 1 to 9",
    }.items():
        with pytest.raises(ValueError, match=message):
            spectrum.random_similarity(*call)
        with pytest.raises(ValueError, match=message):
            spectrum.random_similarity_grid(*call)
    with pytest.raises(TypeError, match="rank must be a whole number, got True"):
        spectrum.truncate(A, True)
    with pytest.raises(ValueError, match="rank 4 is outside 1 to 3"):
        spectrum.projections(B @ A, random(20, 12), 4)
    with pytest.raises(ValueError, match="differ in shape"):
        spectrum.projections(B @ A, random(12, 20), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_factors_on_a_gpu():
    A, B = pair(20, 12, 3)
    assert spectrum.factor_singular_values(A.cuda(), B.cuda()).is_cuda
    assert_close(spectrum.factor_singular_values(A.cuda(), B.cuda()).cpu(), spectrum.factor_singular_values(A, B))
    assert spectrum.factor_norm(A.cuda(), B.cuda()) == pytest.approx(spectrum.factor_norm(A, B))
