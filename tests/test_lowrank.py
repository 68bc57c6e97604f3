"""A few singular vectors against the full SVD in fp64: their span, their product, their order, and what may not change.

Also without a gap in the spectrum, where vectors are not unique: the product then still is the nearest of its rank.
"""

import pytest
import torch
from torch import Tensor

from lora_lab import lowrank
from lora_lab.chebyshev import angle_bounds, leading_block
from lora_lab.krylov import appended, lanczos_block
from lora_lab.lowrank import bottom_left, top_of_map, top_svd
from lora_lab.spectrum import principal_angles

RANK = 4
SHAPES = {"square": (320, 320), "tall": (640, 240), "wide": (240, 640), "nearly square": (300, 330)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(out: int, in_: int, seed: int = 0) -> Tensor:
    return torch.randn(out, in_, generator=generator(seed), dtype=torch.float64)


def with_values(s: Tensor, out: int, in_: int) -> Tensor:
    """A matrix (out, in) in fp64 with these singular values and random singular vectors."""
    U, V = (torch.linalg.qr(normal(n, len(s), seed=n)).Q for n in (out, in_))
    return U * s @ V.T


def falling(out: int, in_: int, power: float) -> Tensor:
    return with_values(torch.arange(1, min(out, in_) + 1, dtype=torch.float64) ** -power, out, in_)


def clustered(out: int, in_: int) -> Tensor:
    """2, then three times 1, then pairs that fall."""
    k = min(out, in_)
    pairs = torch.arange(1, k, dtype=torch.float64).pow(-0.5).repeat_interleave(2)[: k - 4]
    return with_values(torch.cat([torch.tensor([2.0, 1, 1, 1], dtype=torch.float64), 0.8 * pairs]), out, in_)


def trained(out: int, in_: int) -> Tensor:
    """Noise, and above it a few strong directions."""
    strong = torch.arange(1, 17, dtype=torch.float64) ** -0.5
    return normal(out, in_) / (out**0.5 + in_**0.5) + 4 * with_values(strong, out, in_)


MATRICES = {
    "1/√i": lambda out, in_: falling(out, in_, 0.5),
    "1/i": lambda out, in_: falling(out, in_, 1.0),
    "trained": trained,
    "flat": normal,
}


def svd64(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(W.double(), full_matrices=False)


def angle(found: Tensor, true: Tensor) -> float:
    """The largest angle between the column spaces of two (n, r)."""
    return principal_angles(found.double().T, true.double().T).max().item()


def product(svd: tuple[Tensor, Tensor, Tensor], rank: int) -> Tensor:
    U, S, Vh = svd
    return U[:, :rank] * S[:rank] @ Vh[:rank]


def relative(found: Tensor, true: Tensor) -> float:
    return ((found.double() - true.double()).norm() / true.norm()).item()


@pytest.fixture
def no_full_svd(monkeypatch) -> None:
    """Every SVD but a small one fails: what is found is found without."""
    svd = torch.linalg.svd

    def small_only(A, *args, **kwargs):
        assert min(A.shape) < 230, f"a full SVD of {tuple(A.shape)}"
        return svd(A, *args, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", small_only)


@pytest.fixture
def full_svd_only(monkeypatch) -> None:
    """Nothing converges."""
    monkeypatch.setattr(lowrank, "lanczos_block", lambda *args: (None, False))
    monkeypatch.setattr(lowrank, "leading_block", lambda *args, **kwargs: None)


def check_top(W: Tensor, rank: int, found, limit: float) -> None:
    U, S, Vh = found
    full = svd64(W)
    assert (U.shape, S.shape, Vh.shape) == ((W.shape[0], rank), (rank,), (rank, W.shape[1]))
    assert angle(U, full[0][:, :rank]) < limit
    assert angle(Vh.T, full[2][:rank].T) < limit
    assert relative(S, full[1][:rank]) < limit / 100
    # 1e-5 where the dtype determines it so well. Two values of a flat spectrum may be closer than that.
    best = product(full, rank)
    theirs = product(torch.linalg.svd(W, full_matrices=False), rank)
    assert relative(U * S @ Vh, best) < max(limit / 100, 2 * relative(theirs, best))
    assert S.diff().max() <= 0 if rank > 1 else True


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MATRICES)
def test_top(name, shape, dtype):
    W = MATRICES[name](*shape).to(dtype)
    found = top_svd(W, RANK)
    assert found[0].dtype == dtype
    check_top(W, RANK, found, 1e-3 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MATRICES)
def test_bottom(name, shape, dtype):
    W = MATRICES[name](*shape).to(dtype)
    found, (U, S, _) = bottom_left(W, RANK), svd64(W)
    assert found.shape == (shape[0], RANK)
    assert found.dtype == dtype
    limit = 1e-3 if dtype == torch.float32 else 1e-9
    assert angle(found, U[:, -RANK:]) < limit
    sizes = torch.linalg.vector_norm(W.double().T @ found.double(), dim=0)
    torch.testing.assert_close(sizes, S[-RANK:], rtol=limit, atol=limit / 100 * S[0].item())  # also in this order


@pytest.mark.parametrize("rank", [1, 16, 40])
@pytest.mark.parametrize("name", ["1/√i", "trained"])
def test_ranks(name, rank):
    W = MATRICES[name](336, 490).float()
    check_top(W, rank, top_svd(W, rank), 1e-3)
    assert angle(bottom_left(W, rank), svd64(W)[0][:, -rank:]) < 1e-3


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_found_without_a_full_svd(no_full_svd, name, shape):
    W = MATRICES[name](*shape).float()
    top_svd(W, RANK)
    bottom_left(W, RANK)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 5), (6, 11), (11, 6)], ids=str)
