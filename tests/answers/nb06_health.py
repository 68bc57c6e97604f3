"""Answers to exercises 6.4 and 6.5 of notebook 06."""

import math

import torch

from lora_lab.checks.nb06_health import part, problems, reference

from . import right, wrong


def by_lists(model):
    named = list(model.named_parameters())
    mine = [name for name, _ in named if "lora_A" in name.split(".") or "lora_B" in name.split(".")]
    train = [name for name, parameter in named if parameter.requires_grad]
    return [name for name in train if name not in mine], [name for name in mine if name not in train]


def by_dots(model):
    extra, frozen = set(), set()
    for name, parameter in model.named_parameters():
        adapter = any(f".{key}." in f".{name}." for key in ("lora_A", "lora_B"))
        if parameter.requires_grad != adapter:
            (frozen if adapter else extra).add(name)
    return extra, frozen


def judged(adapter):
    """freeze_check with another idea of what an adapter's parameter is: adapter(name)."""

    def answer(model):
        named = list(model.named_parameters())
        return (
            [name for name, p in named if p.requires_grad and not adapter(name)],
            [name for name, p in named if not p.requires_grad and adapter(name)],
        )

    return answer


def in_weights_only(model):
    extra, frozen = problems(model)
    return {name for name in extra if name.endswith("weight")}, frozen


FREEZE = [
    right("6.4", "sets", problems),
    right("6.4", "lists", by_lists),
    right("6.4", "dots", by_dots),
    wrong("6.4", "lora anywhere", "only sounds like LoRA", judged(lambda name: "lora" in name)),
    wrong("6.4", "lora_ anywhere", "only sounds like LoRA", judged(lambda name: "lora_" in name)),
    wrong("6.4", "lora_A anywhere", "only sounds like LoRA", judged(lambda name: "lora_A" in name or "lora_B" in name)),
    wrong("6.4", "A only", "in a model where all is well", judged(lambda name: part(name) == "A")),
    wrong("6.4", "B only", "in a model where all is well", judged(lambda name: part(name) == "B")),
    wrong("6.4", "base only", "a factor A that does not train", lambda model: (problems(model)[0], [])),
    wrong("6.4", "factors only", "a base weight that trains", lambda model: ([], problems(model)[1])),
    wrong("6.4", "swapped", "swaps the two lists", lambda model: problems(model)[::-1]),
    wrong("6.4", "biases forgotten", "a base bias that trains", in_weights_only),
    wrong("6.4", "all well", "a base weight that trains", lambda model: ([], [])),
    wrong("6.4", "counts", "as a list of parameter names", lambda model: tuple(map(len, problems(model)))),
    wrong("6.4", "one list", "should return two lists", lambda model: {"extra": 1, "frozen": 2, "all": 3}),
    wrong(
        "6.4",
        "module paths",
        "which is no parameter",
        lambda model: tuple([name.rpartition(".")[0] for name in names] for names in problems(model)),
    ),
    wrong("6.4", "frozen by it", "requires_grad", lambda model: model.requires_grad_(False) and ([], [])),
]


def norms(model):
    return dict(zip("AB", reference(model), strict=True))


def by_vector(model):
    found = {}
    for letter in ("A", "B"):
        grads = [p.grad.flatten() for n, p in model.named_parameters() if f".lora_{letter}." in n if p.grad is not None]
        found[letter] = torch.cat(grads).norm() if grads else 0.0
    return found


def by_hypot(model):
    found = {"A": 0.0, "B": 0.0}
    for name, parameter in model.named_parameters():
        if part(name) and parameter.grad is not None:
            found[part(name)] = math.hypot(found[part(name)], parameter.grad.norm().item())
    return found


def collected(measure):
    """measure(gradients of one letter) in place of the norm of all of them."""

    def answer(model):
        grads = {letter: [p.grad for n, p in model.named_parameters() if part(n) == letter] for letter in "AB"}
        return {letter: measure([g for g in grads[letter] if g is not None]) for letter in "AB"}

    return answer


def of_weights(model):
    named = model.named_parameters()
    squares = {"A": 0.0, "B": 0.0}
    for name, parameter in named:
        if part(name):
            squares[part(name)] += parameter.detach().norm().item() ** 2
    return {letter: square**0.5 for letter, square in squares.items()}


def with_the_base(model):
    squares = {"A": 0.0, "B": 0.0}
    for name, parameter in model.named_parameters():
        for letter in squares:
            if parameter.grad is not None and part(name) in (letter, None):
                squares[letter] += parameter.grad.norm().item() ** 2
    return {letter: square**0.5 for letter, square in squares.items()}


def none_forgotten(model):
    return {
        letter: sum(p.grad.norm().item() ** 2 for n, p in model.named_parameters() if part(n) == letter) ** 0.5
        for letter in "AB"
    }


NORMS = [
    right("6.5", "squares", norms),
    right("6.5", "one vector", by_vector),
    right("6.5", "hypot", by_hypot),
    wrong("6.5", "swapped", "swaps A and B", lambda model: dict(zip("BA", reference(model), strict=True))),
    wrong("6.5", "sum of norms", "adds the norms", collected(lambda grads: sum(float(g.norm()) for g in grads))),
    wrong("6.5", "squared", "forgets the square root", lambda model: {k: v**2 for k, v in norms(model).items()}),
    wrong(
        "6.5",
        "mean of norms",
        "takes the mean",
        collected(lambda grads: sum(float(g.norm()) for g in grads) / max(1, len(grads))),
    ),
    wrong(
        "6.5",
        "largest",
        "takes the largest norm",
        collected(lambda grads: max((float(g.norm()) for g in grads), default=0.0)),
    ),
    wrong("6.5", "weights", "measures the weights", of_weights),
    wrong("6.5", "with the base", "counts gradients of the base", with_the_base),
    wrong("6.5", "together", "both together", lambda model: dict.fromkeys("AB", math.hypot(*reference(model)))),
    wrong(
        "6.5",
        "overwritten",
        "looks at the last tensor",
        collected(lambda grads: float(grads[-1].norm()) if grads else 0.0),
    ),
    wrong("6.5", "sizes", "sums sizes", collected(lambda grads: sum(float(g.abs().sum()) for g in grads))),
    wrong("6.5", "None forgotten", "raised AttributeError", none_forgotten),
    wrong("6.5", "a pair", "with the keys 'A' and 'B'", reference),
    wrong("6.5", "nan", "'A' is nan", lambda model: {"A": float("nan"), "B": 1.0}),
]
