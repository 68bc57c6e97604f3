"""The explorers of costs show what `lora_lab.budget` computes, beside what was counted and published."""

import json
import statistics
import time

import pytest

from lora_lab.budget import GPUS, KINDS, MODELS, budget
from lora_lab.paths import MEASUREMENTS
from lora_lab.plots.budget import cost_curves, stacked_bars
from lora_lab.widgets import budget_explorer, cost_explorer
from lora_lab.widgets.budget import MASTER, METHODS, NOTHING, RANKS
from lora_lab.widgets.known_runs import QV, known_runs

SMALL = ("Llama-3.2-1B", "Llama-3.2-3B", "Phi-3-mini", "Mixtral-8x7B")
VIEW = "application/vnd.jupyter.widget-view+json"


def explorer(**start):
    return budget_explorer(**({"model": "Llama-3.2-1B", "models": SMALL} | start))


def picture(shown) -> bytes:
    return bytes(shown.canvas.image.value)


def test_the_numbers_are_the_librarys():
    shown = explorer(method="qlora", rank=32, batch=4, length=512)
    shown.targets.value, shown.optimizer.value, shown.checkpointing.value = "attention", "adamw-8bit", True
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    more = {"batch": 4, "length": 512, "checkpointing": True, "optimizer": "adamw-8bit"}
    right = budget("Llama-3.2-1B", "qlora", 32, names, **more)
    assert shown.run.memory.at_peak == right.memory.at_peak
    assert shown.run.counts == right.counts
    shown.gpu.value, shown.tokens.value, shown.mfu.value = "L40S 48GB", "100 million", 0.2
    assert shown.hours == pytest.approx(right.seconds("L40S 48GB", 1e8, 0.2) / 3600)
    for word in (f"{right.counts.trainable:,}", f"{right.memory.peak / 1e9:,.2f} GB", f"{shown.hours:,.1f} hours"):
        assert word in shown.readout()
    assert shown.readout() == shown.box.children[-1].value


def test_the_bar_is_the_memory_and_the_line_is_what_a_gpu_needs():
    shown = explorer(batch=8, length=1024)
    at = shown.run.memory.at_peak
    assert [patch.get_width() for patch in shown._parts] == pytest.approx([at[kind] / 1e9 for kind in KINDS])
    ends = [patch.get_x() + patch.get_width() for patch in shown._parts]
    assert ends[-1] == pytest.approx(shown.run.memory.peak / 1e9)
    assert shown._need.get_xdata()[0] == pytest.approx((shown.run.memory.peak + 2**30) / 1e9)
    marked = {name for name, says in zip(GPUS, shown._fits, strict=True) if says.get_text().startswith("✓")}
    assert marked == set(shown.run.fits())
    assert {"T4 16GB", "V100 32GB"} & {n for n, s in zip(GPUS, shown._fits, strict=True) if s.get_text() == "no bf16"}


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("model", "Llama-3.2-3B"),
        ("method", "full"),
        ("method", MASTER),
        ("targets", "query and value"),
        ("dtype", "float32"),
        ("optimizer", "sgd"),
        ("checkpointing", True),
        ("rank", 128),
        ("batch", 16),
        ("length", 4096),
    ],
)
def test_every_control_changes_picture_and_words_and_comes_back(control, value):
    shown = explorer(batch=2)
    first, old = (picture(shown), shown.readout(), shown.alt()), getattr(shown, control).value
    getattr(shown, control).value = value
    second = picture(shown), shown.readout(), shown.alt()
    assert all(a != b for a, b in zip(first, second, strict=True))
    getattr(shown, control).value = old
    assert (picture(shown), shown.readout(), shown.alt()) == first


def test_the_time_has_controls_of_its_own():
    shown = explorer()
    before, words = picture(shown), {shown.readout()}
    for control, value in ((shown.gpu, "H100 80GB"), (shown.tokens, "1 billion"), (shown.mfu, 0.25)):
        control.value = value
        words.add(shown.readout())
    assert len(words) == 4
    assert picture(shown) == before


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_size(method):
    shown = explorer(method=method)
    assert shown.run is not None
    assert (shown.file_bytes == shown.run.weights_file_bytes) == method.startswith("full")
    shown.dtype.value = "float32"  # in which there are no master copies
    assert shown.run is not None
    assert shown.run.memory.kinds["master copies"] == 0


def test_targets_are_those_of_the_model():
    shown = explorer()
    shown.targets.value = "query and value"
    shown.model.value = "Phi-3-mini"  # its projections are fused
    assert "query and value" not in shown.targets.options
    assert shown.run.counts.trainable == budget("Phi-3-mini").counts.trainable
    shown.targets.value = "MLP"
    names = {path.rpartition(".")[2] for path in shown.run.plan.sites}
    assert names == {"gate_up_proj", "down_proj"}


