"""Whatever is wrong with an adapter folder, the model stays as it was; whatever stops a save, the old adapter does."""

import errno
import json
import math
import os
import pathlib

import pytest
import safetensors.torch
import torch
from models_for_tests import (
    ALPHA,
    RANK,
    assert_unchanged,
    fill,
    fingerprint,
    linear,
    llama,
    logits,
    plain,
    saved,
    unchanged,
)
from torch import nn

from lora_lab import LoRALinear, adapter_format, eject, inject, load_adapter, lora_layers, save_adapter
from lora_lab.adapter_format import CONFIG, WEIGHTS

TARGETS = ["q_proj", "down_proj"]


def edit_config(folder: pathlib.Path, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def edit_weights(folder: pathlib.Path, change) -> None:
    """Rewrite the tensors without the digest, as another program would."""
    state = safetensors.torch.load_file(folder / WEIGHTS)
    change(state)
    safetensors.torch.save_file(state, folder / WEIGHTS)


def first(state: dict, end: str = "lora_A.weight") -> str:
    return next(key for key in sorted(state) if key.endswith(end))


def pickled(folder: pathlib.Path) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    torch.save(state, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def swapped_config(folder: pathlib.Path) -> None:
    other = fill(inject(llama(), ["q_proj", "down_proj"], RANK, ALPHA + 1))
    save_adapter(other, folder / "other")
    os.replace(folder / "other" / CONFIG, folder / CONFIG)


def set_value(value: float):
    return lambda state: state[first(state)].view(-1)[3:4].fill_(value)


KEY = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
BROKEN = {  # what is done to the folder, error, words of the message
    "no folder": (lambda f: os.rename(f, f"{f}.gone"), FileNotFoundError, f"{CONFIG} does not exist"),
    "no config": (lambda f: (f / CONFIG).unlink(), FileNotFoundError, f"{CONFIG} does not exist"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, f"{WEIGHTS} does not exist"),
    "pickle": (pickled, FileNotFoundError, "adapter_model.bin files are never read"),
    "empty config": (lambda f: (f / CONFIG).write_text(""), ValueError, "is not JSON"),
    "half a config": (lambda f: (f / CONFIG).write_text('{"r": 4,'), ValueError, "is not JSON"),
    "binary config": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), ValueError, "is not JSON"),
    "a list": (lambda f: (f / CONFIG).write_text("[1]"), ValueError, "does not describe a LoRA adapter"),
    "IA3": (lambda f: edit_config(f, peft_type="IA3"), ValueError, "does not describe a LoRA adapter"),
    "DoRA": (lambda f: edit_config(f, use_dora=True), ValueError, "magnitude is missing"),
    "modules_to_save": (lambda f: edit_config(f, modules_to_save=["lm_head"]), ValueError, "modules_to_save"),
    "lora_bias": (lambda f: edit_config(f, lora_bias=True), ValueError, "lora_bias"),
    "bias": (lambda f: edit_config(f, bias="all"), ValueError, "bias = 'all'"),
    "pissa": (lambda f: edit_config(f, init_lora_weights="pissa"), ValueError, "'pissa' shifted the base"),
    "olora": (lambda f: edit_config(f, init_lora_weights="OLoRA"), ValueError, "'OLoRA' shifted the base"),
    "swapped config": (swapped_config, ValueError, "not of one save"),
    "rank in config": (lambda f: edit_config(f, r=RANK + 1), ValueError, "not of one save"),
    "r is no number": (lambda f: edit_config(f, r="4"), ValueError, "r must be a positive number, got '4'"),
    "no r": (lambda f: edit_config(f, r=None), ValueError, "r must be a positive number, got None"),
    "alpha 0": (lambda f: edit_config(f, lora_alpha=0), ValueError, "lora_alpha must be a positive number, got 0"),
    "dropout": (lambda f: edit_config(f, lora_dropout=1.5), ValueError, "dropout must be .* got 1.5"),
    "dropout str": (lambda f: edit_config(f, lora_dropout="x"), ValueError, "dropout must be .* got 'x'"),
    "pattern list": (lambda f: edit_config(f, rank_pattern=[1]), ValueError, "rank_pattern = .* does not map"),
    "pattern regex": (lambda f: edit_config(f, alpha_pattern={"(": 1}), ValueError, "alpha_pattern = .* does not map"),
    "NaN": (lambda f: edit_weights(f, set_value(float("nan"))), ValueError, "lora_A.weight holds NaN or infinity"),
    "infinity": (lambda f: edit_weights(f, set_value(float("inf"))), ValueError, "holds NaN or infinity"),
    "no tensor": (lambda f: edit_weights(f, dict.clear), ValueError, "holds no tensor"),
    "one factor": (lambda f: edit_weights(f, lambda s: s.pop(KEY)), ValueError, "has only lora_B"),
    "foreign tensor": (
        lambda f: edit_weights(f, lambda s: s.update(x=s[KEY] + 1)),
        ValueError,
        "unexpected tensor 'x'",
    ),
    "transposed": (
        lambda f: edit_weights(f, lambda s: s.update({KEY: s[KEY].T.contiguous()})),
        ValueError,
        r"down_proj.lora_A: config and base want \(4, 48\), the file has \(48, 4\)",
    ),
    "no safetensors": (
        lambda f: (f / WEIGHTS).write_bytes(b"PK\x03\x04" * 99),
        ValueError,
        "truncated or no safetensors",
    ),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), ValueError, "truncated or no safetensors"),
    "a folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), FileNotFoundError, "does not exist"),
}


