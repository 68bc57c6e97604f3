"""Figures of inits: the map says what the table of inits says, bars are torch's, every seed is drawn."""

import numpy as np
import pytest
import torch

from lora_lab import plots
from lora_lab.init import INITS, named
from lora_lab.plots.inits import NOTES, shares

OUT, IN, GROUPS = 24, 40, 6


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))


def cell(*last: float) -> dict:
    return {
        "watched": {"0": [7.0, 8.0], "5": list(last)},
        "test_loss": list(last),
        "exact": [0.1, 0.3],
        "stories_loss": [2.0, 3.0],
        "setup_seconds": 0.5,
        "setup_peak_bytes": 2_000_000,
    }


PART = {"default": cell(0.4, 0.6), "pissa": cell(0.2, 0.3), "mica": cell(1.0, 2.0)}


def test_the_map_places_every_init_by_the_table():
    (ax,) = plots.init_map().axes
    words = {text.get_text(): text.get_position() for text in ax.texts}
    assert set(INITS) == set(NOTES)
    assert set(INITS) <= set(words)
    columns = {
        needs: {round(words[n][0], 3) for n, r in INITS.items() if r.needs == needs}
        for needs in ("nothing", "weight", "inputs", "gradient")
    }
    assert all(len(places) == 1 for places in columns.values())
    lefts = [places.pop() for places in columns.values()]
    assert lefts == sorted(lefts)
    rows = {
        base: [words[n][1] for n, r in INITS.items() if r.base == base] for base in ("kept", "residual", "quantized")
    }
    assert max(rows["kept"]) < min(rows["residual"])
    assert max(rows["residual"]) < min(rows["quantized"])
    dashed = sum(patch.get_linestyle() not in ("-", "solid") for patch in ax.patches)
    assert dashed == sum(not recipe.no_op for recipe in INITS.values())


def test_shares_are_those_of_the_squared_norm(weight):
    U, _, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    draw = torch.Generator().manual_seed(1)
    A, B = torch.randn(3, IN, generator=draw).double(), torch.randn(OUT, 3, generator=draw).double()
    found = shares(U, Vh, A, B, GROUPS)
    for group in range(GROUPS):
        rows = slice(group * OUT // GROUPS, (group + 1) * OUT // GROUPS)
        assert found.A[group] == pytest.approx(float((A @ Vh[rows].T).norm() ** 2 / A.norm() ** 2))
        assert found.B[group] == pytest.approx(float((U[:, rows].T @ B).norm() ** 2 / B.norm() ** 2))
    assert found.A.sum() == pytest.approx(1)
    rest = A - A @ Vh.T @ Vh  # W has 24 directions, A lives in 40
    assert found.A[-1] == pytest.approx(float(rest.norm() ** 2 / A.norm() ** 2))
    assert found.B[-1] == pytest.approx(0, abs=1e-9)
    assert shares(U, Vh, 0 * A, B, GROUPS).A is None


def test_a_spectrum_map_has_a_row_for_each_start(weight):
    starts = {name: named(name)(weight, 4, 2.5) for name in ("default", "pissa", "mica")}
    fig = plots.spectrum_map(weight, starts, groups=GROUPS)
    assert len(fig.axes) == 6
    pissa, mica = fig.axes[2], fig.axes[5]
    np.testing.assert_allclose([bar.get_height() for bar in pissa.patches], [1, 0, 0, 0, 0, 0, 0], atol=1e-5)
    np.testing.assert_allclose([bar.get_height() for bar in mica.patches], [0, 0, 0, 0, 0, 1, 0], atol=1e-5)
    (chance,) = fig.axes[2].lines
    np.testing.assert_allclose(chance.get_ydata(), OUT / GROUPS / IN)
    assert [text.get_text() for text in fig.axes[1].texts] == ["B = 0"]
    assert "A = 0" in [text.get_text() for text in fig.axes[4].texts]


def test_convergence_shows_each_init_beside_the_default():
    fig = plots.convergence(PART, target=0.5)
    panels = {ax.get_title(loc="left"): ax for ax in fig.axes if ax.get_title(loc="left")}
    assert set(panels) == {"pissa", "mica"}
    default, mine, target = panels["pissa"].lines
    np.testing.assert_allclose(mine.get_xydata(), [[0, 7.5], [5, 0.25]])
    np.testing.assert_allclose(default.get_xydata(), [[0, 7.5], [5, 0.5]])
    assert set(target.get_ydata()) == {0.5}
    band = panels["pissa"].collections[1].get_paths()[0].vertices
    assert {(5, 0.2), (5, 0.3)} <= {tuple(point) for point in band}
    assert len([ax for ax in plots.convergence(PART, ["mica"]).axes if ax.get_title(loc="left")]) == 1


def test_an_outcome_draws_every_seed_the_best_on_top():
    fig = plots.outcome(PART, base={"stories_loss": 1.0})
    losses, exact, stories = fig.axes
    assert [label.get_text() for label in losses.get_yticklabels()] == ["pissa", "default", "mica"]
    np.testing.assert_allclose(losses.lines[0].get_xdata(), [0.2, 0.3])
    np.testing.assert_allclose(losses.lines[1].get_xdata(), 0.25)  # their mean
    np.testing.assert_allclose(exact.lines[0].get_xdata(), [10, 30])
    assert list(stories.lines[-1].get_xdata()) == [1.0, 1.0]
    assert losses.get_xscale() == "log"
    assert losses.get_ylim()[0] > losses.get_ylim()[1]


def test_setup_costs_are_seconds_and_megabytes():
    part = PART | {"pissa": PART["pissa"] | {"setup_seconds": 4.0}}
    seconds, size = plots.setup_costs(part).axes
    assert seconds.get_yticklabels()[0].get_text() == "pissa"
    np.testing.assert_allclose(seconds.lines[0].get_xdata(), [4.0])
    np.testing.assert_allclose(size.lines[0].get_xdata(), [2.0])


REFUSED = {
    "no starts": (lambda W: plots.spectrum_map(W, {}), "starts is empty"),
    "groups": (lambda W: plots.spectrum_map(W, {"a": (W, W)}, groups=25), "groups must be 1 to 24.*got 25"),
    "only the default": (lambda W: plots.convergence({"default": PART["default"]}), "names is empty"),
    "unknown": (lambda W: plots.convergence(PART, ["eva"]), "not recorded: eva"),
    "no outcome": (lambda W: plots.outcome({}), "part is empty"),
    "no costs": (lambda W: plots.setup_costs({}), "part is empty"),
}


@pytest.mark.parametrize(("draw", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_drawn_is_refused(weight, draw, words):
    with pytest.raises(ValueError, match=words):
        draw(weight)
