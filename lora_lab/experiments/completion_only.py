"""Is it better to learn the answer alone, or the prompt too? Equal steps, the rate tuned for both sides, three seeds.

    python -m lora_lab.experiments.completion_only [--out data/measurements/completion_only.json]

Each run is TRL's SFTTrainer on the support desk, rank 8 on all linear layers. The validation loss counts the answers
alone for both sides, and so does the share of test answers that are right to the last character. Ten minutes on a core.
"""

import argparse
import contextlib
import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from lora_lab import tasks
from lora_lab.models import load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.train import mean_loss
from lora_lab.world.measure import circumstances, write_json

RATES, SEEDS, STEPS = (0.0025, 0.005, 0.01, 0.02), (0, 1, 2), 60
SIDES = {"answer only": True, "prompt and answer": False}


def point(completion_only: bool, lr: float, seed: int, steps: int = STEPS, answers: int = 100) -> dict[str, float]:
    """One run: {"validation_loss" (nats per token of the answers), "exact", "format" (shares of test answers)}.

    answers: how many test requests are answered; with 0 the two shares are left out."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_base(device="cpu")
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": completion}],
        }
        for prompt, completion in tasks.load("support_desk", "train")
    ]
    torch.manual_seed(seed)  # the adapter's own draw
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        args = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=lr,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            completion_only_loss=completion_only,
            max_length=256,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    held_out = tasks.encode(tasks.load("support_desk", "validation", 100), tokenizer)
    found = {"validation_loss": mean_loss(trainer.model, held_out)}
    if answers:
        requests = tasks.load("support_desk", "test", answers)
        shares = tasks.score("support_desk", trainer.model, tokenizer, requests)
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
    return {**about, "steps": STEPS, "runs": runs}


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=MEASUREMENTS / "completion_only.json")
    write_json(parser.parse_args(argv).out, measure())


if __name__ == "__main__":
    main()