def test_small_matrices_of_every_rank(shape):
    W = normal(*shape).float()
    U, S, _ = svd64(W)
    for rank in range(1, min(shape) + 1):
        check_top(W, rank, top_svd(W, rank), 1e-3)
        assert angle(bottom_left(W, rank), U[:, -rank:]) < 1e-4
    assert relative(top_svd(W, min(shape))[1], S) < 1e-5


@pytest.mark.parametrize("rank", [150, 299, 300])
def test_ranks_near_the_limit(rank):
    W = falling(300, 320, 0.5).float()
    check_top(W, rank, top_svd(W, rank), 2e-3)
    smallest = svd64(W)[1][-rank:]
    assert (W.double().T @ bottom_left(W, rank).double()).norm() < 1.0001 * smallest.norm()


UNUSUAL = {
    "clustered": lambda: clustered(260, 300),
    "orthogonal": lambda: torch.linalg.qr(normal(260, 260)).Q,
    "identity": lambda: torch.eye(260, 280, dtype=torch.float64),
    "rank 3": lambda: normal(260, 3) @ normal(3, 300),
    "rank 4": lambda: normal(300, 4) @ normal(4, 260),
    "rank 5": lambda: normal(600, 5) @ normal(5, 240),
    "zero": lambda: torch.zeros(260, 270, dtype=torch.float64),
    "zero rows": lambda: normal(260, 280) * (torch.arange(260) % 50 != 7)[:, None],
    "zero columns": lambda: normal(260, 260) * (torch.arange(260) % 50 != 7),
    "nearly singular": lambda: normal(260, 260) + 1e3 * normal(260, 1) @ normal(1, 260),
    "bf16": lambda: (normal(260, 3) @ normal(3, 300)).to(torch.bfloat16),
}


@pytest.mark.parametrize("rank", [2, 4, 6, 7])
@pytest.mark.parametrize("name", UNUSUAL)
def test_what_has_no_gap_or_no_rank(name, rank):
    """Vectors are not unique here. But the product is the nearest of its rank, and the bottom the smallest there is."""
    W = UNUSUAL[name]().float()
    S = svd64(W)[1]
    U, s, Vh = top_svd(W, rank)
    one = torch.eye(rank)
    scale = S[0].item()
    torch.testing.assert_close(U.T @ U, one, rtol=0, atol=1e-5)
    torch.testing.assert_close(Vh @ Vh.T, one, rtol=0, atol=1e-5)
    torch.testing.assert_close(s.double(), S[:rank], rtol=1e-5, atol=2e-6 * scale)
    torch.testing.assert_close((W - U * s @ Vh).double().norm(), S[rank:].norm(), rtol=1e-5, atol=3e-6 * scale)
    bottom = bottom_left(W, rank)
    torch.testing.assert_close(bottom.T @ bottom, one, rtol=0, atol=2e-5)
    torch.testing.assert_close((W.T @ bottom).double().norm(), S[-rank:].norm(), rtol=1e-4, atol=3e-6 * scale)


@pytest.mark.parametrize("name", ["clustered", "orthogonal", "identity", "rank 3", "zero columns"])
def test_even_these_are_found_without_a_full_svd(no_full_svd, name):
    W = UNUSUAL[name]().float()
    top_svd(W, RANK)
    bottom_left(W, RANK)


def test_more_equal_values_than_wanted_vectors_are_no_trap():
    """Where 30 are equal, an iteration whose blocks were narrower than the rank would miss some."""
    s = torch.cat([torch.tensor([2.0]), torch.ones(30), 0.5 * 0.95 ** torch.arange(269)]).double()
    found = top_svd(with_values(s, 300, 340).float(), 24)[1]
    torch.testing.assert_close(found.double(), s[:24], rtol=1e-5, atol=0)


