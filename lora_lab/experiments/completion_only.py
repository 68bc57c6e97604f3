"""Is it better to learn the answer alone, or the prompt too? Equal steps, the rate tuned for both sides, three seeds.

    python -m lora_lab.experiments.completion_only [--out data/measurements/completion_only.json]

Each run is TRL's SFTTrainer on the support desk, rank 8 on all linear layers. The validation loss counts the answers
alone for both sides, and so does the share of test answers that are right to the last character. Ten minutes on a core.
"""

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from lora_lab import tasks
from lora_lab.models import load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.practice.data import completion_dataset
from lora_lab.practice.device import quiet, training_arguments
from lora_lab.train import mean_loss
from lora_lab.world.measure import circumstances, write_json

RATES, SEEDS, STEPS = (0.0025, 0.005, 0.01, 0.02), (0, 1, 2), 60
TASK, RANK, ALPHA, TARGETS = "support_desk", 8, 16, "all-linear"
HELD_OUT, ANSWERS = 100, 100  # examples of the validation split, requests of the test split
# What differs from the defaults of `practice.device.training_arguments`, or matters to the comparison.
TRAINING = {
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "max_length": 256,
    "optim": "adamw_torch_fused",  # what transformers takes by itself
}
SIDES = {"answer only": True, "prompt and answer": False}


def point(completion_only: bool, lr: float, seed: int, steps: int = STEPS, answers: int = ANSWERS) -> dict[str, float]:
    """One run: {"validation_loss" (nats per token of the answers), "exact", "format" (shares of test answers)}.

    answers: how many test requests are answered; with 0 the two shares are left out."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_base(device="cpu")
    torch.manual_seed(seed)  # the adapter's own draw
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more = {"max_steps": steps, "learning_rate": lr, "seed": seed, "completion_only_loss": completion_only}
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**training_arguments(folder, "cpu", **TRAINING, **more)),
            train_dataset=completion_dataset(TASK, "train"),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"),
        )
        quiet(trainer).train()
    held_out = tasks.encode(tasks.load(TASK, "validation", HELD_OUT), tokenizer)
    found = {"validation_loss": mean_loss(trainer.model, held_out)}
    if answers:
        requests = tasks.load(TASK, "test", answers)
        shares = tasks.score(TASK, trainer.model, tokenizer, requests)
        found |= {"exact": shares["exact"], "format": shares["format"]}
    return found


def measure() -> dict[str, Any]:
    """All runs, with what made them."""
    runs = [
        {"side": side, "lr": lr, "seed": seed, **point(only, lr, seed)}
        for side, only in SIDES.items()
        for lr in RATES
        for seed in SEEDS
    ]
    import peft
    import trl

    about = circumstances()
    about["versions"] |= {"peft": peft.__version__, "trl": trl.__version__}
    return {**about, "settings": settings(), "steps": STEPS, "runs": runs}


def settings() -> dict[str, Any]:
    """What all runs share, as the record has it: the task, the adapter, the training, and how much was looked at."""
    adapter = {"rank": RANK, "alpha": ALPHA, "targets": TARGETS}
    return {"task": TASK, **adapter, **TRAINING, "validation_examples": HELD_OUT, "test_requests": ANSWERS}


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=MEASUREMENTS / "completion_only.json")
    write_json(parser.parse_args(argv).out, measure())


if __name__ == "__main__":
    main()
