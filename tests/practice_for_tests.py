"""A trainer of TRL on the course's base, small enough for tests."""

import functools
import warnings
from pathlib import Path

from lora_lab.models import load_base
from lora_lab.practice.data import completion_dataset
from lora_lab.practice.device import quiet, training_arguments


@functools.cache
def tokenizer():
    return load_base(device="cpu")[1]


def trainer(folder: Path, limit: int = 32, callbacks=(), dataset=None, evaluation=None, targets="all-linear", **more):
    """SFTTrainer with a PEFT adapter of rank 4 and alpha 10. `more`: arguments of SFTConfig."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    base, tok = load_base(device="cpu")
    arguments = {"max_steps": 3, "learning_rate": 3e-3, "per_device_train_batch_size": 8} | more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = SFTTrainer(
            base,
            args=SFTConfig(**training_arguments(folder, "cpu", **arguments)),
            train_dataset=completion_dataset("support_desk", "train", limit) if dataset is None else dataset,
            eval_dataset=evaluation,
            processing_class=tok,
            peft_config=LoraConfig(r=4, lora_alpha=10, target_modules=targets, task_type="CAUSAL_LM"),
            callbacks=list(callbacks),
        )
    return quiet(made)