@pytest.mark.parametrize("equal", [17, 24, 28])
def test_equal_values_are_all_found_where_no_rounding_tells_them_apart(equal):
    """In fp64, on the axes and to a loose tolerance: then only the width of the block brings the last of them in."""
    s = torch.cat([torch.ones(equal), 0.5 * 0.9 ** torch.arange(1024 - equal)]).double()
    torch.testing.assert_close(top_svd(torch.diag(s), 24, 1e-2)[1], s[:24], rtol=1e-3, atol=0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("tiny", [1e-5, 1e-7])
def test_the_bottom_beside_a_few_values_that_are_almost_zero(no_full_svd, tiny, count):
    s = torch.linspace(1, 0.1, 300, dtype=torch.float64)
    s[-count:] = tiny
    W = with_values(s, 300, 320).float()
    U = torch.linalg.qr(normal(300, 300, seed=300)).Q  # as with_values made them
    assert angle(bottom_left(W, RANK), U[:, -RANK:]) < 1e-4


def test_steps_of_many_orders_of_magnitude():
    W = with_values(10 ** (-torch.arange(300, dtype=torch.float64) / 2), 300, 340)
    check_top(W, 12, top_svd(W, 12), 1e-8)
    check_top(W.float(), 6, top_svd(W.float(), 6), 1e-3)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e4), (torch.float32, 30.0)], ids=str)
def test_a_few_giants_do_not_drown_the_rest(no_full_svd, dtype, size):
    """Three directions far above noise: a filter that magnified them along with the rest would lose the rest."""
    W = (normal(400, 420) + size * normal(400, 3) @ normal(3, 420)).to(dtype)
    U = torch.linalg.eigh(W.double() @ W.T.double())[1][:, -RANK:]
    assert angle(top_svd(W, RANK)[0], U) < 1e-3


@pytest.mark.parametrize("name", ["1/√i", "1/i", "trained"])
def test_where_the_spectrum_falls_lanczos_is_enough(monkeypatch, name):
    monkeypatch.delattr(lowrank, "leading_block")
    top_svd(MATRICES[name](400, 500).float(), 10)


