"""combination_error, and linear with its cross terms: against dense matrices."""

import math

import pytest
import torch
from adapters_for_tests import IN, OUT, WEIGHTS, adapter, factors, padded, peft_combined, relative, unlike, wanted_sum
from models_for_tests import llama

from lora_lab.combine import METHODS, combination_error, combine, linear_cross_terms


def options(method: str) -> dict:
    return {} if method in ("cat", "svd", "linear") else {"density": 0.5}


# --- linear and its cross terms --------------------------------------------------------------------------------------


def test_linear_is_the_wanted_sum_and_its_cross_terms():
    adapters = unlike()
    scales = [w * a["x"].scale for w, a in zip(WEIGHTS, adapters, strict=True)]
    linear_delta = combine(adapters, WEIGHTS, "linear")["x"].delta()
    found = linear_cross_terms(adapters, WEIGHTS)["x"]
    wanted = wanted_sum(adapters, WEIGHTS)["x"]
    assert relative(found.wanted.delta(), wanted) < 1e-6
    assert relative(found.wanted.delta() + found.cross.delta(), linear_delta) < 1e-6
    assert found.wanted_norm == pytest.approx(wanted.norm().item(), rel=1e-6)
    assert found.cross_norm == pytest.approx((linear_delta.double() - wanted).norm().item(), rel=1e-5)
    assert found.relative == pytest.approx(relative(linear_delta, wanted), rel=1e-5)
    assert combination_error(adapters, WEIGHTS, {"x": combine(adapters, WEIGHTS, "linear")["x"]}).layers[
        "x"
    ].relative == pytest.approx(found.relative, rel=1e-5)
    for i, left in enumerate(adapters):
        for j, right in enumerate(adapters):
            rank = min(left["x"].rank, right["x"].rank)
            product = left["x"].B.double()[:, :rank] @ right["x"].A.double()[:rank]
            size = math.sqrt(abs(scales[i] * scales[j])) * product.norm().item()
            assert found.terms[i, j].item() == pytest.approx(size, rel=1e-5)


def test_linear_of_one_adapter_has_no_cross_terms():
    one = unlike()[:1]
    for weight in (0.3, -2.0):
        assert relative(combine(one, [weight], "linear")["x"].delta(), wanted_sum(one, [weight])["x"]) < 1e-6
        assert linear_cross_terms(one, [weight])["x"].cross_norm == 0


def test_linear_at_different_ranks_is_that_of_the_padded_adapters():
    base, weights = llama(), [0.7, -1.3]
    adapters = [adapter(base, seed=1, rank=2, alpha=7), adapter(base, seed=2, rank=5, alpha=3, rslora=True)]
    theirs = peft_combined(base, [padded(a, 5) for a in adapters], weights, "linear")
    for path, f in combine(adapters, weights, "linear").items():
        assert (f.rank, f.scale) == (5, 1)
        assert relative(f.delta(), theirs[path]) < 5e-6


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_error_is_that_of_dense_matrices(method):
    adapters = [{"x": factors(OUT, IN, 3, 5, n), "y": factors(IN, 9, 3, 7, n + 5)} for n in range(2)]
    result = combine(adapters, [0.6, 0.8], method, **options(method))
    wanted = wanted_sum(adapters, [0.6, 0.8])
    found = combination_error(adapters, [0.6, 0.8], result)
    squares = {path: ((result[path].delta().double() - w).norm() ** 2).item() for path, w in wanted.items()}
    for path, layer in found.layers.items():
        assert layer.error == pytest.approx(math.sqrt(squares[path]), rel=1e-5, abs=1e-5)
        assert layer.norm == pytest.approx(wanted[path].norm().item(), rel=1e-6)
        assert layer.relative == layer.error / layer.norm
    total = math.sqrt(sum(squares.values()) / sum(w.norm().item() ** 2 for w in wanted.values()))
    assert found.relative == pytest.approx(total, rel=1e-5, abs=1e-5)


def test_the_error_tells_the_rounding_of_cat():
    adapters = unlike()
    result = combine(adapters, WEIGHTS, "cat")
    off = relative(result["x"].B.double() @ result["x"].A.double(), wanted_sum(adapters, WEIGHTS)["x"])
    assert 1e-9 < off < 1e-7
    assert combination_error(adapters, WEIGHTS, result).relative == pytest.approx(off, rel=1e-3)
    assert (
        combination_error(unlike(torch.float64), WEIGHTS, combine(unlike(torch.float64), WEIGHTS, "cat")).relative
        < 1e-14
    )


def test_the_error_takes_any_scale():
    for one in unlike():
        assert combination_error([one], [1], one).relative < 1e-14
        assert combination_error([one], [-2], one).relative == pytest.approx(1.5)


def test_the_error_counts_layers_that_one_side_lacks():
    adapters = [{"x": factors(OUT, IN, seed=1), "y": factors(IN, OUT, seed=2)}]
    found = combination_error(adapters, [2], {"x": combine(adapters, [2], "cat")["x"], "z": adapters[0]["y"]})
    assert found.layers["x"].relative < 1e-6
    assert found.layers["y"].relative == 1
    assert found.layers["z"].norm == 0
    assert found.layers["z"].relative == math.inf
    x, y = (adapters[0][path].delta().norm().item() for path in "xy")
    assert found.relative == pytest.approx(math.hypot(2 * y, y) / math.hypot(2 * x, 2 * y), rel=1e-5)
