"""Answers to exercises 3.7 and 3.8 of notebook 03."""

import torch
from torch import nn

from lora_lab.adapter_file import adapter_state as library_state
from lora_lab.layer import LoRALinear
from lora_lab.merge import merged_weight

from . import right, wrong


def merge(W, A, B, scale):
    return (W.float() + scale * (B.float() @ A.float())).to(W.dtype)


def by_addmm(W, A, B, scale):
    return torch.addmm(W.to(torch.float32), B, A, alpha=scale).to(W.dtype)


def with_double(W, A, B, scale):
    return (W.double() + scale * torch.einsum("or,ri->oi", B, A)).type_as(W)


def by_library(W, A, B, scale):
    base = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    base.weight.data.copy_(W)
    layer = LoRALinear(base, len(A), scale * len(A), init=lambda weight, rank, scale: (A, B))
    return merged_weight(layer)


def promoted(W, A, B, scale):
    return (W + scale * (B @ A)).to(W.dtype)  # bf16 + fp32 is summed in fp32


def in_place(W, A, B, scale):
    W += scale * B @ A
    return W


def add_(W, A, B, scale):
    return W.add_((scale * B @ A).to(W.dtype))


MERGE = [
    right("3.7", "library", by_library),
    right("3.7", "float and back", merge),
    right("3.7", "addmm", by_addmm),
    right("3.7", "double", with_double),
    right("3.7", "promotion", promoted),
    wrong("3.7", "no scale", "leaves out the scale", lambda W, A, B, scale: merge(W, A, B, 1)),
    wrong("3.7", "scale twice", "applies the scale twice", lambda W, A, B, scale: merge(W, scale * A, scale * B, 1)),
    wrong("3.7", "divided", "divides by the scale", lambda W, A, B, scale: merge(W, A, B, 1 / scale)),
    wrong("3.7", "W scaled", "scales W too", lambda W, A, B, scale: (scale * (W.float() + B @ A)).to(W.dtype)),
    wrong(
        "3.7", "double add", "adds the update twice", lambda W, A, B, scale: merge(merge(W, A, B, scale), A, B, scale)
    ),
    wrong("3.7", "subtracted", "that is unmerging", lambda W, A, B, scale: merge(W, A, B, -scale)),
    wrong("3.7", "update alone", "the update alone", lambda W, A, B, scale: (scale * (B @ A)).to(W.dtype)),
    wrong("3.7", "W", "returned W unchanged", lambda W, A, B, scale: W),
    wrong("3.7", "A B", "in the wrong order", lambda W, A, B, scale: merge(W, B, A, scale)),
    wrong("3.7", "update transposed", "transposes the update", lambda W, A, B, scale: merge(W, B.T, A.T, scale)),
    wrong("3.7", "factor transposed", "transposes a factor", lambda W, A, B, scale: merge(W, A.T, B.T, scale)),
    wrong("3.7", "in place", "changed W itself", in_place),
    wrong("3.7", "add_", "changed W itself", add_),
    wrong("3.7", "dtype lost", "is float32, but bfloat16", lambda W, A, B, scale: W.float() + scale * B @ A),
    wrong("3.7", "dtype by promotion", "is float32, but bfloat16", lambda W, A, B, scale: W + scale * B @ A),
    wrong("3.7", "summed in half", "adds in bfloat16", lambda W, A, B, scale: W + (scale * B @ A).to(W.dtype)),
    wrong(
        "3.7",
        "product in half, then scaled",
        "before it is scaled",
        lambda W, A, B, scale: W + scale * (B @ A).to(W.dtype),
    ),
    wrong(
        "3.7",
        "product in half",
        "rounds B A to bfloat16",
        lambda W, A, B, scale: (W.float() + scale * (B @ A).to(W.dtype).float()).to(W.dtype),
    ),
    wrong(
        "3.7",
        "factors in half",
        "rounds the factors",
        lambda W, A, B, scale: W + scale * (B.to(W.dtype) @ A.to(W.dtype)),
    ),
    wrong(
        "3.7",
        "factors rounded",
        "rounds the factors",
        lambda W, A, B, scale: merge(W, A.to(W.dtype), B.to(W.dtype), scale),
    ),
    wrong(
        "3.7", "always bfloat16", "is bfloat16, but float32", lambda W, A, B, scale: merge(W, A, B, scale).bfloat16()
    ),
]

PREFIX = "base_model.model."


def layers(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "A") and hasattr(module, "B")}


def saved(key, value=lambda factor: factor.detach().clone()):
    """A state with `key(path, letter)` and `value(factor)`."""
    return lambda model: {
        key(name, letter): value(getattr(layer, letter)) for name, layer in layers(model).items() for letter in "AB"
    }


def peft(name, letter):
    return f"{PREFIX}{name}.lora_{letter}.weight"


right_state = saved(peft)


def from_state_dict(model):
    state = {}
    for key, value in model.state_dict().items():
        path, _, last = key.rpartition(".")
        if last in ("A", "B") and not path.endswith("base"):
            state[PREFIX + path + f".lora_{last}.weight"] = value.to("cpu", copy=True)
    return state


