"""The factors of CorDA, EVA and LoRA-GA from their statistics: by definition, and where PEFT is wrong."""

import math

import pytest
import torch
from batches_for_tests import aligned, difference
from models_for_tests import DTYPES, linear, peft_twin
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import collect_eigens_for_layer
from peft.tuners.lora.eva import initialize_lora_eva_weights
from torch import Tensor, nn

from lora_lab.init.corda import corda_factors, damped
from lora_lab.init.eva import Components, eva_alphas, eva_factors, eva_ranks
from lora_lab.init.lora_ga import DIRECTIONS, lora_ga_factors
from lora_lab.init.statistics import input_components

OUT, IN, RANK, SCALE = 20, 12, 4, 2.5


def weight(dtype=torch.float32) -> Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(1)).to(dtype)


def covariance(dtype=torch.float32) -> Tensor:
    X = torch.randn(200, IN, generator=torch.Generator().manual_seed(2)) * torch.arange(1, IN + 1) / IN
    return (X.T @ X / 200).to(dtype)


def gradient(dtype=torch.float32) -> Tensor:
    return 1e-3 * torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3)).to(dtype)


def components(n: int = 6) -> Components:
    Q = torch.linalg.qr(torch.randn(IN, n, generator=torch.Generator().manual_seed(4)))[0]
    return Components(Q.T, torch.arange(n, 0, -1.0), torch.arange(n, 0, -1.0) / 100)


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_projects_the_weight(method):
    """s·BA = U_r U_rᵀ W: the residual has nothing left in the directions U_r, whatever the scale."""
    W = weight(torch.float64)
    for scale in (0.3, 1.0, 4.0):
        A, B = corda_factors(W, RANK, scale, covariance(torch.float64), method)
        assert (A.shape, B.shape) == ((RANK, IN), (OUT, RANK))
        U = B / B.norm(dim=0)
        torch.testing.assert_close(scale * B @ A, U @ U.T @ W)
        torch.testing.assert_close(U.T @ (W - scale * B @ A), torch.zeros(RANK, IN, dtype=torch.float64))
        # The error that is left, as the data weighs it, is that of the best approximation of this rank (or the worst).
        S = torch.linalg.svdvals(W @ damped(covariance(torch.float64)))
        left = torch.linalg.matrix_norm((W - scale * B @ A) @ damped(covariance(torch.float64)))
        torch.testing.assert_close(left, (S[RANK:] if method == "ipm" else S[:-RANK]).norm())


def test_corda_of_a_weight_without_rank():
    """The directions that W maps to nothing have S = 0: PEFT's A is 0 there as well, and nothing is NaN."""
    W = torch.zeros(OUT, IN)
    W[:3] = weight()[:3]
    A, B = corda_factors(W, RANK, SCALE, covariance(), "ipm")
    torch.testing.assert_close(SCALE * B @ A, W, rtol=1e-4, atol=1e-5)
    for factor in corda_factors(torch.zeros(OUT, IN), RANK, SCALE, covariance(), "kpm"):
        assert not factor.any()


def their_eigens(W: Tensor, C: Tensor):
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight.data, layer.covariance_matrix = W, C
    return collect_eigens_for_layer(layer, LoraConfig(init_lora_weights="corda", corda_config=CordaConfig()))


def test_corda_damps_as_peft_does():
    """One direction outshines 1535 others: inverting in fp32 fails at d = 0.01, and d is doubled until it works."""
    size = 1536
    direction = torch.nn.functional.normalize(torch.randn(size), dim=0)
    X = torch.randn(64, size)
    C = 1e4 * size * torch.outer(direction, direction) + X.T @ X / 64
    W = torch.randn(6, size) / size**0.5
    unit = C.diagonal().mean()
    added = ((damped(C) - C).diagonal().mean() / unit).item()
    assert 0.015 < added < 1
    assert math.log2(added / 0.01) == pytest.approx(round(math.log2(added / 0.01)), abs=1e-2)
    eigens = their_eigens(W, C)
    A, B = corda_factors(W, 3, SCALE, C)
    S = eigens.S_WC[:3] / SCALE
    their_A, their_B = aligned((A, B), (eigens.V_WC.T[:3] * S.sqrt()[:, None], eigens.U_WC[:, :3] * S.sqrt()))
    assert difference(B, their_B) < 1e-3
    # PEFT's A goes through the inverse of a nearly singular matrix; ours does not.
    assert difference(SCALE * B @ A, SCALE * their_B @ their_A) < 0.1
    torch.testing.assert_close(SCALE * B @ A, B @ torch.linalg.pinv(B) @ W, rtol=1e-3, atol=1e-5)


