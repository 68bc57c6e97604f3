"""Measure the base model on text it has not seen, and write the result down with what made it.

perplexity        exp(mean loss per token), on unseen stories and on all kinds of documents
reading           exact answers to questions about an unseen story, its names, towns and pairs kept out of training
closed book       exact answers about the world's facts, in wordings that pretraining never used for that fact
samples           five stories, sampled with a fixed seed
"""

import argparse
import datetime
import json
import math
import os
import platform
import random
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from lora_lab.models import answer, load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.world.corpus import Document, documents, render
from lora_lab.world.facts import is_held_out, questions, world_facts
from lora_lab.world.stories import ASK, story, story_document

HELD_OUT_SEED = 2_000_000  # pretraining draws its documents from seeds near 1,000


@torch.no_grad()
def perplexity(model, tokenizer, batch: list[Document]) -> float:
    """exp of the mean negative log probability per token, each document by itself."""
    total, tokens = 0.0, 0
    for document in batch:
        ids: Tensor = torch.tensor([tokenizer(render(document), add_special_tokens=False)["input_ids"]])
        total += model(input_ids=ids, labels=ids).loss.item() * (ids.numel() - 1)
        tokens += ids.numel() - 1
    return math.exp(total / tokens)


def reading_questions(count: int, seed: int = HELD_OUT_SEED) -> list[tuple[str, str, str]]:
    """(prompt, answer, kind of answer): one question about each of `count` stories made of held-out names and pairs."""
    rng, asked = random.Random(seed), []
    while len(asked) < count:
        told = story(rng, "held_out")
        question, wanted = rng.choice(told.questions)
        asked.append((rng.choice(ASK).format(story=told.text, question=question), wanted, _kind(wanted)))
    return asked


def _kind(wanted: str) -> str:
    from lora_lab.world import words

    if wanted.isdigit():
        return "number"
    if wanted[0].isupper():
        return "town" if wanted in words.towns("held_out") else "name"
    for kind, known in {"colour": words.COLOURS, "spot": words.SPOTS}.items():
        if wanted in known:
            return kind
    return "thing"


def reading(model, tokenizer, count: int) -> dict[str, float]:
    """Share of exact answers over all, and by kind of answer."""
    asked = reading_questions(count)
    given = answer(model, tokenizer, [prompt for prompt, _, _ in asked], max_new_tokens=12)
    right = defaultdict(list)
    for said, (_, wanted, kind) in zip(given, asked, strict=True):
        right["all"].append(said == wanted)
        right[kind].append(said == wanted)
    return {kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(right.items())}


def closed_book(model, tokenizer) -> dict[str, float]:
    """Share of exact answers about the world's facts, on the questions that pretraining left out."""
    asked = [(q, f.value, f.relation) for f in world_facts() for q in questions(f) if is_held_out(q)]
    given = answer(model, tokenizer, [question for question, _, _ in asked], max_new_tokens=12)
    right = defaultdict(list)
    for said, (_, wanted, relation) in zip(given, asked, strict=True):
        right["all"].append(said == wanted)
        right[relation].append(said == wanted)
    return {relation: round(sum(hits) / len(hits), 4) for relation, hits in sorted(right.items())}


@torch.no_grad()
def samples(model, tokenizer, count: int = 5, seed: int = 0) -> list[str]:
    """Stories the model tells on request, sampled at temperature 0.7."""
    torch.manual_seed(seed)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tell me a story."}], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]] * count)
    told = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=0.7,
        max_new_tokens=150,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True).strip() for row in told]


def circumstances() -> dict:
    """What a measurement has to say about itself: command, date, versions, processor."""
    import transformers

    name = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return {
        "command": "python -m " + (sys.modules["__main__"].__spec__.name if sys.modules["__main__"].__spec__ else "?"),
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": {"cpu": name, "cores": os.cpu_count()},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def write_json(path: Path, content: dict) -> None:
    """Write a measurement, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def measure(model, tokenizer, count: int = 1000) -> dict:
    """Everything this file measures."""
    rng = random.Random(HELD_OUT_SEED)
    stories = [[("text", story(rng, "held_out").text)] for _ in range(300)]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "perplexity": {
            "stories": round(perplexity(model, tokenizer, [story_document(rng) for _ in range(300)]), 3),
            "stories_of_held_out_names": round(perplexity(model, tokenizer, stories), 3),
            "all_kinds": round(perplexity(model, tokenizer, list(documents(HELD_OUT_SEED, 600))), 3),
        },
        "reading": reading(model, tokenizer, count),
        "closed_book": closed_book(model, tokenizer),
        "samples": samples(model, tokenizer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the base model; the result goes to data/measurements.")
    parser.add_argument("--base", type=Path, help="model folder (default: data/base)")
    parser.add_argument("--count", type=int, default=1000, help="questions about unseen stories")
    parser.add_argument("--out", type=Path, default=MEASUREMENTS / "base_model.json")
    args = parser.parse_args()
    model, tokenizer = load_base(args.base, device="cpu")
    result = {**circumstances(), **measure(model, tokenizer, args.count)}
    write_json(args.out, result)
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
