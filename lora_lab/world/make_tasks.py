"""Write the tasks: data/tasks/{task}.{train,validation,test}.jsonl, one {"prompt", "completion"} a line, seeded."""

import argparse
import json
import os
from pathlib import Path

from lora_lab.paths import TASKS
from lora_lab.world import cipher, desk, newcomers

SIZES = {"train": 1600, "validation": 200, "test": 300}


def build(seed: int = 0) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Every task and part as (prompt, completion) pairs. The three voices answer the very same requests."""
    asked = {part: desk.requests(part, count, seed) for part, count in SIZES.items()}
    made = {
        voice.name: {part: [(text, desk.reply(voice, *rest)) for text, *rest in asked[part]] for part in SIZES}
        for voice in desk.VOICES.values()
    }
    made["new_facts"] = {part: newcomers.lines(part, seed) for part in SIZES}
    made["cipher"] = {part: cipher.lines(part, count, seed) for part, count in SIZES.items()}
    return made


def write(made: dict[str, dict[str, list[tuple[str, str]]]], folder: Path) -> None:
    """One file per task and part; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in made.items():
        for part, pairs in parts.items():
            text = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs)
            beside = folder / f".{name}.{part}.part"
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, folder / f"{name}.{part}.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tasks of the course.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=TASKS)
    args = parser.parse_args()
    made = build(args.seed)
    write(made, args.out)
    for name, parts in made.items():
        print(name, {part: len(pairs) for part, pairs in parts.items()})


if __name__ == "__main__":
    main()