@pytest.mark.parametrize("kept", [0, 5])
def test_a_block_that_adds_nothing_is_filled_up(kept):
    """Columns inside the basis, equal ones and zeros: the new ones are still orthonormal, and the equation holds."""
    basis = torch.linalg.qr(normal(50, kept + 1)).Q[:, :kept].float()
    inside = basis @ normal(kept, 2).float()
    new = normal(50, 2, seed=1).float()
    block = torch.cat([inside, new, new[:, :1], torch.zeros(50, 1)], dim=1)
    Q, C, R = appended(block, basis)
    both = torch.cat([basis, Q], dim=1)
    torch.testing.assert_close(both.T @ both, torch.eye(kept + 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis @ C + Q @ R, block, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["1/i", "flat"])
def test_no_less_accurate_than_the_full_svd_in_the_same_dtype(name):
    """The bottom of 1/i is so crowded that fp32 determines it badly."""
    W = MATRICES[name](400, 400).float()
    U, _, _ = svd64(W)
    full = torch.linalg.svd(W, full_matrices=False).U
    for found, theirs, true in (
        (top_svd(W, RANK)[0], full[:, :RANK], U[:, :RANK]),
        (bottom_left(W, RANK), full[:, -RANK:], U[:, -RANK:]),
    ):
        assert angle(found, true) < max(2 * angle(theirs, true), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_same_every_time_and_nothing_touched(dtype):
    W = falling(240, 300, 0.5).to(dtype).requires_grad_()
    before, state = W.detach().clone(), torch.get_rng_state()
    found = [*top_svd(W, RANK), bottom_left(W, RANK)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = [*top_svd(W, RANK), bottom_left(W, RANK)]
    for one, other in zip(found, again, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == torch.float32
        assert not one.requires_grad
    assert torch.equal(W, before)
    check_top(W.detach().float(), RANK, found[:3], 1e-3)


@pytest.mark.parametrize("name", ["1/√i", "flat"])
@pytest.mark.parametrize("exponent", [-80, -20, 20, 80])
def test_the_size_of_the_numbers_does_not_matter(name, exponent):
    W, factor = MATRICES[name](240, 300).float(), 2.0**exponent
    U, S, Vh = top_svd(W * factor, RANK)
    check_top(W, RANK, (U, S / factor, Vh), 1e-3)
    assert angle(bottom_left(W * factor, RANK), bottom_left(W, RANK)) < 1e-4


def test_a_view_is_as_good_as_a_matrix():
    W = falling(300, 240, 0.5).float()
    for view in (W.T.contiguous().T, torch.cat([W, W], dim=1)[:, :240], W.repeat_interleave(2, dim=0)[::2]):
        check_top(view, RANK, top_svd(view, RANK), 1e-3)
        assert angle(bottom_left(view, RANK), svd64(W)[0][:, -RANK:]) < 1e-3


@pytest.mark.parametrize("shape", [(240, 300), (12, 9)], ids=str)
def test_a_map_that_is_no_matrix(shape):
    """W C, as CorDA needs it."""
    out, in_ = shape
    W, X = falling(out, in_, 0.5).float(), normal(3 * in_, in_).float()
    C = X.T @ X / len(X) + 0.01 * torch.eye(in_)
    found = top_of_map(lambda V: W @ (C @ V), lambda U: C @ (W.T @ U), shape, RANK, W)
    check_top(W @ C, RANK, found, 1e-3)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-6])
def test_tolerance_bounds_the_angle(tolerance):
    W = trained(320, 400)
    U, _, Vh = top_svd(W, RANK, tolerance)
    full = svd64(W)
    assert max(angle(U, full[0][:, :RANK]), angle(Vh.T, full[2][:RANK].T)) < tolerance
    seen = []

    def applied(count: float | None) -> int:
        seen.clear()
        top_of_map(lambda X: seen.append(X) or W @ X, lambda Y: W.T @ Y, W.shape, RANK, W, count)
        return len(seen)

    assert applied(tolerance) < applied(None)


@pytest.mark.parametrize("shape", [(300, 340), (500, 200)], ids=str)
def test_the_full_svd_stands_in_where_nothing_converges(full_svd_only, shape):
    W = falling(*shape, 0.5).float()
    check_top(W, RANK, top_svd(W, RANK), 1e-3)
    check_top(W, RANK, top_of_map(W.matmul, W.T.matmul, shape, RANK, W), 1e-3)
    assert angle(bottom_left(W, RANK), svd64(W)[0][:, -RANK:]) < 1e-3


def test_a_residual_bounds_the_angle_down_to_the_rounding():
    sizes, noise = [1.0, 0.5, 0.4, 0.1], 32 * 1e-7 * 0.5  # wanted: the first two
    assert angle_bounds(sizes, [3 * noise, 2 * noise], 1e-7, due=True) == pytest.approx([5 * noise, 20 * noise])
    assert angle_bounds(sizes, [noise, noise / 2], 1e-7) == pytest.approx([noise / 0.6, noise / 0.2])
    assert angle_bounds(sizes, [noise, noise / 2], 1e-7, due=True) == [0, 0]
    assert angle_bounds(sizes, [3 * noise, 2 * noise], 1e-7, negligible=3 * noise, due=True) == [0, 0]
    assert angle_bounds([1.0, 0.5, 0.5 - noise / 2, 0.1], [noise, noise / 2], 1e-7) == [0, 0]
    assert angle_bounds(sizes, [], 1e-7) == []


@pytest.mark.parametrize("spoil", [float("nan"), float("inf")])
def test_an_iteration_that_leaves_the_numbers_gives_up(spoil):
    W = falling(240, 300, 0.5)
    assert leading_block(lambda X: W @ X * spoil, W.T.matmul, W.shape, RANK, W) is None
    assert lanczos_block(lambda X: W @ X * spoil, W.T.matmul, W.shape, RANK, W) == (None, False)


W = torch.eye(6, 5)
REFUSED = {
    "rank 0": (lambda f: f(W, 0), ValueError, "1 to min.* = 5, got 0"),
    "rank above the limit": (lambda f: f(W, 6), ValueError, "= 5, got 6"),
    "bool": (lambda f: f(W, True), ValueError, "got True"),
    "half a rank": (lambda f: f(W, 2.0), ValueError, r"got 2\.0"),
    "vector": (lambda f: f(W[0], 1), ValueError, r"\(5,\)"),
    "empty": (lambda f: f(W[:0], 1), ValueError, r"\(0, 5\)"),
    "whole numbers": (lambda f: f(W.int(), 1), TypeError, "int32"),
    "list": (lambda f: f([[1.0]], 1), TypeError, "list"),
    "NaN": (lambda f: f(W / W, 1), ValueError, "25 entries"),
    "meta": (lambda f: f(W.to("meta"), 1), ValueError, "meta"),
}


@pytest.mark.parametrize("call", [top_svd, bottom_left])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, call):
    bad, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        bad(call)


@pytest.mark.parametrize("tolerance", [0, -1e-3, 1, float("nan")])
def test_refused_tolerance(tolerance):
    with pytest.raises(ValueError, match="tolerance must be an angle"):
        top_svd(W, 1, tolerance)


def test_refused_map():
    with pytest.raises(ValueError, match="= 5, got 9"):
        top_of_map(W.matmul, W.T.matmul, W.shape, 9, W)
    with pytest.raises(TypeError, match=r"fp32 or fp64, got torch\.bfloat16"):
        top_of_map(W.matmul, W.T.matmul, W.shape, 1, W.bfloat16())