def test_a_run_that_does_not_exist_is_told_and_left_again():
    shown = explorer(model="Mixtral-8x7B")
    shown.method.value = "dora"
    assert shown.run is None
    assert "DoRA is for linear layers" in shown.readout()
    assert "No such run" in shown.alt()
    shown.method.value = "lora"
    assert shown.run.counts == budget("Mixtral-8x7B").counts


def test_every_recorded_run_stands_beside_its_prediction():
    results = json.loads((MEASUREMENTS / "memory_accounting.json").read_text(encoding="utf-8"))["results"]
    peaks = {row["measured"]["peak"] for row in results}
    shown, seen = explorer(models=("Llama-3.2-1B", "Llama-3.2-3B", "Llama-3-8B")), 0
    for title in shown.recorded.options[1:]:
        shown.recorded.value = title
        known = shown.known
        if known.peak:
            assert known.peak in peaks
            assert shown.run.memory.peak == pytest.approx(known.peak, rel=1e-4)
            assert f"{known.peak / 1e9:,.2f} GB" in shown.readout()
            assert "without a GPU" in shown.readout()
        else:
            assert shown.run.counts.trainable == known.parameters
            assert shown.file_bytes == known.file
            assert "(+0 here)" in shown.readout()
        seen += 1
    assert seen >= 18
    shown.rank.value = 256  # another setting is no longer that run
    assert shown.recorded.value == NOTHING
    assert "No GPU has run this setting" in shown.readout()


def test_the_known_runs_are_those_whose_model_is_there():
    assert known_runs(("Llama-3.2-1B",), RANKS).keys() < known_runs(("Llama-3.2-1B", "Llama-3.2-3B"), RANKS).keys()
    assert any(known.setting["targets"] == QV for known in known_runs(("Llama-3.2-3B",), RANKS).values())


def test_an_explorer_that_cannot_start_there_is_refused():
    with pytest.raises(ValueError, match=r"rank must be one of 1, 2, .* got 3"):
        explorer(rank=3)
    with pytest.raises(ValueError, match="model must be one of"):
        explorer(model="Llama-3-8B")


@pytest.mark.parametrize("make", [explorer, cost_explorer])
def test_displays_a_view_a_picture_and_words(monkeypatch, make):
    shown, outputs = make(), []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata=None: outputs.append((data, metadata)))
    shown._ipython_display_()
    (data, metadata), (words, _) = outputs
    assert data[VIEW]["model_id"] == shown.box.model_id
    assert data["text/plain"] == metadata["image/png"]["alt"] == shown.alt()
    assert shown.alt() in words["text/plain"]


def test_a_slider_waits_for_no_model():
    """Changes are arithmetic and a blit: a median far below what a hand notices (the bound is in processor time)."""
    shown, times = explorer(), []
    for control in (shown.rank, shown.batch, shown.length):
        for value in [option for option in control.options if option != control.value]:
            began = time.process_time()
            control.value = value
            times.append(time.process_time() - began)
    assert statistics.median(times) < 0.08


# Hours and money


def test_hours_and_money_are_the_librarys():
    shown = cost_explorer("Llama-3-8B", "lora", 10_000, 1024)
    shown.epochs.value, shown.gpus.value, shown.mfu.value, shown.price.value = 3, 4, 0.25, 2.5
    run = budget("Llama-3-8B", "lora", length=1024, checkpointing=True)
    tokens = 3 * 10_000 * 1024
    gpu_hours = run.seconds("A100 80GB", tokens, 0.25) / 3600
    cost = shown.cost
    assert (cost.tokens, cost.flops) == (tokens, pytest.approx(run.flops_per_token * tokens))
    assert (cost.gpu_hours, cost.hours) == (pytest.approx(gpu_hours), pytest.approx(gpu_hours / 4))
    assert cost.money == pytest.approx(run.cost("A100 80GB", tokens, 2.5, 0.25))
    assert f"${cost.money:,.0f}" in shown.readout()
    assert (*shown._point.get_xdata(), *shown._point.get_ydata()) == pytest.approx((cost.hours, cost.money))


