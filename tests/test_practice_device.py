"""Arguments for each device: they construct on this machine, with the questions about a GPU answered for it."""

import dataclasses
from unittest import mock

import pytest
import torch
from transformers import TrainingArguments
from trl import SFTConfig

from lora_lab.practice.device import best_device, device_arguments, trackers, training_arguments


@pytest.mark.parametrize("kind", [SFTConfig, TrainingArguments])
@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
def test_the_arguments_of_every_device_construct(tmp_path, device, kind):
    asked = ("is_torch_bf16_gpu_available", "is_torch_tf32_available")
    with (
        mock.patch.multiple("transformers.training_args", **{name: lambda: True for name in asked}),
        mock.patch("transformers.training_args.enable_tf32"),
    ):
        made = kind(**training_arguments(tmp_path, device, max_steps=7))
    assert made.max_steps == 7
    assert (made.bf16, made.fp16) == (device == "cuda", False)
    assert made.gradient_checkpointing is (device == "cuda")
    assert made.use_cpu is (device == "cpu")
    assert made.get_warmup_steps(200) == 10


def test_old_gpus_get_fp16_and_no_tf32():
    old, new = (device_arguments("cuda", capability=c) for c in ((7, 5), (8, 6)))
    assert (old["fp16"], old["bf16"], "tf32" in old) == (True, False, False)
    assert (new["fp16"], new["bf16"], new["tf32"]) == (False, True, True)
    fields = {field.name for kind in (SFTConfig, TrainingArguments) for field in dataclasses.fields(kind)}
    assert set(old) | set(new) <= fields


def test_the_device_is_the_best_one_that_answers():
    def found(cuda: bool, mps: bool) -> str:
        with (
            mock.patch.object(torch.cuda, "is_available", return_value=cuda),
            mock.patch.object(torch.backends.mps, "is_available", return_value=mps),
        ):
            return best_device()

    assert [found(True, True), found(False, True), found(False, False)] == ["cuda", "mps", "cpu"]
    with pytest.raises(ValueError, match="device must be one of"):
        device_arguments("tpu")


def test_trackers_are_those_that_can_be_imported():
    with mock.patch("importlib.util.find_spec", lambda name: object() if name == "wandb" else None):
        assert trackers() == ["wandb"]
