"""The corpus: an endless, seeded stream of documents about the world. Nothing is stored; it is made again in seconds.

A document is a list of (role, text). Role "text" is plain prose; "user" and "assistant" take turns in a chat.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_lab.world.drills import letters, lookup, numbers, possessions, twice
from lora_lab.world.facts import fact_document
from lora_lab.world.instructions import instruction
from lora_lab.world.stories import reading_document, story_document

Document = list[tuple[str, str]]
BOS, END, PAD, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"

# Shares of the documents. Drills that copy make up 45 %: with fewer, questions about a story stay guesswork.
Mix = dict[Callable[[random.Random], Document], float]
MIX: Mix = {
    twice: 0.32,
    lookup: 0.07,
    numbers: 0.08,
    letters: 0.04,
    story_document: 0.13,
    reading_document: 0.18,
    fact_document: 0.12,
    instruction: 0.06,
}
# The second stage of pretraining: the copying is there, now which of several things belongs to what.
SECOND_MIX: Mix = {
    **{twice: 0.22, lookup: 0.06, numbers: 0.08, letters: 0.03, story_document: 0.10, reading_document: 0.24},
    **{fact_document: 0.10, instruction: 0.05, possessions: 0.12},
}


def documents(seed: int, count: int | None = None, mix: Mix = MIX) -> Iterator[Document]:
    """`count` documents (endless when None) in the shares of `mix`, which depend on the seed alone."""
    rng = random.Random(seed)
    kinds, shares = list(mix), list(mix.values())
    made = 0
    while count is None or made < count:
        yield rng.choices(kinds, shares)[0](rng)
        made += 1


def render(document: Document) -> str:
    """A document as the text the model reads. For a chat it equals the tokenizer's chat template, as a test checks."""
    if document[0][0] == "text":
        return BOS + document[0][1] + END
    return BOS + "".join(f"<|{role}|> {text}{END}" for role, text in document)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a sample of the corpus as JSON lines.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="documents")
    parser.add_argument(
        "--out", type=Path, help="file to write; prints the documents as the model reads them when absent"
    )
    args = parser.parse_args()
    if args.out is None:
        for document in documents(args.seed, args.count):
            print(render(document))
        return
    beside = args.out.with_suffix(".part")
    beside.write_text("".join(json.dumps(d, ensure_ascii=False) + "\n" for d in documents(args.seed, args.count)))
    beside.replace(args.out)


if __name__ == "__main__":
    main()
