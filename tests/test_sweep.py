"""The search for a learning rate that the experiments share."""

import math

import pytest

from lora_lab.experiments.sweep import MOST_RATES, best_rate


@pytest.mark.parametrize("optimum", [1e-6, 1e-3, 0.7, 6.0])
def test_the_grid_grows_until_the_best_rate_has_neighbours_on_both_sides(optimum):
    best, losses = best_rate(lambda rate: abs(math.log(rate / optimum)), (1e-3, 2e-3), 2.0)
    assert losses[best] == min(losses.values())
    assert min(losses) < best < max(losses)
    assert abs(math.log2(best / optimum)) <= 0.5
    assert list(losses) == sorted(losses)


def test_rates_at_which_the_run_went_astray_are_never_chosen():
    best, losses = best_rate(lambda rate: math.nan if rate > 1e-4 else 1 / rate, (1.0, 2.0), 4.0)
    assert best == 4.0**-7
    assert losses[1.0] == losses[2.0] == math.inf


@pytest.mark.parametrize("rates", [(), (0.1, -0.1), (0.0,)])
def test_rates_that_are_none_are_refused(rates):
    with pytest.raises(ValueError, match="must be positive"):
        best_rate(lambda rate: 1.0, rates, 2.0)


def test_a_grid_without_a_minimum_ends():
    tried = []
    with pytest.raises(ValueError, match="still no minimum after 16 rates"):
        best_rate(lambda rate: tried.append(rate) or -rate, (1.0,), 2.0)
    assert len(tried) == MOST_RATES
