"""What `corda_factors`, `lora_ga_factors`, `eva_factors` and `eva_ranks` refuse, naming value and limit."""

import pytest
import torch
from test_init_data_factors import IN, OUT, RANK, SCALE, components, covariance, gradient, weight

from lora_lab.init.corda import corda_factors
from lora_lab.init.eva import eva_factors, eva_ranks
from lora_lab.init.lora_ga import lora_ga_factors


def corda(**more):
    given = {"weight": weight(), "rank": RANK, "scale": SCALE, "covariance": covariance()}
    return lambda: corda_factors(**given | more)


def ga(**more):
    given = {"weight": weight(), "rank": RANK, "scale": SCALE, "gradient": gradient()}
    return lambda: lora_ga_factors(**given | more)


def eva(**more):
    given = {"weight": weight(), "rank": RANK, "scale": SCALE, "components": components()}
    return lambda: eva_factors(**given | more)


def ranks(ratios: dict, rank=2, rho=2.0):
    return lambda: eva_ranks({path: torch.tensor(some) for path, some in ratios.items()}, rank, rho)


SQUARE, TALL, ZERO = torch.full((IN, IN), torch.nan), torch.full((OUT, IN), torch.nan), torch.zeros(OUT, IN)
FLAT = components()._replace(singular_values=torch.zeros(6))
BROKEN = components()._replace(directions=torch.full((6, IN), torch.nan))
BAD = {
    "corda method": (corda(method="IPM"), ValueError, r"one of \('ipm', 'kpm'\), got 'IPM'"),
    "corda rank": (corda(rank=IN + 1), ValueError, "12, got 13"),
    "corda scale": (corda(scale=0.0), ValueError, "scale must be a positive finite number, got 0.0"),
    "corda covariance shape": (corda(covariance=torch.eye(OUT)), ValueError, r"= \(12, 12\), got \(20, 20\)"),
    "corda covariance type": (corda(covariance=None), TypeError, "covariance must be a tensor, got NoneType"),
    "corda covariance NaN": (corda(covariance=SQUARE), ValueError, "covariance .*has 144 entries that are NaN"),
    "corda covariance zero": (corda(covariance=torch.zeros(IN, IN)), ValueError, "mean 0: no sum of squares"),
    "corda covariance negative": (corda(covariance=-torch.eye(IN)), ValueError, "diagonal from -1"),
    "corda covariance skew": (corda(covariance=covariance().triu()), ValueError, "not symmetric"),
    "corda weight": (corda(weight=TALL), ValueError, "240 entries that are NaN"),
    "ga direction": (ga(direction="arbr"), ValueError, "direction must be one of .* got 'arbr'"),
    "ga stabilization": (ga(stabilization="gd"), ValueError, "stabilization must be one of .* got 'gd'"),
    "ga form": (ga(form="PEFT"), ValueError, "form must be one of .* got 'PEFT'"),
    "ga gamma": (ga(gamma=0), ValueError, "gamma must be a positive finite number, got 0"),
    "ga niter": (ga(niter=-1), ValueError, "niter must be None or a whole number from 0, got -1"),
    "ga rank": (ga(rank=7), ValueError, r"2·7 > min\(out, in\) = 12"),
    "ga no gradient": (ga(gradient=None), TypeError, "needs the mean gradient .* got None"),
    "ga zero gradient": (ga(gradient=ZERO), ValueError, "is zero: the loss does not depend"),
    "ga gradient NaN": (ga(gradient=TALL), ValueError, "gradient .* has 240 entries"),
    "ga gradient shape": (ga(gradient=gradient().T), ValueError, r"shape \(20, 12\), got \(12, 20\)"),
    "ga gradient rank": (ga(gradient=gradient()[:, :3] @ gradient()[:3]), ValueError, "rank 3 < 2·rank = 8"),
    "eva rank": (eva(rank=7), ValueError, r"components must be \(n >= 7, in = 12\)"),
    "eva width": (eva(weight=weight().T), ValueError, r"in = 20\) .* got \(6, 12\)"),
    "eva whiten": (eva(components=FLAT, whiten=True), ValueError, "4 of 4 singular values are 0"),
    "eva NaN": (eva(components=BROKEN), ValueError, "not all finite"),
    "ranks of nothing": (ranks({}), ValueError, "explained is empty"),
    "ranks of too few": (ranks({"a": [1.0]}), ValueError, "a: needs at least 2 ratios"),
    "ranks of NaN": (ranks({"a": [0.5, torch.nan, 0.0]}), ValueError, "a: needs at least 2 ratios"),
    "ranks of negatives": (ranks({"a": [0.5, -0.1, 0.0]}), ValueError, "a: needs at least 2 ratios"),
    "ranks with rho": (ranks({"a": [0.5, 0.4]}, rho=0.9), ValueError, "at least 1, got 0.9"),
    "ranks with rank": (ranks({"a": [0.5, 0.4]}, rank=True), ValueError, "got True"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
