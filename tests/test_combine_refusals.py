"""What combine refuses, before it has drawn or changed anything."""

import math

import pytest
import torch
from adapters_for_tests import IN, OUT, factors, random
from models_for_tests import RANK, linear

from lora_lab import Adapter
from lora_lab.combine import METHODS, combination_error, combine, linear_cross_terms

PRUNING = [method for method in METHODS if method not in ("cat", "svd", "linear")]


def broken(**changes) -> Adapter:
    return {"x": factors(OUT, IN)._replace(**changes)}


GOOD = {"x": factors(OUT, IN)}
TWO = [GOOD, GOOD]
NAN = random(RANK, IN).index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(math.nan))
BAD = {
    "none": (([], [], "cat"), ValueError, "no adapters"),
    "one, not a list": ((GOOD, [1], "cat"), TypeError, "a list of adapters, got dict"),
    "a model": (([linear(3, 4)], [1], "cat"), TypeError, "adapter 0 must map module paths.*got Linear"),
    "no layers": (([GOOD, {}], [1, 1], "cat"), ValueError, "adapter 1 has no layers"),
    "no factors": (([{"x": (NAN, NAN)}], [1], "cat"), TypeError, r"'x': must be Factors.*got tuple"),
    "few weights": ((TWO, [1], "cat"), ValueError, "1 weights for 2 adapters"),
    "many weights": ((TWO, [1, 2, 3], "svd"), ValueError, "3 weights for 2 adapters"),
    "one number": ((TWO, 1.0, "cat"), TypeError, "weights must be a list of numbers.*got float"),
    "NaN weight": ((TWO, [1, math.nan], "cat"), ValueError, "weight 1 must be a finite number, got nan"),
    "infinite weight": ((TWO, [-math.inf, 1], "ties"), ValueError, "weight 0 must be a finite number, got -inf"),
    "true weight": ((TWO, [True, 1], "cat"), ValueError, "weight 0 must be a finite number, got True"),
    "no weight": ((TWO, [None, 1], "cat"), ValueError, "weight 0 must be a finite number, got None"),
    "NaN factor": (([GOOD, broken(A=NAN)], [1, 1], "cat"), ValueError, "adapter 1, 'x': A has 1 entries that are NaN"),
    "whole numbers": (([broken(A=NAN.bool())], [1], "cat"), TypeError, "'x': A must be floating point"),
    "no matrix": (([broken(B=torch.zeros(3))], [1], "cat"), ValueError, r"B must be a matrix .* shape \(3,\)"),
    "two ranks": (([broken(A=random(3, IN))], [1], "cat"), ValueError, r"A \(3, 12\) and B \(20, 4\) are not"),
    "meta": (([broken(A=torch.empty(4, IN, device="meta"))], [1], "cat"), ValueError, "meta device"),
    "DoRA": (([broken(magnitude=torch.ones(OUT))], [1], "cat"), ValueError, "'x': is a DoRA layer"),
    "alpha 0": (([broken(alpha=0)], [1], "cat"), ValueError, "alpha must be a positive finite number, got 0"),
    "shapes": (
        ([GOOD, {"x": factors(IN, OUT)}], [1, 1], "cat"),
        ValueError,
        r"layer 'x' is \(out, in\) = \(20, 12\) in adapter 0, but \(12, 20\) in 1",
    ),
    "unknown": ((TWO, [1, 1], "mean"), ValueError, "unknown method 'mean': it is one of cat, svd, linear, magn"),
    "no such": ((TWO, [1, 1], "linear_svd"), ValueError, "unknown method 'linear_svd'"),
    "other layers": (([GOOD, {"y": GOOD["x"]}], [1, 1], "linear"), ValueError, "wants the same layers.*2 of them.*'x'"),
}
for wrong, kind in ((0, ValueError), (13, ValueError), (-1, ValueError), (1.5, ValueError), (True, ValueError)):
    BAD[f"rank {wrong}"] = ((TWO, [1, 1], "svd", {"rank": wrong}), kind, f"'x'.* from 1 to .* = 12, got {wrong}")
for method in ("cat", "linear"):
    BAD[f"rank of {method}"] = ((TWO, [1, 1], method, {"rank": 2}), ValueError, f"rank 2 is of no use to {method}")
for method in ("cat", "svd", "linear"):
    BAD[f"density of {method}"] = ((TWO, [1, 1], method, {"density": 0.5}), ValueError, "density 0.5 is of no use")
for method in PRUNING:
    BAD[f"{method}, no density"] = ((TWO, [1, 1], method), ValueError, f"{method} needs a density .* got None")
for wrong in (0, 1.01, -0.5, math.nan, math.inf, True, "half"):
    BAD[f"density {wrong}"] = (
        (TWO, [1, 1], "ties", {"density": wrong}),
        ValueError,
        f"needs a density .* got '?{wrong}",
    )
for method in ("ties", "dare_linear", "magnitude_prune"):
    bad = ([GOOD, GOOD | {"y": GOOD["x"]}], [1, 1], method, {"density": 0.5})
    BAD[f"other layers, {method}"] = (bad, ValueError, "1 of them .'y'")
BAD["signs"] = ((TWO, [1, 1], "ties", {"density": 0.5, "majority_sign_method": "most"}), ValueError, "got 'most'")
BAD["generator"] = ((TWO, [1, 1], "dare_ties", {"density": 0.5, "generator": 3}), TypeError, "torch.Generator, got int")


@pytest.mark.parametrize(("call", "kind", "message"), BAD.values(), ids=BAD)
def test_refused(call, kind, message):
    *call, more = call if isinstance(call[-1], dict) else (*call, {})
    state = torch.get_rng_state()
    with pytest.raises(kind, match=message):
        combine(*call, **more)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(now, then) for now, then in zip(GOOD["x"][:2], factors(OUT, IN)[:2], strict=True))


def test_companions_refuse_as_combine_does():
    with pytest.raises(ValueError, match="1 weights for 2 adapters"):
        combination_error(TWO, [1], GOOD)
    with pytest.raises(ValueError, match="1 weights for 2 adapters"):
        linear_cross_terms(TWO, [1])
    with pytest.raises(ValueError, match="wants the same layers"):
        linear_cross_terms([GOOD, {"y": GOOD["x"]}], [1, 1])
    with pytest.raises(ValueError, match="combined has no layers"):
        combination_error(TWO, [1, 1], {})
    with pytest.raises(ValueError, match=r"\(20, 12\) in the adapters, but \(12, 20\) in combined"):
        combination_error(TWO, [1, 1], {"x": factors(IN, OUT)})
