"""spectrum, the questions about size, and ΔW: against torch.linalg, numpy, and cases with a known answer."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lora_lab import spectrum
from lora_lab.inject import inject

SHAPES = [(12, 7), (7, 12), (9, 9), (1, 6), (6, 1)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def rotation(n: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def with_spectrum(values: list[float], rows: int, cols: int) -> torch.Tensor:
    """A matrix whose singular values are known."""
    k = len(values)
    return rotation(rows, 1)[:, :k] @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ rotation(cols, 2)[:, :k].T


# --- rank and truncation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_and_singular_values_are_those_of_torch(shape, dtype):
    for rank in range(min(shape) + 1):
        W = (random(shape[0], rank, seed=rank) @ random(rank, shape[1], seed=9)).to(dtype)
        assert spectrum.numerical_rank(W) == torch.linalg.matrix_rank(W) == rank
        assert spectrum.numerical_rank(W, rtol=1e-2) == torch.linalg.matrix_rank(W, rtol=1e-2)
        assert_close(spectrum.singular_values(W), torch.linalg.svdvals(W))


def test_rtol_sets_what_counts():
    W = with_spectrum([4.0, 1.0, 0.1], 8, 5)
    assert [spectrum.numerical_rank(W, rtol) for rtol in (0.0, 0.02, 0.03, 0.2, 0.3)][1:] == [3, 2, 2, 1]
    assert spectrum.numerical_rank(torch.zeros(4, 6)) == 0


def test_the_default_tolerance_grows_with_the_longer_side():
    W = torch.zeros(1000, 3, dtype=torch.float64)
    W[0, 0], W[1, 1] = 1, 1e-13  # below 1000 rounding units, above 3
    for matrix in (W, W.T):
        assert spectrum.numerical_rank(matrix) == torch.linalg.matrix_rank(matrix) == 1
    assert spectrum.numerical_rank(W[:3]) == 2


def test_rounding_to_half_precision_is_a_full_rank_change():
    W = spectrum.random_low_rank(40, 60, 3, generator())
    assert spectrum.numerical_rank(W) == 3
    assert spectrum.numerical_rank(W.bfloat16()) == 40
    assert spectrum.numerical_rank(W.bfloat16(), rtol=1e-2) == 3


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_random_low_rank_has_exactly_that_rank(rows, cols):
    for rank in range(min(rows, cols) + 1):
        W = spectrum.random_low_rank(rows, cols, rank, generator(rank))
        assert W.shape == (rows, cols)
        assert torch.linalg.matrix_rank(W) == rank
        assert torch.equal(W, spectrum.random_low_rank(rows, cols, rank, generator(rank)))


def test_random_low_rank_has_entries_of_variance_one_at_any_rank():
    for rank in (1, 4, 30):
        samples = torch.stack([spectrum.random_low_rank(30, 50, rank, generator(seed)) for seed in range(200)])
        assert samples.square().mean().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_matrix_of_that_rank_is_nearer_than_the_truncation(shape, dtype):
    W = random(*shape, dtype=dtype)
    before = W.clone()
    for rank in range(min(shape) + 1):
        cut = spectrum.truncate(W, rank)
        assert (cut.dtype, cut.shape) == (W.dtype, W.shape)
        error = torch.linalg.matrix_norm(W.double() - cut.double())
        assert_close(spectrum.truncation_error(spectrum.singular_values(W), rank), error.item(), rtol=3e-2, atol=3e-2)
        wide = spectrum.truncate(W.double(), rank)
        assert torch.linalg.matrix_rank(wide) == rank
        best = torch.linalg.matrix_norm(W.double() - wide)
        for seed in range(20):  # the truncation moved a little inside the set of matrices of that rank, and random ones
            L, R = random(shape[0], rank, seed=seed), random(rank, shape[1], seed=seed + 50)
            near = (torch.eye(shape[0]).double() + 0.05 * random(shape[0], shape[0], seed=seed)) @ wide
            for other in (L @ R, L @ torch.linalg.lstsq(L, W.double()).solution if rank else L @ R, near):
                assert torch.linalg.matrix_norm(W.double() - other) >= best - 1e-12
    assert torch.equal(W, before)


def test_truncation_against_known_cases():
    W = random(6, 9)
    assert torch.equal(spectrum.truncate(W, 6), W)
    assert spectrum.truncate(W, 6) is not W
    assert torch.equal(spectrum.truncate(W, 0), torch.zeros(6, 9).double())
    assert_close(spectrum.truncate(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2), torch.diag(torch.tensor([0.0, 3, 2])))
    values = [5.0, 4.0, 3.0, 1.0]
    W = with_spectrum(values, 10, 6)
    assert_close(spectrum.truncation_error(values, 2), math.sqrt(10))
    assert spectrum.truncation_error(values, 4) == 0
    assert_close(spectrum.truncation_error(values, 0), torch.linalg.matrix_norm(W).item())
    assert_close(torch.linalg.matrix_norm(W - spectrum.truncate(W, 2), 2).item(), 3.0)  # spectral norm: the next value


# --- one number for a spectrum -------------------------------------------------------------------------------------


def test_ranks_of_flat_single_and_empty_spectra():
    for n in (1, 2, 9):
        assert_close(spectrum.effective_rank(torch.full((n,), 0.3)), float(n), atol=1e-6, rtol=0)
        assert_close(spectrum.stable_rank(torch.full((n,), 0.3)), float(n), atol=1e-6, rtol=0)
    for one in ([7.0], [7.0, 0.0, 0.0]):
        assert spectrum.effective_rank(one) == spectrum.stable_rank(one) == 1
    zero = torch.zeros(4)
    assert spectrum.effective_rank(zero) == spectrum.stable_rank(zero) == 0
    assert spectrum.energy(zero, 0) == 1
    assert spectrum.energy_rank(zero, 1.0) == 0
    assert spectrum.truncation_error(zero, 0) == 0


def test_ranks_follow_their_definitions_at_any_size_and_order():
    s = np.array([3.0, 0.5, 0.0, 1.5])
    p = s[s > 0] / s.sum()
    for factor in (1e-200, 1.0, 1e150):
        assert_close(spectrum.effective_rank(s * factor), float(np.exp(-(p * np.log(p)).sum())))
        assert_close(spectrum.stable_rank(s * factor), float((s**2).sum() / 9))
        assert_close(spectrum.energy(s * factor, 2), (9 + 2.25) / (9 + 2.25 + 0.25))
    assert_close(spectrum.truncation_error(s, 1), math.sqrt(2.25 + 0.25))


@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_are_ordered_and_do_not_see_rotation_or_scale(shape):
    W = random(*shape)
    s = spectrum.singular_values(W)
    turned = spectrum.singular_values(4 * rotation(shape[0]) @ W @ rotation(shape[1], 5))
    for rank in (spectrum.effective_rank, spectrum.stable_rank):
        assert 1 <= rank(s) <= min(shape) + 1e-9
        assert_close(rank(turned), rank(s))
    assert spectrum.stable_rank(s) <= spectrum.effective_rank(s) + 1e-9
    assert_close(spectrum.stable_rank(s), (torch.linalg.matrix_norm(W) / torch.linalg.matrix_norm(W, 2)).item() ** 2)


def test_energy_and_energy_rank_answer_each_other():
    s = spectrum.singular_values(random(12, 20))
    total = torch.linalg.matrix_norm(random(12, 20)).item() ** 2
    for rank in range(13):
        kept = torch.linalg.matrix_norm(spectrum.truncate(random(12, 20), rank)).item() ** 2
        assert_close(spectrum.energy(s, rank), kept / total)
        assert spectrum.energy_rank(s, spectrum.energy(s, rank)) == rank
    for share in (0.0, 0.1, 0.5, 0.9, 0.999, 1.0):
        rank = spectrum.energy_rank(s, share)
        assert spectrum.energy(s, rank) >= share
        assert rank == 0 or spectrum.energy(s, rank - 1) < share
    assert spectrum.energy_rank([4.0, 0.0, 3.0], 0.64) == 1  # 16 of 25, in any order
    assert spectrum.energy_rank([4.0, 0.0, 3.0], 1.0) == 2


# --- updates of a model --------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, conv=None):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 9)
        self.blocks = nn.ModuleList([nn.Linear(9, 4, bias=False)])
        if conv is not None:
            self.conv = conv


def test_delta_weights_are_the_changes_of_the_linear_layers():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    before = Small(pytorch_utils.Conv1D(4, 4)).bfloat16()  # square: only the type tells the orientation
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.add_(torch.randn_like(parameter))
    state = {name: value.clone() for name, value in before.state_dict().items()}
    for old in (before, state):
        deltas = spectrum.delta_weights(old, after)
        assert sorted(deltas) == ["blocks.0", "conv", "up"]
        assert all(delta.dtype == torch.float32 and not delta.requires_grad for delta in deltas.values())
        assert_close(deltas["up"], (after.up.weight.double() - before.up.weight.double()).float().detach())
        assert_close(deltas["conv"], (after.conv.weight.float() - before.conv.weight.float()).T.detach())
    assert spectrum.delta_weights(nn.Linear(3, 2), nn.Linear(3, 2))[""].shape == (2, 3)


def test_delta_weights_refuse_another_model():
    before = Small()
    with pytest.raises(ValueError, match=r"'up\.base\.weight'.*adapter"):
        spectrum.delta_weights(before, inject(copy.deepcopy(before), ["up"], rank=2, alpha=3))
    other = copy.deepcopy(before)
    other.up = nn.Linear(6, 10)
    with pytest.raises(ValueError, match=r"up\.weight: \(9, 6\) before, \(10, 6\) after"):
        spectrum.delta_weights(before, other)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3), r"W must be a matrix .* got \(3,\)"),
        (torch.zeros(2, 3, 4), r"got \(2, 3, 4\)"),
        (torch.zeros(0, 4), r"got \(0, 4\)"),
        (torch.ones(2, 2, dtype=torch.int64), r"got \(2, 2\) of torch.int64"),
        ([[1.0]], "got list"),
        (torch.tensor([[1.0, math.nan], [math.inf, 0.0]]), "W has 2 entries that are NaN or infinite"),
    ],
)
def test_what_is_no_matrix_is_refused(bad, message):
    for ask in (spectrum.singular_values, spectrum.numerical_rank, lambda W: spectrum.truncate(W, 1)):
        with pytest.raises(ValueError, match=message):
            ask(bad)


def test_what_is_outside_its_limits_is_refused():
    W = random(4, 6)
    for rank in (-1, 5):
        for ask in (
            lambda r: spectrum.truncate(W, r),
            lambda r: spectrum.random_low_rank(4, 6, r),
            lambda r: spectrum.truncation_error(torch.ones(4), r),
            lambda r: spectrum.energy(torch.ones(4), r),
        ):
            with pytest.raises(ValueError, match=f"rank {rank} is outside 0 to 4"):
                ask(rank)
    with pytest.raises(TypeError):
        spectrum.truncate(W, 1.5)
    for values in ([], [[1.0]], [1.0, -1.0], [math.nan]):
        with pytest.raises(ValueError, match="singular values"):
            spectrum.effective_rank(values)
    with pytest.raises(ValueError, match=r"share 1\.5"):
        spectrum.energy_rank([1.0], 1.5)
    with pytest.raises(ValueError, match="rtol -1"):
        spectrum.numerical_rank(W, rtol=-1)


def test_nothing_carries_gradients():
    W = random(4, 6).requires_grad_()
    assert not spectrum.truncate(W, 2).requires_grad
    assert not spectrum.truncate(W, 4).requires_grad
    assert spectrum.effective_rank(torch.linalg.svdvals(W)) > 1