def test_the_claim_is_reached_at_the_mfu_and_price_that_it_implies():
    shown = cost_explorer(claim=(100.0, 8_000.0))
    shown.mfu.value = 0.2
    implied = float(shown.readout().split("an mfu of ")[1].split("%")[0]) / 100
    price = float(shown.readout().split("here, and $")[1].split(" ")[0])
    hours = budget("Llama-2-70B", "full", length=512, checkpointing=True).seconds(
        "A100 80GB", shown.cost.tokens, implied
    )
    assert hours / 3600 / 8 == pytest.approx(100, rel=0.01)
    assert price * 100 * 8 == pytest.approx(8_000)


def test_two_sliders_bring_the_run_to_the_claim_and_neither_alone():
    """The work moves it along the line of its price, the price off that line: as the lesson says."""
    shown = cost_explorer()
    start = shown.cost
    shown.epochs.value = round(shown.claim[0] / start.hours)
    assert shown.cost.hours == pytest.approx(shown.claim[0], rel=0.01)
    assert shown.cost.money / shown.cost.hours == pytest.approx(start.money / start.hours)
    assert shown.cost.money < 0.2 * shown.claim[1]
    shown.price.value = shown.claim[1] / (shown.claim[0] * shown.gpus.value)
    assert shown.cost.money == pytest.approx(shown.claim[1], rel=0.01)
    shown.epochs.value, shown.mfu.value = 1, 0.3 * start.hours / shown.claim[0]  # the slider goes that low
    assert shown.cost.hours == pytest.approx(shown.claim[0], rel=0.01)
    shown.mfu.value, shown.gpus.value = 0.3, 16
    assert (shown.cost.hours, shown.cost.gpu_hours) == pytest.approx((start.hours / 2, start.gpu_hours))


def test_the_dashed_line_is_named_and_lies_where_its_name_says():
    shown = cost_explorer()
    shown.gpus.value, shown.price.value = 4, 2.5
    assert shown._rate.get_text() == "4 GPUs at $2.50 an hour"
    hours, money = (list(values) for values in shown._line.get_data())
    assert [m / h for h, m in zip(hours, money, strict=True)] == pytest.approx([10, 10])
    x, y = shown._rate.get_position()
    assert y == pytest.approx(10 * x, rel=0.2)


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("model", "Llama-3-8B"),
        ("method", "lora"),
        ("checkpointing", False),
        ("examples", 1_000),
        ("length", 4096),
        ("epochs", 5),
        ("gpu", "H100 80GB"),
        ("gpus", 64),
        ("mfu", 0.05),
        ("price", 9.0),
    ],
)
def test_every_assumption_changes_picture_and_words(control, value):
    shown = cost_explorer()
    before = picture(shown), shown.readout(), shown.alt() if control != "price" else ""
    getattr(shown, control).value = value
    after = picture(shown), shown.readout(), shown.alt()
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_a_cost_that_cannot_start_there_is_refused():
    with pytest.raises(ValueError, match="claim must be positive"):
        cost_explorer(claim=(0.0, 5.0))
    with pytest.raises(ValueError, match="length must be one of"):
        cost_explorer(length=500)


# Figures


def test_bars_end_where_their_parts_add_up():
    fig = stacked_bars({"a": {"x": 3.0, "y": 1.0}, "b": {"y": 6.0}}, "GB", "a title", {"limit": 5.0})
    (ax,) = fig.axes
    ends = {}
    for patch in ax.patches:
        row = round(patch.get_y() + patch.get_height() / 2)
        ends[row] = max(ends.get(row, 0), patch.get_x() + patch.get_width())
    assert ends == {0: 4.0, 1: 6.0}
    assert {text.get_text() for text in ax.texts} == {"4.0", "6.0"}
    assert ax.lines[0].get_xdata()[0] == 5.0
    legend = {text.get_text() for text in fig.legends[0].get_texts()}
    assert legend == {"x", "y", "limit"}
    tiny = stacked_bars({"a": {"x": 3.0, "y": 2.0, "z": 0.001}}, "GB", "a title")  # too narrow to see in any bar
    assert {text.get_text() for text in tiny.legends[0].get_texts()} == {"x", "y"}
    shares = stacked_bars({"a": {"x": 3.0, "y": 1.0}}, "%", "a title", share=True).axes[0].patches
    assert [patch.get_width() for patch in shares] == [75.0, 25.0]


def test_figures_of_nothing_are_refused():
    with pytest.raises(ValueError, match="bars is empty"):
        stacked_bars({}, "GB", "t")
    with pytest.raises(ValueError, match="negative"):
        stacked_bars({"a": {"x": -1.0}}, "GB", "t")
    with pytest.raises(ValueError, match="'y' has shape"):
        cost_curves([1, 2], {"y": [1.0]}, "x", "y", "t")


def test_the_models_to_explore_are_known():
    assert set(budget_explorer().model.options) <= set(MODELS)
