"""spectrum, the questions about directions: principal angles, subspace similarity, amplification."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lora_lab import spectrum


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def rotation(n: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def test_principal_angles_of_known_planes():
    identity = torch.eye(6).double()
    tilt = torch.tensor([1e-9, 0.3, 1.2], dtype=torch.float64)
    second = torch.diag(tilt.cos()) @ identity[:3] + torch.diag(tilt.sin()) @ identity[3:]
    turn = rotation(6)
    for mix in (torch.eye(3).double(), random(3, 3)):  # another basis of the same space
        assert_close(spectrum.principal_angles(identity[:3] @ turn, mix @ second @ turn), tilt, rtol=1e-5, atol=1e-15)
    assert_close(spectrum.principal_angles(identity[:2], identity[2:]), torch.full((2,), math.pi / 2).double())
    inside = spectrum.principal_angles(random(2, 5) @ random(5, 9, seed=3), random(5, 9, seed=3))
    assert inside.shape == (2,)
    assert inside.max() < 1e-12


def test_principal_angles_do_not_care_about_order_and_agree_with_similarity():
    A1, A2 = random(3, 10), random(5, 10, seed=1)
    angles = spectrum.principal_angles(A1, A2)
    assert_close(angles, spectrum.principal_angles(A2, A1))
    assert (angles.diff() >= 0).all()
    assert_close(spectrum.subspace_similarity(A1, A2, 3, 5), angles.cos().square().mean().item())
    numpy = np.linalg.svd(np.linalg.qr(A1.T.numpy())[0].T @ np.linalg.qr(A2.T.numpy())[0], compute_uv=False)
    assert_close(angles.cos().numpy(), numpy)


def test_subspace_similarity_of_known_directions():
    """A = diag(s) V: its right singular vectors are the rows of V, in the order of s."""
    V, s = rotation(7), torch.tensor([4.0, 3.0, 2.0, 1.0]).double()
    A1, A2 = s[:, None] * V[:4], s[:, None] * V[[0, 5, 1, 6]]
    assert_close(spectrum.subspace_similarity(A1, A1, 3, 3), 1.0)
    assert_close(spectrum.subspace_similarity(A1, A2, 1, 1), 1.0)
    assert_close(spectrum.subspace_similarity(A1, A2, 2, 2), 0.5)
    assert_close(spectrum.subspace_similarity(A1, A2, 2, 3), 1.0)
    assert_close(spectrum.subspace_similarity(A1, A2, 4, 4), 0.5)
    assert_close(spectrum.subspace_similarity(V[4:6], A2, 1, 1), 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_grid_is_every_similarity_at_once(dtype):
    A1, A2 = random(3, 10, dtype=dtype), random(5, 10, seed=1)
    grid = spectrum.similarity_grid(A1, A2)
    U1, U2 = (np.linalg.svd(A.double().numpy())[2].T for A in (A1, A2))
    assert grid.shape == (3, 5)
    for i in range(1, 4):
        for j in range(1, 6):
            paper = np.linalg.norm(U1[:, :i].T @ U2[:, :j]) ** 2 / min(i, j)
            assert_close(grid[i - 1, j - 1].item(), paper, rtol=1e-5, atol=1e-6)
            assert_close(spectrum.subspace_similarity(A1, A2, i, j), paper, rtol=1e-5, atol=1e-6)
    assert_close(spectrum.similarity_grid(A2, A1), grid.T, check_dtype=False)


def test_random_subspaces_share_what_chance_gives():
    i, j, inputs = 3, 8, 40
    found = [
        spectrum.subspace_similarity(random(i, inputs, seed=2 * seed), random(j, inputs, seed=2 * seed + 1), i, j)
        for seed in range(300)
    ]
    assert np.mean(found) == pytest.approx(max(i, j) / inputs, rel=0.05)


def test_directions_beyond_the_rank_do_not_exist():
    A1 = random(4, 2) @ random(2, 9, seed=1)  # four rows, rank 2
    A2 = random(5, 9, seed=2)
    assert spectrum.similarity_grid(A1, A2).shape == (2, 5)
    assert spectrum.principal_angles(A1, A2).shape == (2,)
    with pytest.raises(ValueError, match="i 3 is outside 1 to 2"):
        spectrum.subspace_similarity(A1, A2, 3, 1)
    with pytest.raises(ValueError, match="A2 is zero"):
        spectrum.similarity_grid(A1, torch.zeros(3, 9).double())


def test_amplification_of_known_updates():
    U, V = rotation(8), rotation(5, 3)
    W = U[:, :5] @ torch.diag(torch.tensor([10.0, 8.0, 0.5, 0.25, 0.0]).double()) @ V.T
    strong = 6 * U[:, :1] @ V[:, :1].T  # along W's first direction
    weak = 6 * U[:, 2:3] @ V[:, 2:3].T
    absent = 6 * U[:, 6:7] @ V[:, 4:5].T
    assert_close(spectrum.amplification_factor(strong, W, 1), 0.6)
    assert_close(spectrum.amplification_factor(weak, W, 1), 12.0)
    assert spectrum.amplification_factor(absent, W, 1) > 1e12
    assert spectrum.amplification_factor(strong, torch.zeros(8, 5), 1) == math.inf
    delta, W = random(7, 12), random(7, 12, seed=1)
    u, _, vh = np.linalg.svd(delta.numpy())
    for rank in (1, 3, 7):
        paper = np.linalg.norm(delta) / np.linalg.norm(u[:, :rank].T @ W.numpy() @ vh[:rank].T)
        assert_close(spectrum.amplification_factor(delta, W.float(), rank), paper, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="rank 2 is outside 1 to 1"):
        spectrum.amplification_factor(strong, U[:, :5], 2)
    with pytest.raises(ValueError, match="differ in shape"):
        spectrum.amplification_factor(delta, W.T, 1)


def test_similarity_carries_no_gradients_and_wants_equal_inputs():
    W = random(4, 6).requires_grad_()
    assert not spectrum.similarity_grid(W, W).requires_grad
    with pytest.raises(ValueError, match="differ in their number of inputs"):
        spectrum.similarity_grid(W, W.T)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_answers_on_a_gpu_are_those_of_the_cpu():
    W, V = random(12, 7), random(5, 7, seed=1)
    assert spectrum.truncate(W.cuda(), 3).is_cuda
    assert_close(spectrum.truncate(W.cuda(), 3).cpu(), spectrum.truncate(W, 3))
    assert_close(spectrum.similarity_grid(W.cuda(), V).cpu(), spectrum.similarity_grid(W, V))
    assert_close(spectrum.principal_angles(W.cuda(), V.cuda()).cpu(), spectrum.principal_angles(W, V))
    s = spectrum.singular_values(W.cuda())
    assert_close(spectrum.effective_rank(s), spectrum.effective_rank(s.cpu()))
    assert spectrum.random_low_rank(4, 6, 2, torch.Generator("cuda").manual_seed(0)).is_cuda
