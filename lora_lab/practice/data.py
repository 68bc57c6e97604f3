"""The course's tasks as data sets for TRL, and the proof that TRL trains on the very tokens that `tasks.encode` gives.

completion_dataset(task, split)   prompt and completion, as chat messages: the loss sees the completion
chat_dataset(task, split)         whole conversations: the loss sees them whole, or the assistant's turns alone
text_dataset(task, split, tok)    rendered text: the loss sees the prompt too

<|bos|><|user|> question<|end|><|assistant|> answer<|end|>
└─ without loss ─────────────────────────┘└─ with loss ─┘
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.batches import IGNORE
from lora_lab.tasks import Example, encode, load

# The course's own template with its assistant turns marked. transformers reads the marks when it is asked for a mask of
# the tokens that an assistant wrote; they print nothing.
MARKED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% else %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def completion_dataset(task: str, split: str, limit: int | None = None):
    """A `datasets.Dataset` with columns prompt and completion, each a list of one chat message.

    TRL renders both with the tokenizer's chat template and leaves the prompt out of the loss. task, split, limit and
    errors as in `lora_lab.tasks.load`.
    """
    return _dataset([{"prompt": _asked(e), "completion": _said(e)} for e in load(task, split, limit)])


def chat_dataset(task: str, split: str, limit: int | None = None):
    """A `datasets.Dataset` with one column, messages: a user's turn and the assistant's.

    With `SFTConfig(assistant_only_loss=True)` the loss sees the assistant's turn, if the template marks it
    (`with_generation_marks`); without, all tokens. Arguments and errors as in `lora_lab.tasks.load`.
    """
    return _dataset([{"messages": _asked(e) + _said(e)} for e in load(task, split, limit)])


def text_dataset(task: str, split: str, tokenizer: Any, limit: int | None = None):
    """A `datasets.Dataset` with one column, text: each conversation rendered, ready to be trained on as a whole.

    The text comes without its first token where the tokenizer adds that itself: rendered and added, it would stand
    there twice. Arguments and errors as in `lora_lab.tasks.load`.
    """
    rows = []
    for example in load(task, split, limit):
        text = tokenizer.apply_chat_template(_asked(example) + _said(example), tokenize=False)
        rows.append({"text": text.removeprefix(tokenizer.bos_token) if _adds_bos(tokenizer) else text})
    return _dataset(rows)


def with_generation_marks(tokenizer: Any) -> Any:
    """A copy of the tokenizer whose template says which tokens the assistant writes; all texts stay the same.

    Raises ValueError for another template than the course's: where an assistant's turn begins is the template's secret.
    """
    from lora_lab.world.tokenizer import CHAT_TEMPLATE

    if tokenizer.chat_template not in (CHAT_TEMPLATE, MARKED_TEMPLATE):
        raise ValueError(
            f"the template is not the course's, but {str(tokenizer.chat_template)[:60]!r}: mark it by hand"
        )
    marked = copy.deepcopy(tokenizer)
    marked.chat_template = MARKED_TEMPLATE
    return marked


def trained_part(row: Mapping[str, Sequence[int]], tokenizer: Any) -> tuple[str, str]:
    """The text of a row {"input_ids", "labels"} that the loss leaves out, and the text that it sees (label not -100).

    Raises ValueError if ids and labels differ in number, or where a label is neither -100 nor its token.
    """
    ids, labels = list(row["input_ids"]), list(row["labels"])
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} input_ids and {len(labels)} labels: one label for each token is needed")
    wrong = [i for i, (a, b) in enumerate(zip(ids, labels, strict=True)) if b not in (a, IGNORE)]
    if wrong:
        raise ValueError(f"position {wrong[0]}: label {labels[wrong[0]]} is neither {IGNORE} nor token {ids[wrong[0]]}")
    seen = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE]
    unseen = [token for token, label in zip(ids, labels, strict=True) if label == IGNORE]
    return tokenizer.decode(unseen), tokenizer.decode(seen)


def same_tokens(rows: Sequence[Mapping[str, Any]], examples: Sequence[Example], tokenizer: Any) -> list[int]:
    """The indices of the rows (TRL's input_ids and labels) that differ from `tasks.encode(examples, tokenizer)`.

    Empty means that both train on the same tokens with the same loss. Raises ValueError if the numbers differ, since
    a row that was dropped shifts all others, and if there are no labels (a data set that no trainer has prepared).
    """
    if len(rows) != len(examples):
        raise ValueError(f"{len(rows)} rows for {len(examples)} examples: compare the same ones")
    if rows and "labels" not in rows[0]:
        raise ValueError(f"the rows have {sorted(rows[0])}, no labels: take trainer.train_dataset, which is prepared")
    wanted = encode(examples, tokenizer)
    return [
        i
        for i, (row, other) in enumerate(zip(rows, wanted, strict=True))
        if any(list(row[key]) != other[key] for key in ("input_ids", "labels"))
    ]


def _asked(example: Example) -> list[dict[str, str]]:
    return [{"role": "user", "content": example.prompt}]


def _said(example: Example) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": example.completion}]


def _adds_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _dataset(rows: list[dict[str, Any]]):
    from datasets import Dataset

    return Dataset.from_list(rows)
