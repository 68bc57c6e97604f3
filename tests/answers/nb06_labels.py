"""Answers to exercise 6.2 of notebook 06."""

import torch

from lora_lab.checks.nb06_labels import reference

from . import right, wrong


def by_place(prompt, answer, end):
    ids = prompt + answer
    if ids[-1] != end:
        ids = [*ids, end]
    return ids, [-100 if place < len(prompt) else token for place, token in enumerate(ids)]


def by_tensor(prompt, answer, end):
    ids = torch.tensor(prompt + answer + [end] * (answer[-1] != end))
    labels = ids.clone()
    labels[: len(prompt)] = -100
    return ids, labels


def as_columns(prompt, answer, end):
    ids, labels = by_place(prompt, answer, end)
    return {"input_ids": ids, "labels": labels}


def labelled(change):
    """The right ids, the labels changed: change(prompt, answer with its end, end)."""

    def answer(prompt, reply, end):
        ids = reference(prompt, reply, end)[0]
        return ids, change(prompt, ids[len(prompt) :], end)

    return answer


LABELS = [
    right("6.2", "sum of lists", reference),
    right("6.2", "by place", by_place),
    right("6.2", "in columns", lambda p, a, e: tuple(as_columns(p, a, e).values())),
    wrong("6.2", "tensors", "as a list of whole numbers", by_tensor),
    wrong("6.2", "columns", "should return two lists", as_columns),
    wrong(
        "6.2",
        "end seen inside",
        "inside the answer",
        lambda p, a, e: (p + a + [e] * (e not in a), [-100] * len(p) + a + [e] * (e not in a)),
    ),
    wrong("6.2", "no end", "never learns to stop", lambda p, a, e: (p + a, [-100] * len(p) + a)),
    wrong("6.2", "end masked", "masks the end token", labelled(lambda p, a, e: [-100] * len(p) + a[:-1] + [-100])),
    wrong("6.2", "two ends", "a second end token", lambda p, a, e: (p + a + [e], [-100] * len(p) + a + [e])),
    wrong("6.2", "everything learned", "labels the prompt too", labelled(lambda p, a, e: p + a)),
    wrong("6.2", "the other way", "the other way round", labelled(lambda p, a, e: p + [-100] * len(a))),
    wrong("6.2", "shifted", "shifts the labels", labelled(lambda p, a, e: [-100] * (len(p) - 1) + a + [-100])),
    wrong("6.2", "one too few", "one token too few", labelled(lambda p, a, e: [-100] * (len(p) - 1) + p[-1:] + a)),
    wrong("6.2", "one too many", "one token too many", labelled(lambda p, a, e: [-100] * (len(p) + 1) + a[1:])),
    wrong("6.2", "zeros", "masks with 0", labelled(lambda p, a, e: [0] * len(p) + a)),
    wrong("6.2", "minus one", "masks with -1", labelled(lambda p, a, e: [-1] * len(p) + a)),
    wrong("6.2", "end for mask", "masks with the end token", labelled(lambda p, a, e: [e] * len(p) + a)),
    wrong("6.2", "answer only", "one entry for each token", labelled(lambda p, a, e: a)),
    wrong("6.2", "all masked", "masks everything", labelled(lambda p, a, e: [-100] * (len(p) + len(a)))),
    wrong(
        "6.2",
        "by value",
        "mask by place, not by value",
        lambda p, a, e: (reference(p, a, e)[0], [-100 if t in p else t for t in reference(p, a, e)[0]]),
    ),
    wrong("6.2", "swapped", "swaps the two lists", lambda p, a, e: reference(p, a, e)[::-1]),
    wrong("6.2", "blind", "into the input_ids", lambda p, a, e: (reference(p, a, e)[1],) * 2),
    wrong("6.2", "ids only", "should return two lists", lambda p, a, e: reference(p, a, e)[0]),
    wrong("6.2", "floats", "whole numbers", lambda p, a, e: (p + a, [float("nan")] * len(p) + a)),
]
