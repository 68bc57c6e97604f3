"""Check 6.2: token ids and labels of one example whose loss counts the answer alone."""

from collections.abc import Callable
from typing import Any

from lora_lab.batches import IGNORE

from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise

Row = list[int]


def reference(prompt: Row, answer: Row, end: int) -> tuple[Row, Row]:
    """The prompt is read, the answer and the token that ends it are learned."""
    after = answer if answer and answer[-1] == end else [*answer, end]
    return prompt + after, [IGNORE] * len(prompt) + after


def _labels(change: Callable[[Row, Row, int], Row]) -> Callable:
    return lambda p, a, e: (reference(p, a, e)[0], change(p, reference(p, a, e)[0][len(p) :], e))


MISTAKES = (
    (
        "takes an end token inside the answer for its end: only the last token says that the answer has ended",
        lambda p, a, e: (p + a + [e] * (e not in a), [IGNORE] * len(p) + a + [e] * (e not in a)),
    ),
    (
        "puts the end token into neither list: a model that never saw it in the labels never learns to stop",
        lambda p, a, e: (p + a, [IGNORE] * len(p) + a),
    ),
    (
        "masks the end token as well: it must be learned, or the model never stops",
        _labels(lambda p, after, e: [IGNORE] * len(p) + after[:-1] + [IGNORE]),
    ),
    (
        "adds a second end token to an answer that has one",
        lambda p, a, e: (p + a + [e], [IGNORE] * len(p) + a + [e]),
    ),
    (
        "labels the prompt too: then most of the loss is about writing the customer's letter",
        _labels(lambda p, after, e: p + after),
    ),
    (
        "masks the answer and labels the prompt: it is the other way round",
        _labels(lambda p, after, e: p + [IGNORE] * len(after)),
    ),
    (
        "shifts the labels by one: the model does that itself, so labels stand at the place of their own token",
        _labels(lambda p, after, e: [IGNORE] * (len(p) - 1) + after + [IGNORE]),
    ),
    (
        "masks one token too few: the last token of the prompt is not the model's to write",
        _labels(lambda p, after, e: [IGNORE] * (len(p) - 1) + p[-1:] + after),
    ),
    (
        "masks one token too many: the first token of the answer is lost",
        _labels(lambda p, after, e: [IGNORE] * (len(p) + 1) + after[1:]),
    ),
    (
        "masks with 0: 0 is a token like any other, -100 is what the loss skips",
        _labels(lambda p, a, e: [0] * len(p) + a),
    ),
    ("masks with -1: only -100 is skipped by the loss", _labels(lambda p, after, e: [-1] * len(p) + after)),
    (
        "masks with the end token: then the model learns to stop at every place of the prompt",
        _labels(lambda p, after, e: [e] * len(p) + after),
    ),
    ("returns labels for the answer only: they need one entry for each token", _labels(lambda p, after, e: after)),
    (
        "masks everything: there is nothing left to learn",
        _labels(lambda p, after, e: [IGNORE] * (len(p) + len(after))),
    ),
    (
        "masks every token of the answer that also stands in the prompt: mask by place, not by value",
        _labels(lambda p, after, e: [IGNORE] * len(p) + [IGNORE if t in p else t for t in after]),
    ),
    ("swaps the two lists: input_ids first, then labels", lambda p, a, e: reference(p, a, e)[::-1]),
    (
        "writes -100 into the input_ids: the model must read the prompt, only the labels are masked",
        lambda p, a, e: (reference(p, a, e)[1], reference(p, a, e)[1]),
    ),
)


def _row(value: Any, name: str) -> Row:
    if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise Wrong(f"your mask_prompt should return {name} as a list of whole numbers, not {kind(value)}")
    return value


@exercise(
    "6.2",
    takes=("prompt_ids", "answer_ids", "end_id"),
    points=2,
    minutes=8,
    hints=(
        "The model reads everything. The labels say which of the tokens it is marked on.",
        "Both lists are equally long. Labels are -100 for the prompt and the tokens themselves afterwards, the end "
        "token included. Add that token only if the answer has none.",
        "after = answer_ids, plus [end_id] if its last token is another one. input_ids are prompt_ids + after, labels "
        "are [-100] * len(prompt_ids) + after.",
    ),
)
def mask_prompt(answer: Guard, cases: Cases) -> str:
    """(input_ids, labels) of one example."""
    tried = []
    for closed, inside in zip((False, True) * 3, (False, False, True, True, True, True), strict=True):
        end = cases.integer(2, 9)
        prompt = [10 + i for i in cases.different(0, 60, cases.integer(3, 9))]
        prompt[1] = end  # a chat template ends the user's turn with the same token
        reply = [10 + i for i in cases.different(0, 60, cases.integer(2, 8))]
        reply.insert(1, prompt[0])
        if inside:  # only the last token says that the answer has ended
            reply.insert(1, end)
        reply += [end] * closed
        got = answer(list(prompt), list(reply), end)
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(f"your mask_prompt should return two lists, input_ids and labels, not {kind(got)}")
        tried.append(((prompt, reply, end), (_row(got[0], "input_ids"), _row(got[1], "labels"))))
    failed = [(case, got) for case, got in tried if got != reference(*case)]
    if not failed:
        return f"{len(tried)} examples masked up to the answer, each with one end token to learn"
    for says, does in MISTAKES:
        if all(does(*case) == got for case, got in failed):
            raise Wrong(f"your mask_prompt {says}")
    (prompt, reply, end), (ids, labels) = failed[0]
    want = reference(prompt, reply, end)
    if len(ids) != len(labels):
        raise Wrong(f"your mask_prompt returns {len(ids)} input_ids and {len(labels)} labels: one label for each token")
    name, mine, right = ("input_ids", ids, want[0]) if ids != want[0] else ("labels", labels, want[1])
    raise Wrong(f"your mask_prompt returns {name} {mine} for prompt {prompt}, answer {reply}, end {end}: not {right}")
