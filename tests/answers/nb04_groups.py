"""Answers to exercise 4.5 of notebook 04."""

from . import right, wrong


def layers(model):
    return [module for module in model.modules() if hasattr(module, "A") and hasattr(module, "B")]


def groups(model, lr, ratio):
    found = layers(model)
    return [
        {"params": [layer.A for layer in found], "lr": lr},
        {"params": [layer.B for layer in found], "lr": lr * ratio},
    ]


def by_name(model, lr, ratio):
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": (p for name, p in named if name.endswith(".B")), "lr": ratio * lr, "weight_decay": 0.0},
        {"params": (p for name, p in named if name.endswith(".A")), "lr": lr},
    ]


def one_each(model, lr, ratio):
    return tuple(
        {"params": factor, "lr": rate}
        for layer in layers(model)
        for factor, rate in ((layer.A, lr), (layer.B, lr * ratio))
    )


def rates(a, b):
    def answer(model, lr, ratio):
        first, second = groups(model, lr, ratio)
        return [first | {"lr": a(lr, ratio)}, second | {"lr": b(lr, ratio)}]

    return answer


def everything(model, lr, ratio):
    first, second = groups(model, lr, ratio)
    mine = {id(p) for p in (*first["params"], *second["params"])}
    return [first | {"params": first["params"] + [p for p in model.parameters() if id(p) not in mine]}, second]


def one_layer(model, lr, ratio):
    layer = layers(model)[0]
    return [{"params": [layer.A], "lr": lr}, {"params": [layer.B], "lr": lr * ratio}]


def twice(model, lr, ratio):
    first, second = groups(model, lr, ratio)
    return [first, second, {"params": second["params"][:1], "lr": lr}]


def copies(model, lr, ratio):
    first, second = groups(model, lr, ratio)
    return [first | {"params": [p.detach().clone() for p in first["params"]]}, second]


def uneven(model, lr, ratio):
    found = layers(model)
    return [
        {"params": [layer.A for layer in found] + [found[0].B], "lr": lr},
        {"params": [layer.B for layer in found[1:]], "lr": ratio * lr},
    ]


GROUPS = [
    right("4.5", "two lists", groups),
    right("4.5", "by name, B first, as generators", by_name),
    right("4.5", "a group for each factor", one_each),
    wrong("4.5", "swapped", "give A the larger rate", rates(lambda lr, q: lr * q, lambda lr, q: lr)),
    wrong("4.5", "A slowed down", "slow A down", rates(lambda lr, q: lr / q, lambda lr, q: lr)),
    wrong("4.5", "the same", "give both the same rate", rates(lambda lr, q: lr, lambda lr, q: lr)),
    wrong("4.5", "both large", "give both the larger rate", rates(lambda lr, q: lr * q, lambda lr, q: lr * q)),
    wrong("4.5", "ratio as rate", "take the ratio for the rate of B", rates(lambda lr, q: lr, lambda lr, q: q)),
    wrong("4.5", "divided", "divide by the ratio", rates(lambda lr, q: lr, lambda lr, q: lr / q)),
    wrong("4.5", "added", "add the ratio", rates(lambda lr, q: lr, lambda lr, q: lr + q)),
    wrong("4.5", "split", "split the ratio", rates(lambda lr, q: lr / q**0.5, lambda lr, q: lr * q**0.5)),
    wrong("4.5", "squared", "the rates are off", rates(lambda lr, q: lr, lambda lr, q: lr * q**2)),
    wrong("4.5", "everything", "are no factor of a LoRA layer", everything),
    wrong("4.5", "one layer", "would not train", one_layer),
    wrong("4.5", "twice", "stands in two groups", twice),
    wrong("4.5", "copies", "the layers' own parameters", copies),
    wrong("4.5", "uneven", "have different rates", uneven),
    wrong("4.5", "a dict", "should return a list of dicts", lambda model, lr, ratio: groups(model, lr, ratio)[0]),
    wrong(
        "4.5",
        "no lr",
        "has no 'lr'",
        lambda model, lr, ratio: [{"params": g["params"]} for g in groups(model, lr, ratio)],
    ),
]
