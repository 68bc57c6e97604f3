"""Whole models: injecting, merging, saving and loading, training, importing.

Real widths with few layers: Llama-3.2-1B's decoder layer, so that a model of four fits anywhere. Training is that of
the course's base model, by `lora_lab.train` and by PEFT with transformers' Trainer, on the same batches.
"""

import contextlib
import copy
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import peft
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.timing import Case, device
from lora_lab import inject, load_adapter, lora_layers, merge_, save_adapter, train
from lora_lab.batches import batch_at, collate
from lora_lab.models import load_base
from lora_lab.targets import find_targets
from lora_lab.tasks import encode, load
from lora_lab.train import learning_rate

RANK, ALPHA = 16, 24
STEPS, BATCH, LR = 10, 16, 5e-3


def llama(layers: int, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Decoder layers of Llama-3.2-1B (2048 wide, MLP 8192, 8 key-value heads) with random weights."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(device(), dtype).eval()


def config(**more) -> peft.LoraConfig:
    return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", **more)


def wrapped(model: nn.Module) -> peft.PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config())


def filled(model: nn.Module) -> nn.Module:
    """Random factors, the same in ours and PEFT's."""
    generator = torch.Generator().manual_seed(1)
    pairs = [(m.A, m.B) for m in lora_layers(model).values()]
    pairs = pairs or [
        (m.lora_A["default"].weight, m.lora_B["default"].weight) for m in model.modules() if hasattr(m, "lora_A")
    ]
    with torch.no_grad():
        for pair in pairs:
            for factor in pair:
                factor.copy_(0.02 * torch.randn(factor.shape, generator=generator))
    return model


def same_logits(ours: nn.Module, theirs: nn.Module) -> float:
    ids = torch.arange(24, device=device()).view(2, 12)
    with torch.no_grad():
        x, y = (model(input_ids=ids).logits.float() for model in (ours, theirs))
    difference = ((x - y).norm() / y.norm()).item()
    assert difference < 0.02
    return difference


def draws(model: nn.Module) -> None:
    """The random numbers of an inject that is bit-equal to PEFT's: it makes A, makes B, and makes A once more."""
    for module in find_targets(model, "all-linear").values():
        for shape in ((RANK, module.in_features), (module.out_features, RANK), (RANK, module.in_features)):
            nn.init.kaiming_uniform_(torch.empty(shape, device=device()), a=math.sqrt(5))


def injecting(layers: int) -> Case:
    base = llama(layers)
    return Case(
        topic="model",
        group="inject",
        name=f"inject, {layers} layers, default init",
        ours=lambda model: inject(model, "all-linear", RANK, ALPHA),
        theirs=wrapped,
        floor=draws,
        # Neither touches the weights: a copy that shares them is fresh enough, and costs no memory.
        setup=lambda: copy.deepcopy(base, {id(p): nn.Parameter(p.detach()) for p in base.parameters()}),
        goal=3.0,
    )


def merging(layers: int, dtype: torch.dtype) -> Case:
    base = llama(layers, dtype)
    ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
    filled(inject(ours, "all-linear", RANK, ALPHA))
    theirs = filled(wrapped(theirs))
    # Merging changes the weights a little each time, which changes nothing about the work. PEFT's modules stay in place
    # in merge_adapter; merge_and_unload merges and takes them out, so it starts from a fresh shallow copy each time.

    def shallow() -> peft.PeftModel:
        return copy.deepcopy(theirs, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in theirs.parameters()})

    def merge_ours(_: object) -> nn.Module:
        for layer in lora_layers(ours).values():
            layer.merged = False
        return merge_(ours)

    return Case(
        topic="model",
        group="merge",
        name=f"merge, {layers} layers, {str(dtype).removeprefix('torch.')}",
        ours=merge_ours,
        theirs=lambda model: model.merge_and_unload(),
        setup=shallow,
        goal=1.5,
        check=same_logits,
        memory=True,
    )


