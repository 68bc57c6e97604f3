"""A run that was stopped or killed and resumed gives the numbers of one that never stopped, to the bit."""

import numpy as np
import pytest
import torch
from models_for_tests import (
    ALPHA,
    RANK,
    TRAIN_EXAMPLES,
    TRAIN_STEPS,
    assert_same,
    llama,
    run,
    seeded,
    small,
    unchanged,
)
from torch import nn

from lora_lab import inject, lora_layers
from lora_lab.init import Start


@pytest.mark.parametrize("stop", [1, 5, TRAIN_STEPS - 1, TRAIN_STEPS])
def test_stopped_and_resumed_equals_uninterrupted(stop, tmp_path):
    whole, model, twin = (small(dropout=0.3) for _ in range(3))
    expected, file = run(whole), tmp_path / "a folder" / "run.pt"
    first = run(model, checkpoint=file, on_step=lambda done, _: done == stop)
    assert first.steps == list(range(1, stop + 1))
    torch.manual_seed(99)  # neither the state of the process nor the model's own numbers matter to the second part
    assert run(twin, checkpoint=file) == expected
    assert_same(twin, whole)
    assert run(small(dropout=0.3), checkpoint=file) == expected  # a finished run is only read
    assert [path.name for path in file.parent.iterdir()] == ["run.pt"]


