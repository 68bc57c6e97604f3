"""The training loop against a hand-written one in plain torch."""

import math

import pytest
import torch
from models_for_tests import (
    TRAIN_EXAMPLES,
    TRAIN_STEPS,
    VOCAB,
    assert_same,
    llama,
    run,
    small,
    state_of,
    unchanged,
)
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lora_lab import History, lora_layers, merge_
from lora_lab.train import batch_at, collate, learning_rate, mean_loss


def test_loss_falls_and_only_the_factors_change():
    model = small()
    before = state_of(model)
    history = run(model, steps=30)
    assert history.steps == list(range(1, 31))
    assert history.loss[-1] < 0.5 * history.loss[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"{name}.{factor}" for name in lora_layers(model) for factor in "AB"}


def by_hand(model: nn.Module, clip: float) -> History:
    """The same run in plain torch: no function of `lora_lab.train` but the order of the examples."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    history, warm = History(), 3  # a quarter of twelve
    for step in range(TRAIN_STEPS):
        after = (step - warm) / (TRAIN_STEPS - warm)
        optimizer.param_groups[0]["lr"] = 0.02 * (
            (step + 1) / warm if step < warm else (1 + math.cos(math.pi * after)) / 2
        )
        batch = batch_at(TRAIN_EXAMPLES, 4, 0, step)
        ids, labels = (
            pad_sequence([torch.tensor(e[key]) for e in batch], batch_first=True, padding_value=fill)
            for key, fill in (("input_ids", 0), ("labels", -100))
        )
        mask = torch.arange(ids.shape[1]) < torch.tensor([[len(e["input_ids"])] for e in batch])
        scores = model(input_ids=ids, attention_mask=mask.long()).logits
        loss = nn.functional.cross_entropy(scores[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1))
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * min(1, clip / norm)
        optimizer.step()
        history.loss.append(loss.item())
        history.grad_norm.append(norm.item())
        history.lr.append(optimizer.param_groups[0]["lr"])
    return history


@pytest.mark.parametrize("clip", [0.1, 100.0])
def test_equals_a_hand_written_loop(clip):
    model, twin = small(), small()
    history, expected = run(model, clip=clip), by_hand(twin, clip)
    assert any(norm > 0.1 for norm in history.grad_norm)
    assert all(norm < 100 for norm in history.grad_norm)
    for key in ("loss", "grad_norm", "lr"):
        assert getattr(history, key) == pytest.approx(getattr(expected, key), rel=1e-4)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (10, 10), (10, 99), (1, 1), (9, 3)])
def test_each_epoch_sees_every_example_once(size, batch):
    data, per_epoch = list(range(size)), math.ceil(size / batch)
    epochs = []
    for epoch in range(3):
        batches = [batch_at(data, batch, 5, epoch * per_epoch + i) for i in range(per_epoch)]
        assert [len(b) for b in batches[:-1]] == [batch] * (per_epoch - 1)
        epochs.append([x for b in batches for x in b])
        assert sorted(epochs[-1]) == data
    assert size == 1 or epochs[0] != epochs[1] != epochs[2]


def test_a_batch_depends_on_its_arguments_alone():
    expected = [batch_at(TRAIN_EXAMPLES, 4, 7, step) for step in range(9)]
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert [batch_at(TRAIN_EXAMPLES, 4, 7, step) for step in reversed(range(9))] == expected[::-1]
    assert torch.equal(torch.get_rng_state(), before)
    assert [batch_at(TRAIN_EXAMPLES, 4, 8, step) for step in range(9)] != expected


def test_collate_pads_like_torch():
    batch = collate(TRAIN_EXAMPLES[:4], pad_id=9)
    for key, fill in (("input_ids", 9), ("labels", -100)):
        rows = [torch.tensor(example[key]) for example in TRAIN_EXAMPLES[:4]]
        assert torch.equal(batch[key], pad_sequence(rows, batch_first=True, padding_value=fill))
        assert batch[key].dtype == torch.int64
    assert batch["attention_mask"].sum(1).tolist() == [len(e["input_ids"]) for e in TRAIN_EXAMPLES[:4]]
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()  # ones, then zeros


def test_padding_changes_no_loss():
    """The loss of a batch is the mean over its labelled tokens, however long its rows are."""
    model, weights, losses = small(), [], []
    for example in TRAIN_EXAMPLES[:4]:
        losses.append(model(**collate([example])).loss.item())
        weights.append(sum(label != -100 for label in example["labels"][1:]))
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert len({len(e["labels"]) for e in TRAIN_EXAMPLES[:4]}) > 1
    assert model(**collate(TRAIN_EXAMPLES[:4])).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_mean_loss_counts_every_labelled_token_once(batch_size):
    model, total, tokens = small(dropout=0.3).train(), 0.0, 0
    unlabelled = {"input_ids": [5, 6], "labels": [5, -100]}  # nothing stands before the first token
    examples = [*TRAIN_EXAMPLES, unlabelled]
    with unchanged(model):
        loss = mean_loss(model, examples, batch_size)
    model.eval()
    for example in TRAIN_EXAMPLES:
        scores = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1].log_softmax(-1)
        for row, label in zip(scores, example["labels"][1:], strict=True):
            if label != -100:
                total, tokens = total - row[label].item(), tokens + 1
    assert loss == pytest.approx(total / tokens, rel=1e-5)
    for wrong, words in (([], "examples is empty"), ([unlabelled], "no label to predict")):
        with unchanged(model), pytest.raises(ValueError, match=words):
            mean_loss(model, wrong)


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 1.0])
def test_learning_rate(steps, warmup):
    rates = [learning_rate(step, steps, 0.5, warmup) for step in range(steps)]
    rising = max(1, round(warmup * steps))
    assert rates[:rising] == pytest.approx([0.5 * (i + 1) / rising for i in range(rising)])
    assert max(rates) == 0.5
    assert min(rates) > 0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rising))
    for rate in rates[rising:]:
        assert rate == pytest.approx(cosine.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        cosine.step()


def test_random_state_and_modes_are_left_as_found():
    model = small(dropout=0.3).eval()
    model.model.layers[0].mlp.train()  # a part in another mode than the whole
    before, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    seen = []
    run(model, on_step=lambda *_: seen.append(all(m.training for m in model.modules())))
    assert seen == [True] * TRAIN_STEPS
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes


def test_the_run_does_not_depend_on_the_global_seed_or_on_what_on_step_does():
    def meddle(done, history):
        torch.rand(done)
        model.eval()

    twin, model = small(dropout=0.3), small(dropout=0.3)
    expected = run(twin)
    torch.manual_seed(4321)
    assert run(model, on_step=meddle) == expected
    assert_same(model, twin)


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds(seed):
    runs = [run(small(dropout=0.3), seed=s).loss for s in (seed, seed, seed + 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite_stops_with_the_parameters_before_that_step(what):
    expected, model, calls = [], small(), []

    def spoil(module, args, output):
        calls.append(1)
        if len(calls) == 4:
            # The square root of zero is finite, its slope is not.
            output.loss = output.loss * math.nan if what == "loss" else output.loss + (output.loss * 0).sqrt()
            expected.append(state_of(model))

    model.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=f"{what}.* is nan at step 4: lower the learning rate"):
        run(model)
    assert all(torch.equal(p, expected[0][name]) for name, p in model.named_parameters())


BAD = {
    "steps 0": ({"steps": 0}, "steps must be a whole number from 1 .* got 0"),
    "steps 1.5": ({"steps": 1.5}, "steps .* got 1.5"),
    "steps True": ({"steps": True}, "steps .* got True"),
    "batch 0": ({"batch_size": 0}, "batch_size .* got 0"),
    "lr 0": ({"lr": 0}, "lr must be a positive finite number, got 0"),
    "lr nan": ({"lr": math.nan}, "lr .* got nan"),
    "lr inf": ({"lr": math.inf}, "lr .* got inf"),
    "lr str": ({"lr": "1e-3"}, "lr .* got '1e-3'"),
    "clip 0": ({"clip": 0.0}, "clip .* got 0.0"),
    "clip None": ({"clip": None}, "clip .* got None"),
    "warmup 2": ({"warmup": 2}, "warmup is a share of the steps, 0 to 1, got 2"),
    "warmup nan": ({"warmup": math.nan}, "warmup .* got nan"),
    "decay -1": ({"weight_decay": -1.0}, "weight_decay"),
    "seed -1": ({"seed": -1}, "seed must be a whole number from 0 .* got -1"),
    "seed 1.5": ({"seed": 1.5}, "seed .* got 1.5"),
    "seed huge": ({"seed": 2**64}, "seed .* got 18446744073709551616"),
    "save_every 0": ({"save_every": 0}, "save_every .* got 0"),
    "no examples": ({"examples": []}, "examples is empty"),
    "lengths": (
        {"examples": [*TRAIN_EXAMPLES, {"input_ids": [1, 2], "labels": [1]}]},
        "example 10: 2 input_ids, 1 labels",
    ),
    "no label": ({"examples": [{"input_ids": [1, 2], "labels": [-100] * 2}]}, "example 0: every label is -100"),
}


@pytest.mark.parametrize(("settings", "words"), BAD.values(), ids=BAD)
def test_bad_settings_are_refused_before_anything_changes(settings, words, tmp_path):
    model = small()
    with unchanged(model), pytest.raises(ValueError, match=words):
        run(model, **{"checkpoint": tmp_path / "run.pt", **settings})
    assert not list(tmp_path.iterdir())


def test_there_must_be_something_to_train():
    for model, words in (
        (llama(layers=1).requires_grad_(False), "nothing to train: no parameter"),
        (merge_(small()), "merged into the base, where they cannot train: unmerge_"),
    ):
        with unchanged(model), pytest.raises(ValueError, match=words):
            run(model)


def test_a_model_without_adapters_trains_whole():
    model = llama(layers=1)
    before = state_of(model)
    run(model, steps=3)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_progress_bar_is_all_that_is_printed(capsys, monkeypatch):
    run(small())
    monkeypatch.setenv("TQDM_DISABLE", "1")
    run(small(), progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("TQDM_DISABLE")
    run(small(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "0/12" in err
    assert err.rpartition("\r")[2] == ""  # and it is wiped at the end


@pytest.mark.parametrize("ratio", [4.0, 0.5])
def test_lora_plus_is_two_groups_under_one_schedule(ratio):
    """The rate of B is `ratio` times that of A in every step; a run with another ratio does not resume this one."""
    model, twin = small(), small()
    history = run(model, lr_ratio=ratio, clip=1e9)
    factors = {f: [getattr(layer, f) for layer in lora_layers(twin).values()] for f in "AB"}
    optimizers = {f: torch.optim.AdamW(factors[f], weight_decay=0.1) for f in "AB"}
    twin.train()
    for step, rate in enumerate(history.lr):
        for factor, optimizer in optimizers.items():
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = rate * (ratio if factor == "B" else 1)
        twin(**collate(batch_at(TRAIN_EXAMPLES, 4, 0, step))).loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
    assert_same(model, twin.eval())
    assert not torch.equal(lora_layers(model)["model.layers.0.mlp.up_proj"].B, small().model.layers[0].mlp.up_proj.B)


def test_lora_plus_resumes_only_with_its_own_ratio(tmp_path):
    whole, model = small(), small()
    expected = run(whole, lr_ratio=4.0)
    run(model, lr_ratio=4.0, checkpoint=tmp_path / "run", on_step=lambda done, _: done == 5)
    for other in (3.0, 1.0):
        with pytest.raises(ValueError, match="other lr_ratio"):
            run(small(), lr_ratio=other, checkpoint=tmp_path / "run")
    assert run(small(), lr_ratio=4.0, checkpoint=tmp_path / "run") == expected