def by_attributes(model):
    state = {}
    for name, module in model.named_modules():
        if hasattr(module, "base") and hasattr(module, "A"):
            state |= {peft(name, "A"): module.A.data.clone(), peft(name, "B"): module.B.data.clone()}
    return state


class MyLoRALinear(LoRALinear):
    """Stands for the learner's own layer."""


def of_one_class(model):
    found = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    return {peft(n, x): getattr(m, x).detach().clone() for n, m in found.items() for x in "AB"}


def of_own_layer(model):
    found = {n: m for n, m in model.named_modules() if isinstance(m, MyLoRALinear)}
    return {peft(n, x): getattr(m, x).detach().clone() for n, m in found.items() for x in "AB"}


def and_base(model):
    return right_state(model) | {f"{PREFIX}{n}.base.weight": m.base.weight.clone() for n, m in layers(model).items()}


def root_missing(model):
    return {key: value for key, value in right_state(model).items() if "head" not in key}


def swapped(model):
    return {peft(n, x): getattr(m, y).detach().clone() for n, m in layers(model).items() for x, y in ("AB", "BA")}


def scaled(model):
    return {
        peft(n, x): getattr(m, x).detach() * (m.scale if x == "B" else 1.0)
        for n, m in layers(model).items()
        for x in "AB"
    }


def zeroing(model):
    state = right_state(model)
    for layer in layers(model).values():
        layer.B.data.zero_()
    return state


def keyed(pattern):
    return saved(lambda name, letter: pattern.format(name=name, letter=letter, lower=letter.lower()))


STATE = [
    right("3.8", "detached clones", right_state),
    right("3.8", "from the state dict", from_state_dict),
    right("3.8", "by attributes", by_attributes),
    wrong("3.8", "library", "of the class LowRank: look for modules that have an A and a B", library_state),
    wrong(
        "3.8", "isinstance LoRALinear", "look for modules that have an A and a B, whatever their class", of_one_class
    ),
    wrong("3.8", "isinstance MyLoRALinear", "look for modules that have an A and a B, whatever their", of_own_layer),
    wrong("3.8", "no prefix", "the prefix base_model.model. is missing", keyed("{name}.lora_{letter}.weight")),
    wrong("3.8", "half a prefix", "in full", keyed("base_model.{name}.lora_{letter}.weight")),
    wrong("3.8", "model prefix", "in full", keyed("model.{name}.lora_{letter}.weight")),
    wrong("3.8", "A for lora_A", "lora_A.weight and lora_B.weight", keyed(PREFIX + "{name}.{letter}")),
    wrong("3.8", "own names", "the prefix and PEFT's names are missing", keyed("{name}.{letter}")),
    wrong("3.8", "no weight", ".weight is missing", keyed(PREFIX + "{name}.lora_{letter}")),
    wrong(
        "3.8", "adapter name", "(default) is not in PEFT's files", keyed(PREFIX + "{name}.lora_{letter}.default.weight")
    ),
    wrong("3.8", "small letters", "a capital letter", keyed(PREFIX + "{name}.lora_{lower}.weight")),
    wrong("3.8", "path of the base", "without .base", keyed(PREFIX + "{name}.base.lora_{letter}.weight")),
    wrong("3.8", "last step only", "only the last part", saved(lambda name, x: peft(name.rpartition(".")[2], x))),
    wrong("3.8", "slashes", "has the key", saved(lambda name, x: peft(name, x).replace(".", "/"))),
    wrong("3.8", "base weights", "holds 'base_model.model.blocks.0.attn.q_proj.base.weight' too", and_base),
    wrong(
        "3.8",
        "whole state dict",
        "has the key",
        lambda model: {PREFIX + k: v.clone() for k, v in model.state_dict().items()},
    ),
    wrong("3.8", "a layer missing", "lacks 'base_model.model.head.lora_A.weight'", root_missing),
    wrong("3.8", "swapped", "A and B swapped", swapped),
    wrong("3.8", "transposed", "it is transposed", saved(peft, lambda factor: factor.detach().T.clone())),
    wrong("3.8", "scale in B", "has the scale in", scaled),
    wrong(
        "3.8", "zeros", "other numbers than the layer", saved(peft, lambda factor: torch.zeros_like(factor.detach()))
    ),
    wrong("3.8", "half precision", "is bfloat16, but float32", saved(peft, lambda factor: factor.detach().bfloat16())),
    wrong("3.8", "the parameters", "still trains", saved(peft, lambda factor: factor)),
    wrong("3.8", "clones with a graph", "still trains", saved(peft, lambda factor: factor.clone())),
    wrong("3.8", "aliases", "the layer's own memory", saved(peft, lambda factor: factor.detach())),
    wrong("3.8", "data", "the layer's own memory", saved(peft, lambda factor: factor.data)),
    wrong("3.8", "numpy", "not a ndarray", saved(peft, lambda factor: factor.detach().numpy().copy())),
    wrong("3.8", "list of pairs", "a dict of tensors, not a list", lambda model: list(right_state(model).items())),
    wrong("3.8", "nothing found", "found no LoRA layer", lambda model: {}),
    wrong("3.8", "changes the model", "changed blocks.0.attn.q_proj.B of the model", zeroing),
]
