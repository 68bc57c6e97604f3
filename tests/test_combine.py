"""combine, the exact methods and linear: against dense sums in fp64, and against PEFT where PEFT is right."""

import copy
import math

import peft
import pytest
import torch
from adapters_for_tests import IN, OUT, WEIGHTS, adapter, factors, peft_combined, relative, unlike, wanted_sum
from models_for_tests import RANK, gpt2, linear, llama

from lora_lab import LoRALinear, inject, load_adapter, lora_layers, save_adapter, spectrum
from lora_lab.combine import METHODS, combination_error, combine, linear_cross_terms

PRUNING = [method for method in METHODS if method not in ("cat", "svd", "linear")]


def options(method: str) -> dict:
    return {"density": 0.5} if method in PRUNING else {}


# --- the exact sum ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_cat_is_the_sum_of_the_updates_whatever_their_scales(dtype):
    adapters = unlike(dtype)
    (path, result), *none = combine(adapters, WEIGHTS, "cat").items()
    assert (path, none) == ("x", [])
    assert (result.rank, result.scale, result.rslora) == (4 + 2 + 5, 1, False)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert result.A.dtype == result.B.dtype == wide
    assert relative(result.delta(), wanted_sum(adapters, WEIGHTS)["x"]) < 8 * torch.finfo(wide).eps


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_a_layer_made_of_the_result_computes_the_sum(method, tmp_path):
    """Through the file as well: the scale of the result is what alpha, rank and rsLoRA say."""
    base = llama()
    ranks = {"rank": 2, "alpha": 5}, {"rank": 3, "alpha": 2, "rslora": True}
    adapters = [adapter(base, seed=n, **settings) for n, settings in enumerate(ranks)]
    result = combine(adapters, [0.5, -2], method, **({"rank": 5} if method == "svd" else {}))
    model = inject(llama(), list(result), 5, 5)
    for path, layer in lora_layers(model).items():
        layer.A.data, layer.B.data = result[path].A, result[path].B
    save_adapter(model, tmp_path)
    wanted = wanted_sum(adapters, [0.5, -2])
    for path, layer in lora_layers(load_adapter(llama(), tmp_path)).items():
        assert relative(layer.delta_weight(), wanted[path]) < 1e-6
    f = result["model.layers.0.self_attn.k_proj"]
    layer = LoRALinear(linear(16, 32), f.rank, f.alpha, rslora=f.rslora, init=lambda *_: (f.A, f.B))
    assert relative(layer.delta_weight(), wanted["model.layers.0.self_attn.k_proj"]) < 1e-6


@pytest.mark.parametrize("model", [llama, gpt2])
@pytest.mark.parametrize("method", ["cat", "svd", "linear"])
def test_equal_to_peft_at_equal_ranks(method, model):
    base, weights = model(), [0.7, -1.3, 0.4]
    targets = ("q_proj", "k_proj", "down_proj") if model is llama else ("c_attn", "c_proj")
    adapters = [adapter(base, targets, seed, alpha=alpha) for seed, alpha in enumerate((10, 3, 20))]
    ours, theirs = combine(adapters, weights, method), peft_combined(base, adapters, weights, method)
    assert list(ours) == list(theirs)
    for path, delta in theirs.items():
        assert relative(ours[path].delta(), delta) < 5e-6


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_equal_to_peft_at_different_ranks_and_layers(method):
    base = llama()
    adapters = [adapter(base, ("q_proj", "v_proj"), 1, rank=3, alpha=8), adapter(base, ("v_proj", "up_proj"), 2)]
    more = {"rank": 5} if method == "svd" else {}
    ours = combine(adapters, [1.5, -0.5], method, **more)
    theirs = peft_combined(base, adapters, [1.5, -0.5], method, **({"svd_rank": 5} if more else {}))
    assert ours.keys() == theirs.keys() == adapters[0].keys() | adapters[1].keys()
    for path, delta in theirs.items():
        assert relative(ours[path].delta(), delta) < 5e-6


def test_layers_that_an_adapter_lacks_count_as_zero():
    both, first, second = (factors(OUT, IN, rank, 9, seed) for seed, rank in enumerate((2, 3, 4)))
    adapters = [{"both": both, "first": first}, {"second": second, "both": first}]
    result = combine(adapters, [2, 3], "cat")
    assert {path: f.rank for path, f in result.items()} == {"both": 5, "first": 3, "second": 4}
    for path, wanted in wanted_sum(adapters, [2, 3]).items():
        assert relative(result[path].delta(), wanted) < 1e-6
    assert list(combine(adapters, [2, 3], "svd")) == ["both", "first", "second"]


# --- the best of a rank ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_svd_is_the_best_of_its_rank_and_its_error_is_known(dtype):
    adapters = unlike(dtype)
    wanted = wanted_sum(adapters, WEIGHTS)["x"]
    values = torch.linalg.svdvals(wanted)
    close = 100 * torch.finfo(dtype).eps
    for rank in range(1, 12):
        result = combine(adapters, WEIGHTS, "svd", rank=rank)
        assert (result["x"].rank, result["x"].scale, result["x"].A.dtype) == (rank, 1, dtype)
        assert relative(result["x"].delta(), spectrum.truncate(wanted, rank)) < close
        found = combination_error(adapters, WEIGHTS, result)
        lost = values[rank:].norm().item()
        assert found.layers["x"].error == pytest.approx(lost, rel=1e-5, abs=close * values[0].item())
        assert found.layers["x"].norm == pytest.approx(values.norm().item(), rel=1e-6)
        assert found.relative == pytest.approx(lost / values.norm().item(), rel=1e-5, abs=close)


