"""Answers to exercise 3.6 of notebook 03."""

import copy

from torch import nn

from lora_lab.inject import inject
from lora_lab.layer import LoRALinear

from . import right, wrong
from .nb03_layer import Plain
from .nb03_names import suffix


def steps(match=suffix, layer=LoRALinear, refuse=True, freeze="first", where=None, again=True):
    """A right `adapt` in which any one step can be done in another way."""

    def adapt(model, targets, rank, alpha):
        if again and any(hasattr(module, "A") and hasattr(module, "B") for module in model.modules()):
            raise ValueError("the model is adapted already")
        chosen = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and match(n, targets)]
        if refuse and not chosen:
            raise ValueError(f"no linear layer matches {targets}")
        if freeze == "first":
            model.requires_grad_(False)
        for name, module in chosen:
            parent, _, last = name.rpartition(".")
            setattr((where or model.get_submodule)(parent), last, layer(module, rank, alpha))
        if freeze == "last":
            model.requires_grad_(False)
        return model

    return adapt


right_adapt = steps()


def while_walking(model, targets, rank, alpha):
    assert not any(hasattr(m, "base") and hasattr(m, "A") for m in model.modules()), "adapted already"
    if not any(suffix(n, targets) for n, m in model.named_modules()):
        raise KeyError(targets)
    for p in model.parameters():
        p.requires_grad = False
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            path = f"{parent_name}.{name}".lstrip(".")
            if isinstance(child, nn.Linear) and suffix(path, targets):
                setattr(parent, name, LoRALinear(child, rank, alpha))
    return model


def no_return(model, targets, rank, alpha):
    right_adapt(model, targets, rank, alpha)


def adapted_copy(model, targets, rank, alpha):
    return right_adapt(copy.deepcopy(model), targets, rank, alpha)


def swapped(model, targets, rank, alpha):
    return right_adapt(model, targets, alpha, rank)


def alpha_forgotten(model, targets, rank, alpha):
    return right_adapt(model, targets, rank, rank)


def frozen_before_refusal(model, targets, rank, alpha):
    model.requires_grad_(False)
    return right_adapt(model, targets, rank, alpha)


def refuses_afterwards(model, targets, rank, alpha):
    adapted = any(isinstance(m, LoRALinear) for m in model.modules())
    steps(again=False)(model, targets, rank, alpha)
    if adapted:
        raise ValueError("the model was adapted already")
    return model


def wraps_the_wrapped(model, targets, rank, alpha):
    """Duck-typed: anything with the name of a target is wrapped, a wrapper too."""
    chosen = [(n, m) for n, m in model.named_modules() if suffix(n, targets)]
    if not chosen:
        raise ValueError("no match")
    model.requires_grad_(False)
    for name, module in chosen:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Duck(module, rank, alpha))
    return model


class Duck(Plain):
    """A layer that wraps whatever has a weight."""

    def __init__(self, base, rank, alpha):
        if isinstance(base, Plain):
            base.in_features, base.out_features = base.base.in_features, base.base.out_features
        super().__init__(base, rank, alpha)


def refuses_the_wrapped_only(model, targets, rank, alpha):
    chosen = [(n, m) for n, m in model.named_modules() if suffix(n, targets)]
    if any(isinstance(m, LoRALinear) for _, m in chosen):
        raise ValueError("adapted already")
    return steps(again=False)(model, targets, rank, alpha)


def crashes_on_none(model, targets, rank, alpha):
    first = next((m for n, m in model.named_modules() if suffix(n, targets)), None)
    assert first is None or first.weight is not None
    first.weight.requires_grad_(False)
    return right_adapt(model, targets, rank, alpha)


def index_on_none(model, targets, rank, alpha):
    found = [n for n, m in model.named_modules() if suffix(n, targets)]
    assert found[0]
    return right_adapt(model, targets, rank, alpha)


def freezes_bases_only(model, targets, rank, alpha):
    return steps(freeze="never")(model, targets, rank, alpha)


def keeps_biases(model, targets, rank, alpha):
    right_adapt(model, targets, rank, alpha)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.requires_grad_(True)
    return model


def new_bases(model, targets, rank, alpha):
    return steps(
        layer=type(
            "Fresh",
            (LoRALinear,),
            {"__init__": lambda self, base, rank, alpha: LoRALinear.__init__(self, copy.deepcopy(base), rank, alpha)},
        )
    )(model, targets, rank, alpha)


def changes_numbers(model, targets, rank, alpha):
    right_adapt(model, targets, rank, alpha)
    model.norm.weight.data *= 2
    return model