def test_a_checkpoint_is_replaced_and_never_written_over(tmp_path):
    """A second name of the old file still holds the old checkpoint: no moment at which half of one stood there."""
    file = tmp_path / "run.pt"
    run(small(), checkpoint=file, on_step=lambda *_: True)
    before = file.read_bytes()
    (tmp_path / "held").hardlink_to(file)
    run(small(), checkpoint=file)
    assert (tmp_path / "held").read_bytes() == before != file.read_bytes()


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("where", ["on_step", "forward", "saving"])
def test_killed_and_resumed_equals_uninterrupted(where, error, tmp_path, monkeypatch):
    whole, model, twin = (small(dropout=0.3) for _ in range(3))
    expected, file, calls = run(whole), tmp_path / "run.pt", []

    def kill(*args, **kwargs):
        calls.append(1)
        if len(calls) == (2 if where == "saving" else 8):
            raise error

    if where == "forward":
        model.register_forward_pre_hook(kill)
    if where == "saving":
        real = torch.save
        monkeypatch.setattr(torch, "save", lambda state, path: (real(state, path), kill()))
    random_state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    with pytest.raises(error):
        run(model, checkpoint=file, save_every=3, on_step=kill if where == "on_step" else None)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    monkeypatch.undo()
    done = []
    assert run(twin, checkpoint=file, save_every=3, on_step=lambda step, _: done.append(step)) == expected
    assert done[0] == (4 if where == "saving" else 7)  # from the last whole checkpoint
    assert_same(twin, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


CHANGES = {  # what is different at the second start: settings of the run, of the model; what the message names
    "steps": ({"steps": 13}, {}, "steps"),
    "lr": ({"lr": 0.03}, {}, "lr"),
    "batch size": ({"batch_size": 5}, {}, "batch_size"),
    "warmup": ({"warmup": 0.5}, {}, "warmup"),
    "weight decay": ({"weight_decay": 0.0}, {}, "weight_decay"),
    "clip": ({"clip": 0.5}, {}, "clip"),
    "seed": ({"seed": 1}, {}, "seed"),
    "pad": ({"pad_id": 1}, {}, "pad_id"),
    "fewer examples": ({"examples": TRAIN_EXAMPLES[:-1]}, {}, "examples"),
    "other examples": ({"examples": TRAIN_EXAMPLES[::-1]}, {}, "examples"),
    "alpha": ({}, {"alpha": ALPHA + 1}, "adapters"),
    "dropout": ({}, {"dropout": 0.1}, "adapters"),
    "rank, same scale": ({}, {"rank": 1, "alpha": ALPHA / RANK}, "trained parameters"),
    "targets": ({}, {"targets": ["v_proj"]}, "adapters, trained parameters"),
}


@pytest.mark.parametrize(("run_changes", "model_changes", "named"), CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_of_another_run_is_refused(run_changes, model_changes, named, tmp_path):
    file = tmp_path / "run.pt"
    run(small(), checkpoint=file, on_step=lambda *_: True)
    before, model = file.read_bytes(), small(**model_changes)
    with unchanged(model), pytest.raises(ValueError, match=f"a run with other {named}: delete it, or name another"):
        run(model, checkpoint=file, **run_changes)
    assert file.read_bytes() == before


UNREADABLE = {
    "empty": b"",
    "text": b"not a checkpoint",
    "JSON": b'{"settings": {}}',
    "cut": None,
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_checkpoint_is_refused(content, tmp_path):
    file, model = tmp_path / "run.pt", small()
    run(small(), checkpoint=file, on_step=lambda *_: True)
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with unchanged(model), pytest.raises(ValueError, match=r"no readable checkpoint \(\w+\): delete it to start"):
        run(model, checkpoint=file)


@pytest.mark.parametrize("other", [{}, {"settings": 3}, {"history": {}}, [1], nn.Linear(2, 2)], ids=str)
def test_another_file_of_torch_is_refused(other, tmp_path):
    file, model = tmp_path / "run.pt", small()
    torch.save(other, file)
    with unchanged(model), pytest.raises(ValueError, match="no readable checkpoint"):
        run(model, checkpoint=file)


def frozen_a(seed: int) -> nn.Module:
    """Only B trains, beside a random A."""

    def start(weight, rank, scale):
        generator = torch.Generator().manual_seed(seed)
        A = torch.randn(rank, weight.shape[1], generator=generator)
        return Start(A, torch.zeros(len(weight), rank), trains="B")

    return inject(llama(layers=1), ["q_proj", "up_proj"], RANK, ALPHA, init=start)


def test_a_frozen_factor_is_part_of_the_run(tmp_path):
    """Resumed beside another A, the B of the checkpoint would mean something else: A comes back with it."""
    whole, model = frozen_a(1), frozen_a(1)
    expected = run(whole)
    run(model, checkpoint=tmp_path / "run", on_step=lambda done, _: done == 5)
    other = frozen_a(2)
    assert run(other, checkpoint=tmp_path / "run") == expected
    assert all(torch.equal(layer.A, lora_layers(whole)[n].A) for n, layer in lora_layers(other).items())
    with unchanged(small()), pytest.raises(ValueError, match=r"other .*adapters"):
        run(small(), checkpoint=tmp_path / "run")


def test_another_base_is_another_run(tmp_path):
    targets = ["q_proj", "up_proj"]

    def start(init=True, **more) -> nn.Module:
        return seeded(lambda: inject(llama(layers=1), targets, RANK, ALPHA, init=init, **more), torch.float32)

    for name, build, others in (
        ("codes", lambda: start(quantize="nf4"), [start(), start(quantize="int8")]),
        ("shift", lambda: start("pissa"), [start(), start("olora")]),
    ):
        path = tmp_path / name
        expected = run(build())
        run(build(), checkpoint=path, on_step=lambda done, _: done == 5)
        assert run(build(), checkpoint=path) == expected
        for other in others:
            with unchanged(other), pytest.raises(ValueError, match="belongs to a run with other"):
                run(other, checkpoint=path)


def test_a_shift_that_came_out_negated_is_the_same_shift(tmp_path):
    def start(sign: float) -> nn.Module:
        model = seeded(lambda: inject(llama(layers=1), ["q_proj"], RANK, ALPHA, init="pissa"), torch.float32)
        for layer in lora_layers(model).values():
            layer.A0.mul_(sign)
            layer.B0.mul_(sign)
        return model

    run(start(1), checkpoint=tmp_path / "run", on_step=lambda done, _: done == 5)
    assert run(start(-1), checkpoint=tmp_path / "run").steps[-1] == TRAIN_STEPS


def test_numbers_of_numpy_make_a_checkpoint_that_can_be_read(tmp_path):
    settings = {"lr": np.float64(0.02), "clip": np.float64(1.0), "weight_decay": np.float64(0.1)}
    model = seeded(lambda: inject(llama(layers=1), ["q_proj"], RANK, ALPHA, np.float64(0.1)), torch.float32)
    run(model, checkpoint=tmp_path / "run", on_step=lambda done, _: done == 5, **settings)
    assert run(model, checkpoint=tmp_path / "run", **settings).steps[-1] == TRAIN_STEPS
