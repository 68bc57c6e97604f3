"""The model card of the base model: data/base/README.md, written from what training and measuring left behind."""

import argparse
import json
import os
from pathlib import Path

from lora_lab.paths import BASE, MEASUREMENTS

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# The base model of LoRA Lab

A Llama-architecture language model of {parameters:,} parameters ({shape}), stored in {dtype}.
It knows one small made-up world, tells short stories about it, answers questions about a story it is given, and copies
what it is told to copy. It is made to be adapted in seconds, not to be useful as it is.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("data/base")
model = AutoModelForCausalLM.from_pretrained("data/base")
```

Chat format: `<|bos|><|user|> question<|end|><|assistant|> answer<|end|>`. `<|end|>` is the end-of-text token. Digits
are tokens of their own. The context is 256 tokens. Bytes outside ASCII have embeddings that training never touched.

## How it was made

Documents come from `lora_lab/world/corpus.py`, a seeded generator; no text by anyone else was used. Made again with

    python -m lora_lab.world.tokenizer
    python -m lora_lab.world.pretrain
    python -m lora_lab.world.measure

Training: AdamW on windows of 256 tokens, {windows_per_step} a step, in two stages on {cores} cores of {cpu}
that had other work as well.

| stage | steps | tokens | peak learning rate | minutes | last loss (nats per token) |
|---|---|---|---|---|---|
{stages}

## What it can do (measured {date} after loading these files)

| on unseen text | |
|---|---|
| perplexity per token, stories | {ppl_stories} |
| perplexity per token, stories about held-out names and things | {ppl_held_out} |
| perplexity per token, all kinds of documents (lists of random words among them) | {ppl_all} |
| questions about an unseen story with held-out names, exact answers | {reading:.1%} |
| facts of its world, in wordings not used in training, exact answers | {closed:.1%} |

By kind of answer: {kinds}.
Its weak spot: asked for the colour of one thing in a story with several colours, it sometimes names another of them.

Details and samples: `data/measurements/base_model.json`. Licence: Apache-2.0.
"""


TAUGHT = ("language, facts, copying", "the same, and what belongs to what")


def _stage(taught: str, lr: float, told: dict) -> str:
    """One line of the table of stages."""
    minutes = round(told["seconds"] / 60)
    return f"| {taught} | {told['steps']:,} | {told['tokens']:,} | {lr:g} | {minutes} | {told['final_loss']:.2f} |"


def card(folder: Path, measured: dict) -> str:
    """The card as text, from the folder's config.json and training.json and from what `measure` wrote."""
    config = json.loads((folder / "config.json").read_text())
    training = json.loads((folder / "training.json").read_text())
    shape = (
        f"{config['hidden_size']} wide, {config['num_hidden_layers']} layers, {config['num_attention_heads']} heads, "
        f"{config['num_key_value_heads']} key-value heads, {config['vocab_size']} tokens"
    )
    return CARD.format(
        **measured["hardware"],
        windows_per_step=training["windows_per_step"],
        stages="\n".join(
            _stage(*both) for both in zip(TAUGHT, training["learning_rates"], training["stages"], strict=True)
        ),
        parameters=measured["parameters"],
        date=measured["date"],
        shape=shape,
        dtype=config["dtype"],
        ppl_stories=measured["perplexity"]["stories"],
        ppl_held_out=measured["perplexity"]["stories_of_held_out_names"],
        ppl_all=measured["perplexity"]["all_kinds"],
        reading=measured["reading"]["all"],
        closed=measured["closed_book"]["all"],
        kinds=", ".join(f"{kind} {share:.0%}" for kind, share in measured["reading"].items() if kind != "all"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model card from training.json and the measurements.")
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--measured", type=Path, default=MEASUREMENTS / "base_model.json")
    args = parser.parse_args()
    text = card(args.base, json.loads(args.measured.read_text()))
    beside = args.base / ".README.md"
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, args.base / "README.md")
    print(text)


if __name__ == "__main__":
    main()
