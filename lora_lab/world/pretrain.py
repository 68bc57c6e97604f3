"""Pretrain the base model: a Llama of about 1.8 million parameters, on documents of the corpus packed into windows.

    loss = mean over tokens of -log p(token | the tokens before it),   windows (batch, 256)

AdamW, linear warm-up and cosine decay, mixed precision (bf16 arithmetic on float32 weights). Snapshots go to a scratch
folder as it trains and are what a stopped run resumes from; the finished model replaces data/base.

There are two stages. Copying comes first, by itself at about 2,000 steps; the second stage asks more often which of
several things belongs to whom. What is still weak after it: the colour of one thing in a story with several colours.
"""

import argparse
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from lora_lab.paths import BASE
from lora_lab.world.corpus import MIX, SECOND_MIX, Mix, documents
from lora_lab.world.tokenizer import encode_documents, save

CONTEXT = 256
SHAPE = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,  # grouped queries: k_proj and v_proj are 64 x 192, so out != in
    "intermediate_size": 512,
}


class Stage(NamedTuple):
    """A stretch of pretraining with a warm-up and decay of its own."""

    mix: Mix
    steps: int
    lr: float
    seed: int


def build(tokenizer, seed: int = 0):
    """A freshly initialised `LlamaForCausalLM` in float32 for this tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def scrap_ids(tokenizer) -> list[int]:
    """Every token of plain ASCII text: all but the special ones and the bytes of other alphabets."""
    pieces = ((i, tokenizer.decode([i])) for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids)
    return [i for i, piece in pieces if piece.isascii()]


def scraps(tokenizer, pool: list[int], rng: random.Random) -> list[int]:
    """5 to 24 random tokens said twice, as ids.

    Some tokens only serve to build longer ones and never occur in text. An embedding that training never touched is a
    trap for a later fine-tune that keeps the embeddings frozen, as LoRA does: so each is seen here.
    """
    said = rng.choices(pool, k=rng.randint(5, 24))
    colon = tokenizer(" :", add_special_tokens=False)["input_ids"]
    return [tokenizer.bos_token_id, *said, *colon, *said, tokenizer.eos_token_id]


def windows(tokenizer, seed: int, pad: int, mix: Mix = MIX, waiting: int = 256) -> Iterator[list[int]]:
    """An endless stream of windows of CONTEXT ids, each filled with whole documents, the first that fit, then padding.

    Documents stay whole because a question whose story was cut off can only be guessed. One in 17 is made of scraps.
    """
    stream, rows, pool, rng = documents(seed, mix=mix), [], scrap_ids(tokenizer), random.Random(seed)
    window: list[int] = []
    while True:
        if len(rows) < waiting:
            rows += encode_documents(tokenizer, [next(stream) for _ in range(waiting)])
            rows += [scraps(tokenizer, pool, rng) for _ in range(waiting // 16)]
            rng.shuffle(rows)
        index = next((i for i, row in enumerate(rows[:waiting]) if len(window) + len(row) <= CONTEXT), None)
        if index is None:
            yield window + [pad] * (CONTEXT - len(window))
            window, index = [], 0
        window += rows.pop(index)


def rate(step: int, steps: int, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    """Learning rate: up in a straight line for `warmup` steps, then down a half cosine to `floor` x peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer_for(model, peak: float) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only: a norm's gain or an embedding has no reason to shrink."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)


def pretrain(model, tokenizer, args: argparse.Namespace, stage: Stage, scratch: Path) -> dict:
    """Train `model` in place for one stage; returns what the model card tells: steps, tokens, seconds, last loss."""
    pad = tokenizer.pad_token_id
    optimizer = optimizer_for(model, stage.lr)
    forward = torch.compile(model) if args.compile else model
    losses, start, spent, first = [], time.time(), 0.0, 0
    scratch.mkdir(parents=True, exist_ok=True)
    if (scratch / "state.pt").exists():
        state = torch.load(scratch / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent, losses = state["step"], state["seconds"], state["losses"]
    source = windows(tokenizer, args.seed + stage.seed, pad, stage.mix)
    for _ in range(first * args.batch if first < stage.steps else 0):
        next(source)  # the same windows as an unbroken run
    model.train()
    for step in range(first, stage.steps):
        ids = torch.tensor([next(source) for _ in range(args.batch)])
        for group in optimizer.param_groups:
            group["lr"] = rate(step, stage.steps, stage.lr)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not args.float32):
            logits = forward(input_ids=ids).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:].flatten(), ignore_index=pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses = [*losses, loss.item()][-200:]
        if (step + 1) % args.every == 0 or step + 1 == stage.steps:
            seconds = spent + time.time() - start
            print(
                f"step {step + 1} of {stage.steps}  loss {sum(losses) / len(losses):.3f}  {seconds:.0f} s", flush=True
            )
            snapshot(scratch, model, optimizer, tokenizer, step + 1, seconds, losses)
    return {
        "steps": stage.steps,
        "tokens": stage.steps * args.batch * CONTEXT,
        "seconds": round(spent + time.time() - start if first < stage.steps else spent),
        "final_loss": round(sum(losses) / len(losses), 4),
    }


def snapshot(scratch: Path, model, optimizer, tokenizer, step: int, seconds: float, losses: list[float]) -> None:
    """What a stopped run resumes from, and a copy of the model so far that can already be loaded (scratch/model)."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"step": step, "seconds": seconds, "losses": losses}
    torch.save(state, scratch / "state.part")
    os.replace(scratch / "state.part", scratch / "state.pt")
    write(model, tokenizer, scratch / "model")


def write(model, tokenizer, folder: Path, texts: dict[str, str] | None = None) -> None:
    """Save the model in half precision, its tokenizer and `texts` (by file name) as a folder, swapped in when whole."""
    from transformers import AutoModelForCausalLM

    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    half = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.generation_config.max_new_tokens = 64
    half.save_pretrained(beside)
    save(tokenizer, beside)
    for name, text in (texts or {}).items():
        (beside / name).write_text(text, encoding="utf-8")
    beside.chmod(0o755)  # mkdtemp and safetensors give both to the owner alone
    for file in beside.iterdir():
        file.chmod(0o644)
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Pretrain the base model on the corpus (CPU, about 40 minutes on two cores)."
    )
    parser.add_argument("--steps", type=int, default=8000, help="of the first stage: copying")
    parser.add_argument("--second", type=int, default=4000, help="of the second stage: which belongs to what")
    parser.add_argument("--batch", type=int, default=8, help="windows of 256 tokens a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak of the first stage; the second has half of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between snapshots")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster, needs a C++ compiler")
    parser.add_argument("--float32", action="store_true", help="no bf16 arithmetic, for CPUs without it")
    parser.add_argument("--tokenizer", type=Path, default=BASE, help="folder that holds the tokenizer")
    parser.add_argument("--scratch", type=Path, default=Path("build/pretrain"), help="snapshots; resumes from here")
    parser.add_argument("--out", type=Path, default=BASE)
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True)
    model = build(tokenizer, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    stages = [Stage(MIX, args.steps, args.lr, 1000), Stage(SECOND_MIX, args.second, args.lr / 2, 2000)]
    told = [pretrain(model, tokenizer, args, s, args.scratch / f"stage{i}") for i, s in enumerate(stages, 1)]
    training = {"windows_per_step": args.batch, "learning_rates": [s.lr for s in stages], "stages": told}
    write(model, tokenizer, args.out, {"training.json": json.dumps(training, indent=1) + "\n"})
    print(training)


if __name__ == "__main__":
    main()
