"""The live view in a real run of TRL's trainer, and with a clock that the test holds."""

from types import SimpleNamespace

import pytest
from practice_for_tests import tokenizer, trainer

from lora_lab.practice.callbacks import Samples
from lora_lab.practice.data import completion_dataset
from lora_lab.tasks import load
from lora_lab.widgets.live_training import Feed, live_view

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_the_view_holds_what_the_trainer_logs_and_its_static_form_has_no_timings(tmp_path):
    def run(folder):
        samples = Samples(tokenizer(), load("support_desk", "validation", 1), every=2)
        view = live_view(samples=samples)
        made = trainer(
            folder,
            callbacks=[samples, view.callback],
            max_steps=4,
            evaluation=completion_dataset("support_desk", "validation", 8),
            eval_strategy="steps",
            eval_steps=2,
        )
        made.train()
        return view, made.state.log_history

    (view, log), (again, _) = run(tmp_path / "a"), run(tmp_path / "b")
    assert view.feed.loss == {row["step"]: row["loss"] for row in log if "loss" in row}
    assert view.feed.validation == {row["step"]: row["eval_loss"] for row in log if "eval_loss" in row}
    assert view.norms.total == pytest.approx([row["grad_norm"] for row in log if "grad_norm" in row], rel=1e-5)
    assert view.feed.tokens == [row["num_tokens"] for row in log if "loss" in row][-1]
    assert view.feed.seconds > 0
    assert "tokens/s" in view.status.value
    assert view.status.value.endswith("Done.")
    first, second = (each._repr_mimebundle_() for each in (view, again))
    assert first[0]["image/png"] == second[0]["image/png"]
    assert first[0]["text/plain"] == second[0]["text/plain"] == first[1]["image/png"]["alt"]
    assert "tokens/s" not in first[0]["text/plain"]
    assert view.samples.rows[-1]["answers"][0] in view.alt()
    assert "application/vnd.jupyter.widget-view+json" in first[0]


def test_speed_and_time_left_count_training_alone():
    now = [0.0]
    view = live_view(total_steps=10, clock=lambda: now[0])
    told = SimpleNamespace(global_step=0, max_steps=10, num_input_tokens_seen=0)
    listener = view.callback
    listener.on_train_begin(None, told, None)
    for step in (1, 2):
        listener.on_step_begin(None, told, None)
        now[0] += 3.0
        told.global_step = step
        listener.on_step_end(None, told, None)
        listener.on_log(None, told, None, logs={"loss": 2.0, "num_tokens": 300.0 * step})
        now[0] += 100.0  # an evaluation
    assert view.feed.tokens_per_second == pytest.approx(100)
    assert view.feed.left == pytest.approx(8 * 3)
    assert view.status_text() == "step 2 of 10, loss 2.000, 100 tokens/s, 24 s left"
    listener.on_train_end(None, told, None)
    assert view.status_text().endswith("Ended early, after 2 steps.")


def test_nothing_is_claimed_before_it_is_known():
    assert (Feed().tokens_per_second, Feed(10).left) == (None, None)
    assert "nothing has been trained" in live_view().alt()
    with pytest.raises(ValueError, match="total_steps = 0"):
        live_view(total_steps=0)


def test_the_axes_grow_until_they_hold_every_value():
    view = live_view(total_steps=5)
    view.feed.loss = {1: 250.0, 2: 0.004, 3: float("nan")}
    view.draw()
    low, high = view._picture.loss.get_ylim()
    assert low <= 0.004 < 250 <= high