def loading(layers: int, folder: Path) -> Case:
    base = llama(layers)
    save_adapter(filled(inject(copy.deepcopy(base), "all-linear", RANK, ALPHA)), folder)

    def theirs(model: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peft.PeftModel.from_pretrained(model, folder)

    return Case(
        topic="model",
        group="load",
        name=f"load an adapter, {layers} layers",
        ours=lambda model: load_adapter(model, folder),
        theirs=theirs,
        setup=lambda: copy.deepcopy(base, {id(p): nn.Parameter(p.detach()) for p in base.parameters()}),
        goal=1.0,
        check=same_logits,
    )


class _Batches(torch.utils.data.Dataset):
    """The batches that `train` makes, one an item."""

    def __init__(self, examples: list[dict]):
        self.examples = examples

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> list[dict]:
        return batch_at(self.examples, BATCH, 0, step)


def training(task: str) -> Case:
    base, tokenizer = load_base()
    examples = encode(load(task, "train"), tokenizer)

    def ours(model: nn.Module) -> list[float]:
        torch.manual_seed(0)
        inject(model, "all-linear", RANK, ALPHA, fused=True)
        return train(model, examples, steps=STEPS, batch_size=BATCH, lr=LR, warmup=0, progress=False).loss

    def theirs(model: nn.Module) -> list[float]:
        torch.manual_seed(0)
        losses: list[float] = []

        class SameRates(Trainer):
            def create_scheduler(self, num_training_steps, optimizer=None):
                """Ours: transformers' cosine has its first step below the peak already."""
                optimizer = optimizer or self.optimizer
                rates = [learning_rate(step, STEPS, 1.0, 0.0) for step in range(STEPS)]
                self.lr_scheduler = LambdaLR(optimizer, lambda step: rates[min(step, STEPS - 1)])
                return self.lr_scheduler

        class Losses(TrainerCallback):
            def on_log(self, args, state, control, logs=None, **_):
                if "loss" in logs:
                    losses.append(logs["loss"])

        with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
            arguments = TrainingArguments(
                folder,
                max_steps=STEPS,
                per_device_train_batch_size=1,
                learning_rate=LR,
                weight_decay=0.0,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=device().type == "cpu",
            )
            with contextlib.redirect_stdout(nothing), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer = SameRates(
                    wrapped(model),
                    arguments,
                    train_dataset=_Batches(examples),
                    data_collator=lambda items: collate(items[0]),
                    callbacks=[Losses()],
                )
                trainer.get_train_dataloader = lambda: torch.utils.data.DataLoader(
                    _Batches(examples), batch_size=1, collate_fn=lambda items: collate(items[0])
                )
                trainer.train()
        return losses

    def same_losses(a: list[float], b: list[float]) -> float:
        assert len(a) == len(b) == STEPS
        apart = max(abs(x - y) for x, y in zip(a, b, strict=True))
        assert apart < 1e-3, f"the losses of a step are {apart} apart"
        return apart

    return Case(
        topic="model",
        group="train",
        name=f"train, {STEPS} steps of {BATCH} examples of {task}",
        ours=ours,
        theirs=theirs,
        setup=lambda: copy.deepcopy(base),
        goal=1.3,
        check=same_losses,
    )


def importing() -> Case:
    def timed(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    return Case(
        topic="model",
        group="import",
        name="import lora_lab against import peft",
        ours=lambda: timed("lora_lab"),
        theirs=lambda: timed("peft"),
        note="a new process each time, Python and torch included",
    )


def cases(quick: bool) -> Iterator[Case]:
    yield injecting(1 if quick else 4)
    for dtype in (torch.float32,) if quick else (torch.float32, torch.bfloat16):
        yield merging(1 if quick else 4, dtype)
    with tempfile.TemporaryDirectory() as folder:
        yield loading(1 if quick else 4, Path(folder))
    yield training("support_desk")
    yield importing()