def test_svd_gives_no_more_rank_than_there_is():
    adapters = [{"x": factors(OUT, IN, 2, 3, seed)} for seed in range(2)]
    assert combine(adapters, [1, 1], "svd")["x"].rank == 2  # the largest of the sources
    assert combine(unlike(), WEIGHTS, "svd")["x"].rank == 5
    full = combine(adapters, [1, 1], "svd", rank=12)
    assert full["x"].rank == 4
    assert combination_error(adapters, [1, 1], full).relative < 1e-6
    many = [{"x": factors(OUT, IN, 9, 3, seed)} for seed in range(2)]
    assert combine(many, [1, 1], "cat")["x"].rank == 18  # more than min(out, in)
    compressed = combine(many, [1, 1], "svd", rank=12)
    assert compressed["x"].rank == 12
    assert combination_error(many, [1, 1], compressed).relative < 1e-6


def test_neither_factor_of_svd_outweighs_the_other():
    f = combine(unlike(), WEIGHTS, "svd", rank=3)["x"]
    torch.testing.assert_close(f.A @ f.A.T, f.B.T @ f.B, rtol=1e-4, atol=1e-5)


def test_a_layer_too_large_for_a_dense_matrix():
    """Dense, one of these updates would take 320 GB."""
    big = [{"x": factors(400_000, 200_000, 1, 3, seed)} for seed in range(2)]
    for method in ("cat", "svd", "linear"):
        result = combine(big, [1, -2], method)
        assert result["x"].B.shape == (400_000, 2 if method == "cat" else 1)
        assert (combination_error(big, [1, -2], result).relative < 1e-6) == (method == "cat")
    assert 0 < linear_cross_terms(big, [1, -2])["x"].relative < 2


def test_what_cancels_is_nothing():
    one = {"x": factors(OUT, IN)}
    for method in ("cat", "svd"):
        assert combine([one, one], [1, -1], method)["x"].delta().abs().max() < 1e-5
    assert not combine([one, one], [0, 0], "cat")["x"].delta().any()
    assert combination_error([one], [0], {"x": factors(OUT, IN)}).relative == math.inf


# --- where PEFT 0.21 is wrong ----------------------------------------------------------------------------------------

PEFT_021 = pytest.mark.skipif(not peft.__version__.startswith("0.21."), reason="a fault of PEFT 0.21")


@PEFT_021
@pytest.mark.parametrize(("method", "rank"), [("cat", 2 * RANK), ("svd", RANK), ("linear", RANK)])
def test_peft_scales_rslora_sources_by_the_root_of_the_new_rank(method, rank):
    base, weights = llama(), [1.0, 0.5]
    adapters = [adapter(base, seed=seed, rslora=True) for seed in range(2)]
    theirs = peft_combined(base, adapters, weights, method)
    for path, f in combine(adapters, weights, method).items():
        assert relative(theirs[path], math.sqrt(rank) * f.delta()) < 5e-6


@PEFT_021
def test_peft_drops_adapters_beyond_the_weights_without_a_word():
    base = llama()
    adapters = [adapter(base, seed=seed) for seed in range(3)]
    theirs = peft_combined(base, adapters, [1.0, 1.0], "cat")
    for path, wanted in wanted_sum(adapters[:2], [1, 1]).items():
        assert relative(theirs[path], wanted) < 1e-6
    with pytest.raises(ValueError, match="2 weights for 3 adapters"):
        combine(adapters, [1.0, 1.0], "cat")


# --- nothing else happens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_sources_stay_and_the_result_shares_nothing_with_them(method):
    adapters = [{"x": factors(OUT, IN, 3, 5, n)} for n in range(2)]
    adapters[0]["x"].A.requires_grad_()
    before = copy.deepcopy(adapters)
    result = combine(adapters, torch.tensor([0.5, 1.0]), method, **options(method))
    assert not result["x"].A.requires_grad
    assert not result["x"].B.requires_grad
    result["x"].A.fill_(9), result["x"].B.fill_(9)
    for old, new in zip(before, adapters, strict=True):
        assert torch.equal(old["x"].A, new["x"].A)
        assert torch.equal(old["x"].B, new["x"].B)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu(method):
    adapters = unlike()
    moved = [{"x": a["x"]._replace(A=a["x"].A.cuda(), B=a["x"].B.cuda())} for a in adapters]
    result = combine(moved, WEIGHTS, method, **options(method))
    assert result["x"].A.is_cuda
    assert result["x"].B.is_cuda
    assert combination_error(adapters, WEIGHTS, result).relative >= 0
    if not method.startswith("dare"):
        wanted = combine(adapters, WEIGHTS, method, **options(method))["x"].delta()
        assert relative(result["x"].delta().cpu(), wanted) < 1e-5
