"""The explorer's numbers are torch's own, every control moves picture and words, and it answers in time."""

import itertools
import statistics
import time

import numpy as np
import pytest
import torch
from models_for_tests import fill
from torch import nn

from lora_lab.inject import inject, lora_layers
from lora_lab.merge import merge_, merged_weight
from lora_lab.widgets.merge import DTYPES, LiveRatios, merge_explorer

RANK, ALPHA = 4, 6
FLIPS = {
    (dtype, rank, times): 0.001 * (number + 1)
    for number, (dtype, rank, times) in enumerate(itertools.product(DTYPES, (1, 2, 4), (0.5, 1.0, 2.0)))
}


def model_of(width: int = 40, out: int = 24) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, out), nn.Tanh(), nn.Linear(out, width))
    return fill(inject(model, ["0", "2"], RANK, ALPHA))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_is_that_of_the_library_s_merge(dtype):
    model = model_of()
    explorer = merge_explorer(model, FLIPS)
    explorer.layer.value, explorer.dtype.value = "2", dtype
    layer = lora_layers(model)["2"]
    exact = layer.base.weight.double() + ALPHA / RANK * (layer.B.double() @ layer.A.double())
    error = (merged_weight(layer).to(DTYPES[dtype]).double() - exact).abs()  # the one rounding, of the fp32 sum
    near = 1e-6 if dtype != "float32" else 1.0  # fp32 sums in another order: the same size, other digits
    assert explorer.numbers.largest == pytest.approx(error.max().item(), rel=max(near, 2e-3))
    assert explorer.numbers.update == pytest.approx((exact - layer.base.weight).abs().median().item(), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_update_is_cut_to_the_nearest_of_the_rank(rank):
    model = model_of()
    explorer = merge_explorer(model, FLIPS)
    explorer.layer.value, explorer.rank.value, explorer.times.value = "0", rank, 2.0
    U, s, Vh = torch.linalg.svd(lora_layers(model)["0"].delta_weight().double(), full_matrices=False)
    best = 2 * U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]
    assert explorer.numbers.update == pytest.approx(best.abs().median().item(), rel=1e-4)


def test_every_control_moves_picture_and_words():
    explorer = merge_explorer(model_of(), FLIPS)
    seen = {(bytes(explorer.canvas.image.value), explorer.readout(), explorer.alt())}
    for control, value in (("layer", "2"), ("dtype", "float32"), ("rank", 1), ("times", 0.5)):
        getattr(explorer, control).value = value
        seen.add((bytes(explorer.canvas.image.value), explorer.readout(), explorer.alt()))
    assert all(len(set(column)) == 5 for column in zip(*seen, strict=True))
    assert f"{FLIPS['float32', 1, 0.5]:.2%}" in explorer.readout()


def test_small_scales_drown_in_half_precision():
    explorer = merge_explorer(model_of(), FLIPS)
    explorer.dtype.value, shares = "bfloat16", []
    for times in (0.5, 1.0, 2.0):
        explorer.times.value = times
        shares.append(explorer.numbers.drowned)
    assert shares == sorted(shares, reverse=True)
    explorer.dtype.value = "float32"
    assert explorer.numbers.drowned <= min(shares)


def test_it_leaves_the_model_alone_and_does_without_measurements():
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explorer = merge_explorer(model)
    explorer.times.value = 4.0
    assert explorer.numbers.flipped is None
    assert "not measured" in explorer.readout()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_to_explore_is_refused():
    with pytest.raises(ValueError, match="no unmerged LoRA layer"):
        merge_explorer(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="no unmerged LoRA layer"):
        merge_explorer(merge_(model_of()))


def test_a_slider_answers_in_time_on_the_largest_layer_of_the_course():
    explorer = merge_explorer(model_of(512, 192), FLIPS)
    times = []
    for rank, scale in itertools.product((1, 2, 4), (0.5, 1.0, 2.0)):
        began = time.process_time()  # other programs may have the machine
        explorer.rank.value, explorer.times.value = rank, scale
        times.append((time.process_time() - began) / 2)
    assert statistics.median(times) <= 0.080


def test_live_ratios_are_seen_live_and_never_saved():
    shown = LiveRatios(lambda: {"batch 1": 1.2345})
    bundle = shown._repr_mimebundle_()
    assert "1.23" in shown.html()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "1.23" not in bundle["text/html"] + bundle["text/plain"]
    assert np.isfinite(list(shown.ratios.values())).all()
