"""Figures of sweeps: what is drawn is what was given, spread included, and what cannot be drawn is refused."""

import math

import numpy as np
import pytest

from lora_lab import plots


def line(ax, label):
    return next(each for each in ax.lines if each.get_label() == label)


def test_a_sweep_shows_means_and_the_range_of_the_seeds():
    fig = plots.sweep({"a": {8: [1.0, 3.0], 1: [4.0, 8.0]}, "b": {1: 2.0, 8: 5.0}}, "rank", "loss", "A sweep")
    ax = fig.axes[0]
    np.testing.assert_allclose(line(ax, "a").get_xydata(), [[1, 6], [8, 2]])
    np.testing.assert_allclose(line(ax, "b").get_ydata(), [2, 5])
    (band,) = ax.collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices}
    assert {(1, 4), (1, 8), (8, 1), (8, 3)} <= corners
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_ylabel() == "loss (log)"
    assert list(ax.xaxis.get_major_locator()()) == [1, 8]


def test_predictions_and_references_are_drawn():
    fig = plots.sweep(
        {"a": {1: [2.0], 4: [3.0]}},
        "rank",
        "loss",
        "A sweep",
        log=False,
        even=True,
        expected={"a": {1: 2.5, 4: 2.5}},
        references={"full": [1.0, 2.0]},
    )
    ax = fig.axes[0]
    np.testing.assert_allclose(line(ax, "predicted").get_ydata(), [2.5, 2.5])
    assert set(line(ax, "full").get_ydata()) == {1.5}
    assert ax.get_ylabel() == "loss"
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")


def test_rates_ring_the_lowest_and_leave_out_what_went_astray():
    fig = plots.rates({"LoRA": {0.1: None, 0.01: 0.5, 0.001: 0.9, 1.0: math.nan}}, title="Rates")
    curve, ring = fig.axes[0].lines
    np.testing.assert_allclose(curve.get_xydata(), [[0.001, 0.9], [0.01, 0.5]])
    np.testing.assert_allclose(ring.get_xydata(), [[0.01, 0.5]])


def test_histories_stand_side_by_side_and_mark_what_is_no_number():
    runs = {
        "well": {"loss": [3.0, 2.0, 1.0], "grad_norm": [1.0, 1.0, 1.0], "watched": {"2": 2.5}},
        "ill in fp16": {"loss": [3.0, math.nan], "grad_norm": [1.0, math.inf], "watched": {}},
    }
    fig = plots.histories(runs, title="Two runs")
    assert len(fig.axes) == 4
    well, ill = fig.axes[:2]
    np.testing.assert_allclose(line(well, "training loss").get_ydata(), [3, 2, 1])
    np.testing.assert_allclose(line(well, "validation loss").get_xydata(), [[2, 2.5]])
    assert [each.get_xdata().tolist() for each in ill.lines if each.get_marker() == "X"] == [[2]]
    assert not [each for each in well.lines if each.get_marker() == "X"]
    assert ill.get_title(loc="left") == "ill\nin fp16"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.sweep({}, "x", "y", "t"),
        lambda: plots.sweep({"a": {}}, "x", "y", "t"),
        lambda: plots.rates({"a": {0.1: None}}, title="t"),
        lambda: plots.histories({}, title="t"),
    ],
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ValueError, match="empty: nothing to draw"):
        draw()
