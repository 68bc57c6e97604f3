"""Answers to the exercises of notebook 00."""

from itertools import starmap

import torch

from lora_lab.inject import count

from . import right, wrong


def matched(hit):
    return lambda answers, expected: sum(starmap(hit, zip(answers, expected, strict=True))) / len(answers)


def with_loop(answers, expected):
    hits = 0
    for i in range(len(answers)):
        if answers[i].strip() == expected[i].strip():
            hits += 1
    return hits / len(expected)


def as_tensor(answers, expected):
    equal = [a.strip() == e.strip() for a, e in zip(answers, expected, strict=True)]
    return torch.tensor(equal, dtype=torch.float64).mean()


def stripped_in_place(answers, expected):
    for i, text in enumerate(answers):
        answers[i] = text.strip()
    return sum(a == e.strip() for a, e in zip(answers, expected, strict=True)) / len(answers)


exact = matched(lambda a, e: a.strip() == e.strip())

EXACT_MATCH = [
    right("0.1", "generator over zip", exact),
    right("0.1", "loop over indices", with_loop),
    right("0.1", "0-d float64 tensor", as_tensor),
    wrong("0.1", "no strip", "without stripping", matched(lambda a, e: a == e)),
    wrong("0.1", "answers stripped only", "strips the answers only", matched(lambda a, e: a.strip() == e)),
    wrong("0.1", "expected stripped only", "strips the expected strings only", matched(lambda a, e: a == e.strip())),
    wrong("0.1", "spaces only", "tabs and line ends", matched(lambda a, e: a.strip(" ") == e.strip(" "))),
    wrong("0.1", "rstrip", "strips the end only", matched(lambda a, e: a.rstrip() == e.rstrip())),
    wrong("0.1", "lstrip", "strips the start only", matched(lambda a, e: a.lstrip() == e.lstrip())),
    wrong("0.1", "case ignored", "upper and lower case", matched(lambda a, e: a.strip().lower() == e.strip().lower())),
    wrong(
        "0.1",
        "all whitespace gone",
        "removes whitespace inside",
        matched(lambda a, e: a.split() == e.split() or "".join(a.split()) == "".join(e.split())),
    ),
    wrong("0.1", "inner whitespace evened out", "evens out whitespace", matched(lambda a, e: a.split() == e.split())),
    wrong("0.1", "contains", "only contains", matched(lambda a, e: e.strip() in a.strip())),
    wrong("0.1", "starts with", "only starts with", matched(lambda a, e: a.strip().startswith(e.strip()))),
    wrong(
        "0.1",
        "any order",
        "right for another question",
        lambda answers, expected: sum(a.strip() in [e.strip() for e in expected] for a in answers) / len(answers),
    ),
    wrong("0.1", "count", "divide by how many", lambda answers, expected: exact(answers, expected) * len(answers)),
    wrong("0.1", "percent", "a share lies between 0 and 1", lambda answers, expected: 100 * exact(answers, expected)),
    wrong("0.1", "integer division", "lost the fraction", lambda answers, expected: with_loop(answers, expected) // 1),
    wrong("0.1", "all or nothing", "not the bool False", lambda answers, expected: exact(answers, expected) == 1),
    wrong(
        "0.1",
        "list of hits",
        "not a list of",
        lambda answers, expected: [a == e for a, e in zip(answers, expected, strict=True)],
    ),
    wrong("0.1", "list changed", "changed the list answers", stripped_in_place),
    wrong("0.1", "no return", "returned nothing", lambda answers, expected: print(end="")),
]


def share_of(trainable, total, percent=100.0):
    return trainable, total, percent * trainable / total


def library(model):
    return count(model)


def with_named_parameters(model):
    total = trainable = 0
    for _, p in model.named_parameters():
        n = 1
        for side in p.shape:
            n *= side
        total += n
        trainable += n if p.requires_grad else 0
    return [trainable, total, trainable / total * 100]


def with_tensors(model):
    sizes = torch.tensor([p.numel() for p in model.parameters()])
    learns = torch.tensor([p.requires_grad for p in model.parameters()])
    return (sizes * learns).sum(), sizes.sum(), 100 * (sizes * learns).sum() / sizes.sum()


def rounded(model):
    trainable, total, percent = count(model)
    return trainable, total, round(percent, 2)


def sized(size):
    def share(model):
        sizes = [(size(p), p.requires_grad) for p in model.parameters()]
        return share_of(sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes))

    return share


def listed(parameters):
    def share(model):
        listing = list(parameters(model))
        return share_of(sum(p.numel() for p in listing if p.requires_grad), sum(p.numel() for p in listing))

    return share


def changed(change):
    return lambda model: change(*count(model))


def freezes(model):
    model.requires_grad_(False)
    return 0, count(model).total, 0.0


def by_state_dict(model):
    return share_of(count(model).trainable, sum(t.numel() for t in model.state_dict().values()))


def with_buffers(model):
    return share_of(count(model).trainable, count(model).total + sum(b.numel() for b in model.buffers()))


def frozen_share(model):
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return share_of(frozen, count(model).total)


SHARE = [
    right("0.2", "library", library),
    right("0.2", "loop over named parameters", with_named_parameters),
    right("0.2", "0-d tensors", with_tensors),
    right("0.2", "percent with two decimals", rounded),
    wrong("0.2", "tensors counted", "counts tensors", sized(lambda p: 1)),
    wrong("0.2", "rows counted", "counts the rows", sized(lambda p: p.shape[0])),
    wrong(
        "0.2",
        "tied twice",
        "tied parameter twice",
        listed(lambda m: (p for _, p in m.named_parameters(remove_duplicate=False))),
    ),
    wrong(
        "0.2",
        "nested twice",
        "nested modules again",
        listed(lambda m: (p for part in m.modules() for p in part.parameters())),
    ),
    wrong("0.2", "no biases", "leaves out the biases", listed(lambda m: (p for p in m.parameters() if p.ndim == 2))),
    wrong("0.2", "buffers", "counts buffers", with_buffers),
    wrong("0.2", "state dict", "state dict", by_state_dict),
    wrong("0.2", "share not percent", "multiply by 100", changed(lambda a, b, c: (a, b, a / b))),
    wrong("0.2", "percent of frozen", "divides by the frozen", changed(lambda a, b, c: (a, b, 100 * a / (b - a)))),
    wrong("0.2", "frozen as total", "frozen parameters in second place", changed(lambda a, b, c: (a, b - a, c))),
    wrong("0.2", "swapped", "swapped the first two", changed(lambda a, b, c: (b, a, c))),
    wrong("0.2", "all trainable", "everything as trainable", changed(lambda a, b, c: (b, b, 100.0))),
    wrong("0.2", "frozen counted", "counts the frozen parameters as trainable", frozen_share),
    wrong("0.2", "percent only", "(trainable, total, percent), not the float", changed(lambda a, b, c: c)),
    wrong("0.2", "text", "should be one number, not the str", changed(lambda a, b, c: (a, b, f"{c:.2f} %"))),
    wrong("0.2", "freezes the model", "switched requires_grad", freezes),
    wrong("0.2", "frozen model divides by zero", "ZeroDivisionError", changed(lambda a, b, c: (a, b, 100 / (b / a)))),
]