def test_eva_factors():
    A, B = eva_factors(weight(torch.bfloat16), RANK, SCALE, components())
    assert torch.equal(A, components().directions[:RANK])
    assert A.dtype == B.dtype == torch.float32
    assert torch.equal(B, torch.zeros(OUT, RANK))
    A.zero_()
    assert components().directions.any()
    white = eva_factors(weight(), RANK, SCALE, components(), whiten=True)[0]
    torch.testing.assert_close(white.norm(dim=1), torch.tensor([6.0, 5, 4, 3]).rsqrt())


@pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage=False:UserWarning")
def test_pefts_whitening_divides_once_for_every_layer_with_the_same_inputs():
    """In place, in memory that they share. Ours divides once."""
    base = nn.Sequential()
    base.a, base.b, base.other = nn.Linear(IN, 5), nn.Linear(IN, 5), nn.Linear(5, 6)
    base.forward = lambda x: base.other((base.a(x) + base.b(x)).relu())
    data = [{"x": torch.randn(60, IN) * torch.arange(1, IN + 1)} for _ in range(3)]
    twin = peft_twin(base, ["a", "b", "other"], 2, 5, init_lora_weights="eva", eva_config=EvaConfig(rho=1, whiten=True))
    settings = {"prepare_model_inputs_fn": None, "show_progress_bar": False}
    settings["prepare_layer_inputs_fn"] = lambda x, *_: x[0]
    twin.base_model.model.forward = lambda x: twin.base_model.model.other(
        (twin.base_model.model.a(x) + twin.base_model.model.b(x)).relu()
    )
    initialize_lora_eva_weights(twin, data, forward_fn=lambda m, batch: m(**batch), **settings)
    found = input_components(base, ["a", "b", "other"], data, 2, rho=1, progress=False)
    for path, divided in (("a", 2), ("b", 2), ("other", 1)):
        layer = base.get_submodule(path)
        ours = eva_factors(layer.weight, 2, SCALE, found[path], whiten=True)[0]
        theirs = twin.base_model.model.get_submodule(path).lora_A["default"].weight
        assert difference(ours.norm(dim=1) ** divided, theirs.norm(dim=1)) < 1e-2


def test_ranks_go_to_the_largest_ratios():
    ratios = {"a": [0.5, 0.3, 0.01, 0.0], "b": [0.4, 0.2, 0.1, 0.05], "c": [0.02, 0.01, 0.01, 0.0]}
    ratios = {path: torch.tensor(some) for path, some in ratios.items()}
    assert eva_ranks(ratios, 2, 2.0) == {"a": 2, "b": 4, "c": 0}
    assert eva_ranks(ratios, 2, 1.5) == {"a": 2, "b": 3, "c": 1}
    assert eva_ranks(ratios, 2, 1.0) == {"a": 2, "b": 2, "c": 2}
    assert eva_ranks(ratios, 1, 3.0) == {"a": 2, "b": 1, "c": 0}
    # Equal ratios (q, k and v) are served in order; a layer that is too small for more has a shorter list.
    assert eva_ranks(dict.fromkeys("qkv", ratios["a"]), 2, 2.0) == dict.fromkeys("qkv", 2)
    assert eva_ranks({**dict.fromkeys("qk", ratios["a"]), "c": ratios["c"]}, 1, 2.0) == {"q": 2, "k": 1, "c": 0}
    assert eva_ranks({"a": ratios["a"], "b": ratios["b"][:2]}, 2, 2.0) == {"a": 2, "b": 2}


