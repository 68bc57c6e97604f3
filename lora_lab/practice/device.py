"""Which training arguments fit the device at hand: CUDA, Apple's MPS, or the CPU.

    SFTConfig(**training_arguments("out", max_steps=100, learning_rate=1e-3))

The same names go into transformers' `TrainingArguments` and TRL's `SFTConfig`. Every choice that depends on the device
stands in `device_arguments`; the rest are the course's own defaults, which any keyword overrides.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

DEVICES = ("cuda", "mps", "cpu")
AMPERE = (8, 0)  # compute capability of the first GPUs with bf16 and TF32 arithmetic
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")  # each one's package and its name in report_to


def best_device() -> str:
    """ "cuda" if there is a GPU of that kind, else "mps" on an Apple machine that has one, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_arguments(device: str | None = None, *, capability: tuple[int, int] | None = None) -> dict[str, Any]:
    """What depends on the device, as keywords for `TrainingArguments` and `SFTConfig`.

    cuda  autocast to bf16, or on GPUs before Ampere to fp16 with a loss scaler; TF32 where it exists; AdamW in one
          kernel; activations computed again in the backward pass instead of kept
    mps   fp32, no pinned memory (unified memory has no use for it)
    cpu   fp32, no pinned memory

    SFTConfig turns bf16 and checkpointing on unless told otherwise, so that both are always named here.
    device: None for `best_device()`. capability: of the GPU, (major, minor); None asks the first one, or, for
    arguments that are made for another machine, assumes (8, 0). Raises ValueError for any other device.
    """
    device = best_device() if device is None else device
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda":
        if capability is None:
            capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else AMPERE
        modern = tuple(capability) >= AMPERE
        found = {"use_cpu": False, "bf16": modern, "fp16": not modern, "optim": "adamw_torch_fused"}
        found |= {"tf32": True} if modern else {}
    else:
        found = {"use_cpu": device == "cpu", "bf16": False, "fp16": False, "optim": "adamw_torch"}
    return found | {"activation_checkpointing": device == "cuda", "dataloader_pin_memory": device == "cuda"}


def training_arguments(output_dir: str | Path, device: str | None = None, **more: Any) -> dict[str, Any]:
    """Keywords for `SFTConfig` or `TrainingArguments`: the course's defaults, then the device's, then `more`.

    The defaults are those of `lora_lab.train`: batches of 16, warm-up over 5 % of the steps, half a cosine to zero,
    gradients clipped at 1, no weight decay. Nothing is reported or saved unless `more` says so; every step is logged,
    which `GradientNorms` needs. output_dir: where checkpoints go.
    """
    defaults = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "warmup_steps": 0.05,  # below 1: a share of all steps (warmup_ratio is gone since transformers 5)
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "seed": 0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return defaults | device_arguments(device) | more


def trackers() -> list[str]:
    """Which experiment trackers are installed: names for `report_to`. `pip install tensorboard` adds one that needs
    neither account nor network."""
    return [name for name in TRACKERS if importlib.util.find_spec(name) is not None]


def quiet(trainer: Any) -> Any:
    """Take away the callbacks that print or draw a bar; log_history keeps everything. Returns the trainer."""
    from transformers import PrinterCallback, ProgressCallback
    from transformers.utils.notebook import NotebookProgressCallback

    for kind in (PrinterCallback, ProgressCallback, NotebookProgressCallback):
        trainer.remove_callback(kind)
    return trainer