@pytest.mark.parametrize(("damage", "error", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_changes_nothing(damage, error, words, tmp_path):
    folder, model = tmp_path / "adapter", llama()
    saved(folder)
    damage(folder)
    with unchanged(model), pytest.raises(error, match=words):
        load_adapter(model, folder)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 50, 300, 0.3, 0.6, 0.9, -100, -1])
def test_a_truncated_file_changes_nothing(cut, tmp_path):
    saved(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    model = llama()
    with unchanged(model), pytest.raises(ValueError, match="truncated or no safetensors"):
        load_adapter(model, tmp_path)


OTHER_BASES = {
    "wider": (lambda: llama(hidden=40), r"down_proj.lora_A: config and base want \(4, 56\), the file has \(4, 48\)"),
    "fewer layers": (lambda: llama(layers=1), r"wrong base: 2 of 4 layers .* \(model\.layers\.1\."),
    "another kind": (plain, "wrong base: 4 of 4 layers"),
    "injected": (lambda: inject(llama(), ["v_proj"], RANK, ALPHA), "already injected: eject it first"),
}


@pytest.mark.parametrize(("build", "words"), OTHER_BASES.values(), ids=OTHER_BASES)
def test_a_wrong_base_is_refused(build, words, tmp_path):
    saved(tmp_path)
    model = build()
    with unchanged(model), pytest.raises(ValueError, match=words):
        load_adapter(model, tmp_path)


def test_a_wrong_rank_in_a_file_without_digest(tmp_path):
    saved(tmp_path)
    edit_weights(tmp_path, lambda state: None)
    edit_config(tmp_path, r=RANK + 1)
    model = llama()
    with unchanged(model), pytest.raises(ValueError, match=r"config and base want \(5, 48\), the file has \(4, 48\)"):
        load_adapter(model, tmp_path)


NUMBERS = {"r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"}
GARBAGE = [None, True, 0, -1, 1.5, "x", "(", [], ["x"], {"x": "y"}, {"q_proj": None}, {"q_proj": -1}, {"(": 1}]


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
def test_any_field_may_hold_garbage(garbage, tmp_path):
    """Either the field says nothing about the numbers and they are as saved, or the folder is refused."""
    expected, model = logits(saved(tmp_path)), llama()
    edit_weights(tmp_path, lambda state: None)  # without the digest, which would refuse more
    text, before = (tmp_path / CONFIG).read_text(), fingerprint(model)
    for key in json.loads(text):
        (tmp_path / CONFIG).write_text(text)
        edit_config(tmp_path, **{key: garbage})
        try:
            load_adapter(model, tmp_path)
        except ValueError:
            assert_unchanged(model, before)
        else:
            assert torch.equal(logits(model), expected) or key in NUMBERS
            eject(model)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def another() -> nn.Module:
    return fill(inject(llama(), TARGETS, RANK + 1, ALPHA), seed=8)


@pytest.mark.parametrize(
    ("place", "name"), [(adapter_format, "save_file"), (pathlib.Path, "write_text"), (os, "replace")], ids=str
)
def test_a_full_disk_leaves_the_old_adapter(place, name, tmp_path, monkeypatch):
    model = saved(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = files(tmp_path)
    monkeypatch.setattr(place, name, full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(another(), tmp_path)
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == sorted([CONFIG, WEIGHTS, "notes.txt"])
    assert torch.equal(logits(load_adapter(llama(), tmp_path)), logits(model))


def test_a_kill_between_the_two_files_is_noticed(tmp_path, monkeypatch):
    saved(tmp_path)
    moves, replace = [], os.replace

    def killed(source, target):
        moves.append(target)
        if len(moves) == 2:
            raise SystemExit
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        save_adapter(another(), tmp_path)
    monkeypatch.undo()
    model = llama()
    with unchanged(model), pytest.raises(ValueError, match="not of one save: was a save interrupted"):
        load_adapter(model, tmp_path)
    save_adapter(another(), tmp_path)
    assert torch.equal(logits(load_adapter(model, tmp_path)), logits(another()))


def test_saving_replaces_two_files_and_leaves_the_others(tmp_path):
    (tmp_path / ".saving-of-a-killed-process").mkdir()
    (tmp_path / "README.md").write_text("mine")
    saved(tmp_path)
    save_adapter(another(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".saving-of-a-killed-process", "README.md", CONFIG, WEIGHTS]
    assert (tmp_path / "README.md").read_text() == "mine"
    assert torch.equal(logits(load_adapter(llama(), tmp_path)), logits(another()))


def not_finite() -> nn.Module:
    model = another()
    with torch.no_grad():
        list(lora_layers(model).values())[-1].B[0, 0] = math.nan
    return model


def mixed(**settings) -> nn.Module:
    model = plain()
    model.proj = LoRALinear(model.proj, 2, 3)
    model.my_proj = LoRALinear(model.my_proj, 2, 3, **settings)
    return model


UNSAVABLE = {
    "no adapter": (llama, "LlamaForCausalLM has no LoRA layer"),
    "a bare layer": (lambda: LoRALinear(linear(9, 6), RANK, ALPHA), "no LoRA layer below its root"),
    "NaN": (not_finite, "lora_B.weight holds NaN or infinity"),
    "two dropouts": (lambda: mixed(dropout=0.1), r"differ in lora_dropout \(\[0.0, 0.1\]\)"),
    "two scalings": (lambda: mixed(rslora=True), r"differ in use_rslora \(\[False, True\]\)"),
}


@pytest.mark.parametrize(("build", "words"), UNSAVABLE.values(), ids=UNSAVABLE)
def test_what_one_file_cannot_say_is_not_written(build, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_adapter(build(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_saving_leaves_the_model_alone(tmp_path):
    model = another().train()
    with unchanged(model):
        save_adapter(model, tmp_path / "a" / "b")