def test_alphas_keep_the_scale():
    ranks = {"a": 2, "b": 6, "c": 0}
    assert eva_alphas(ranks, 4, 10) == {"a": 5, "b": 15}
    for path, alpha in eva_alphas(ranks, 4, 10, rslora=True).items():
        assert alpha / math.sqrt(ranks[path]) == pytest.approx(10 / math.sqrt(4))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lora_ga_as_in_the_paper(direction):
    """B without the singular values: any multiple of the gradient starts the same, and A and B have one size."""
    W, G = weight(), gradient()
    starts = []
    for factor in (1, 1000):
        torch.manual_seed(5)
        starts.append(lora_ga_factors(W, RANK, SCALE, factor * G, direction, gamma=9, form="paper"))
    (A, B), other = starts
    assert difference(other[0], A) < 1e-4
    assert difference(other[1], B) < 1e-4
    size = OUT**0.25 / 9**0.5
    torch.testing.assert_close(A @ A.T, size**2 * torch.eye(RANK), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(B.T @ B, size**2 * torch.eye(RANK), rtol=1e-5, atol=1e-5)
    assert (B.T @ G @ A.T).abs().max() < 1e-6  # no singular triplet is taken by both


def test_lora_ga_takes_directions_of_the_gradient_and_a_size():
    W, G = weight(torch.float64), gradient(torch.float64)
    U, S, Vh = torch.linalg.svd(G)
    A, B = lora_ga_factors(W, RANK, SCALE, G, "ArB2r", "unit")
    assert difference(A.abs(), Vh[:RANK].abs()) < 1e-8
    assert difference(B.abs(), (U[:, RANK : 2 * RANK] * S[RANK : 2 * RANK]).abs()) < 1e-8
    sizes = {
        "stable": (1, OUT**0.25 / 3),
        "gd_scale": (1 / SCALE, 1 / SCALE),
        "weight_svd": (1, torch.linalg.matrix_norm(W, 2) / S[RANK]),
    }
    for stabilization, (for_A, for_B) in sizes.items():
        sized = lora_ga_factors(W, RANK, SCALE, G, "ArB2r", stabilization, gamma=9)
        torch.testing.assert_close(sized, (for_A * A, for_B * B))
    torch.manual_seed(6)
    A, B = lora_ga_factors(W, RANK, SCALE, G, "random", "unit")  # both factors of the same triplets
    torch.manual_seed(6)
    chosen = torch.randperm(2 * RANK)[:RANK]
    torch.testing.assert_close(B @ A, U[:, chosen] * S[chosen] @ Vh[chosen])
    white = lora_ga_factors(W, RANK, SCALE, G, "ArB2r", "weight_svd", form="paper")
    mean = (torch.linalg.svdvals(W)[:RANK] / SCALE).sqrt().mean()
    torch.testing.assert_close(white[0].norm(dim=1), mean.expand(RANK))
    torch.testing.assert_close(white[1].norm(dim=0), mean.expand(RANK))


def test_pefts_stable_scale_takes_the_wrong_side_of_a_conv1d():
    base = nn.Sequential(linear(OUT, IN, conv1d=True))
    W, G = base[0].weight.T, gradient()
    base[0]._peft_loraga_grad = G.T.contiguous()
    config = {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig(stable_gamma=9)}
    theirs = peft_twin(base, ["0"], RANK, RANK * SCALE, **config).base_model.model[0].lora_B["default"].weight
    ours = lora_ga_factors(W, RANK, SCALE, G, gamma=9)[1]
    assert difference(theirs.norm(dim=0) * (OUT / IN) ** 0.25, ours.norm(dim=0)) < 1e-2


def test_results_are_wide_and_repeatable():
    for dtype in DTYPES:
        wide = torch.promote_types(dtype, torch.float32)
        for make in (
            lambda d: corda_factors(weight(d), RANK, SCALE, covariance()),
            lambda d: lora_ga_factors(weight(d), RANK, SCALE, gradient()),
            lambda d: eva_factors(weight(d), RANK, SCALE, components()),
        ):
            before = torch.get_rng_state()
            first, second = make(dtype), make(dtype)
            assert torch.equal(torch.get_rng_state(), before)
            assert all(a.dtype == wide and torch.equal(a, b) for a, b in zip(first, second, strict=True))
