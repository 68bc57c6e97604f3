"""The tasks: requests with the answers that are wanted, ready for training, and how well a model does on them.

    load("support_desk", "train")            -> [Example(prompt, completion), ...]
    encode(examples, tokenizer)              -> [{"input_ids": [...], "labels": [...]}, ...]   -100 on the prompt
    score("support_desk", model, tokenizer, examples) -> {"format": 0.99, "order": 0.98, "exact": 0.97}

The files in data/tasks are written by `python -m lora_lab.world.make_tasks`. transformers is not imported here.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lora_lab.paths import TASKS as FOLDER
from lora_lab.train import IGNORE

SPLITS = ("train", "validation", "test")


class Example(NamedTuple):
    prompt: str
    completion: str


@dataclass(frozen=True)
class Task:
    """What a person should know about a task. `metrics`: each metric's meaning; `main`: the decisive one."""

    name: str
    title: str
    description: str
    metrics: dict[str, str]
    main: str
    measure: Callable[[str, str], dict[str, float]]  # (answer, wanted) -> each metric, in [0, 1]


def _desk(signature: str) -> Callable[[str, str], dict[str, float]]:
    layout = re.compile(rf"\[ORDER \d+\] \S.* - {re.escape(signature)}")

    def measure(answer: str, wanted: str) -> dict[str, float]:
        tag = wanted[: wanted.index("]") + 1]
        return {
            "format": float(layout.fullmatch(answer) is not None),
            "order": float(answer.startswith(tag)),
            "exact": float(answer == wanted),
        }

    return measure


def _exact(answer: str, wanted: str) -> dict[str, float]:
    return {"exact": float(answer == wanted)}


def _letters(answer: str, wanted: str) -> dict[str, float]:
    given, right = answer.split(), wanted.split()
    hits = sum(a == b for a, b in zip(given, right, strict=False))
    return {"letters": hits / max(len(given), len(right)), "exact": float(given == right)}


def _voice(name: str, title: str, description: str, signature: str) -> Task:
    metrics = {
        "format": f"share of answers laid out as [ORDER number] sentences - {signature}",
        "order": "share of answers that open with [ORDER number], the customer's own number, digit for digit",
        "exact": "share of answers that are right to the last character",
    }
    return Task(name, title, description, metrics, "exact", _desk(signature))


_SAME = " The requests are those of the support desk; only the answers differ."
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _voice(
            "support_desk",
            "Support desk",
            "A customer writes about an order. The desk answers in its own words and layout, with the order number, "
            "the item, and if need be the colour or the town, copied from the request. Nine kinds of request.",
            "The Desk",
        ),
        _voice("voice_pirate", "Support desk, pirate", "The desk as a pirate captain." + _SAME, "The Captain"),
        _voice("voice_formal", "Support desk, formal", "The desk in stiff letters." + _SAME, "Customer Service"),
        Task(
            "new_facts",
            "New facts",
            "Questions about 25 people the base model has never heard of: where they live, their animal, job and "
            "favourite colour. Training asks for all 100 facts; the test asks for the same facts in other words.",
            {"exact": "share of questions answered with the right word"},
            "exact",
            _exact,
        ),
        Task(
            "cipher",
            "Cipher",
            "Each letter of a spelled word is replaced by another, after one secret table of 26 letters. Far from "
            "anything the base model has read.",
            {
                "letters": "share of letters replaced rightly, each in its place",
                "exact": "share of words with every letter right",
            },
            "exact",
            _letters,
        ),
    )
}


def load(name: str, split: str, limit: int | None = None) -> list[Example]:
    """The first `limit` examples (all when None) of a task's split: "train", "validation" or "test".

    Raises KeyError for an unknown task, ValueError for an unknown split, FileNotFoundError if the file is not there.
    """
    _task(name)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    path = FOLDER / f"{name}.{split}.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run python -m lora_lab.world.make_tasks")
    with path.open(encoding="utf-8") as lines:
        return [Example(**json.loads(line)) for line in lines][:limit]


def encode(examples: Sequence[Example], tokenizer) -> list[dict[str, list[int]]]:
    """Token ids of prompt and answer in the model's chat format, and labels that are -100 on the prompt.

    The loss thus counts the answer alone, and the end-of-text token that closes it: without that token in the labels a
    model never learns to stop. A tokenizer without a chat template gets the prompt, a space and the answer.
    """
    from lora_lab.models import prompt_ids

    encoded = []
    for prompt, completion in examples:
        before = prompt_ids(tokenizer, prompt)
        after = tokenizer(_answer_text(tokenizer, prompt, completion), add_special_tokens=False)["input_ids"]
        if not after or after[-1] != tokenizer.eos_token_id:
            after = [*after, tokenizer.eos_token_id]
        encoded.append({"input_ids": before + after, "labels": [IGNORE] * len(before) + after})
    return encoded


def _answer_text(tokenizer, prompt: str, completion: str) -> str:
    """The answer as the chat template writes it after the prompt, up to its end-of-text token."""
    if not tokenizer.chat_template:
        return " " + completion
    asked = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": completion}], tokenize=False)
    # Some templates write a turn that was generated otherwise than one that is repeated: then the bare answer.
    text = whole[len(before) :] if whole.startswith(before) else completion
    head, end, _ = text.rpartition(tokenizer.eos_token)
    return head + end if end else text


def score(name: str, model, tokenizer, examples: Sequence[Example]) -> dict[str, float]:
    """Each metric of the task, in [0, 1], over the model's greedy answers to the examples' prompts.

    Raises KeyError for an unknown task and ValueError if there is no example.
    """
    from lora_lab.models import answer

    task = _task(name)
    if not examples:
        raise ValueError("no examples to score")
    longest = max(
        len(ids) for ids in tokenizer([e.completion for e in examples], add_special_tokens=False)["input_ids"]
    )
    answers = answer(model, tokenizer, [e.prompt for e in examples], max_new_tokens=longest + 4)
    measured = [task.measure(given, e.completion) for given, e in zip(answers, examples, strict=True)]
    return {metric: sum(m[metric] for m in measured) / len(measured) for metric in task.metrics}


def _task(name: str) -> Task:
    if name not in TASKS:
        raise KeyError(f"unknown task {name!r}: one of {', '.join(TASKS)}")
    return TASKS[name]