def wraps_nothing(model, targets, rank, alpha):
    if not any(suffix(n, targets) for n, _ in model.named_modules()):
        raise ValueError("no match")
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if suffix(name, targets):
            module = LoRALinear(module, rank, alpha)
    return model


def root_forgotten(model, targets, rank, alpha):
    return steps(where=lambda parent: model.get_submodule(parent or "root"))(model, targets, rank, alpha)


def dotted_setattr(model, targets, rank, alpha):
    chosen = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and suffix(n, targets)]
    for name, module in chosen:
        setattr(model.requires_grad_(False), name, LoRALinear(module, rank, alpha))
    return model


def one_class(layer):
    """Looks for the LoRA layers of one class only."""

    def adapt(model, targets, rank, alpha):
        if any(isinstance(module, layer) for module in model.modules()):
            raise ValueError("the model is adapted already")
        return steps(layer=layer, again=False)(model, targets, rank, alpha)

    return adapt


def freezes_before_another_class(model, targets, rank, alpha):
    """Refuses its own class in time, any other after freezing."""
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("adapted already")
    if any(hasattr(module, "A") for module in model.modules()):
        model.requires_grad_(False)
        raise ValueError("adapted by somebody else")
    return right_adapt(model, targets, rank, alpha)


def endless(model, targets, rank, alpha):
    while not any(suffix(n, targets) for n, _ in model.named_modules()):
        pass
    return right_adapt(model, targets, rank, alpha)


ADAPT = [
    right("3.6", "get_submodule and setattr", right_adapt),
    right("3.6", "parents and children", while_walking),
    right("3.6", "own layer", steps(layer=Plain)),
    wrong("3.6", "substring", "matches part of a name", steps(match=lambda n, ts: any(t in n for t in ts))),
    wrong("3.6", "suffix without the dot", "matches any ending", steps(match=lambda n, ts: any(map(n.endswith, ts)))),
    wrong("3.6", "first target", "the first target only", steps(match=lambda n, ts: suffix(n, ts[:1]))),
    wrong(
        "3.6",
        "last step",
        "matches the last part of a name only",
        steps(match=lambda n, ts: n.split(".")[-1] in ts, refuse=True),
    ),
    wrong("3.6", "everything", "wraps every linear layer", steps(match=lambda n, ts: True)),
    wrong(
        "3.6",
        "last match only",
        "meant, but not wrapped",
        steps(match=lambda n, ts: suffix(n, ts) and "blocks.0" not in n),
    ),
    wrong("3.6", "nothing put in", "wraps no layer", wraps_nothing),
    wrong("3.6", "neighbours unfrozen", "freeze the whole model", freezes_bases_only),
    wrong("3.6", "biases unfrozen", "freeze the whole model", keeps_biases),
    wrong("3.6", "frozen last", "freeze first, then wrap", steps(freeze="last")),
    wrong("3.6", "no return", "returned nothing", no_return),
    wrong("3.6", "copy", "returned another model", adapted_copy),
    wrong("3.6", "bases copied", "as the base of its wrapper", new_bases),
    wrong("3.6", "rank and alpha swapped", "rank and alpha are swapped", swapped),
    wrong("3.6", "alpha forgotten", "a scale of 1, but", alpha_forgotten),
    wrong("3.6", "numbers changed", "changes the numbers in norm.weight", changes_numbers),
    wrong("3.6", "library", "isinstance knows one class", inject),
    wrong("3.6", "isinstance of the own layer", "any module that has an A and a B", one_class(Plain)),
    wrong("3.6", "isinstance of LoRALinear", "any module that has an A and a B", one_class(LoRALinear)),
    wrong("3.6", "another class frozen", "of another class, but by then it", freezes_before_another_class),
    wrong("3.6", "silent without a match", "goes on in silence when no layer matches", steps(refuse=False)),
    wrong("3.6", "silent when adapted", "the model is adapted already", steps(again=False)),
    wrong("3.6", "second injection wraps the wrapped", "a second time", wraps_the_wrapped),
    wrong("3.6", "other targets of an adapted model", "in silence when the model is adapted", refuses_the_wrapped_only),
    wrong("3.6", "frozen before the refusal", "by then it switched requires_grad", frozen_before_refusal),
    wrong("3.6", "refuses afterwards", "look first, change afterwards", refuses_afterwards),
    wrong("3.6", "crash on no match", "crashes with AttributeError when no layer matches", crashes_on_none),
    wrong("3.6", "index on no match", "crashes with IndexError when no layer matches", index_on_none),
    wrong(
        "3.6",
        "root forgotten",
        "raised AttributeError for a model, targets = ['mlp.0', 'head', 'attn.o_proj']",
        root_forgotten,
    ),
    wrong("3.6", "dotted setattr", "setattr knows no dots", dotted_setattr),
]
