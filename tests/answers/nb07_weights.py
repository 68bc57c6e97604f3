"""Answers to exercises 7.1, 7.2 and 7.6 of notebook 07."""

import copy

import torch
from torch import nn

from lora_lab.adapter import Factors
from lora_lab.combine import combine
from lora_lab.inject import lora_layers, unwrap
from lora_lab.merge import merge_, merged, unmerge_

from . import right, wrong


def weight(layer, times=1.0):
    wide = layer.base.weight.float() + times * layer.scale * (layer.B @ layer.A)
    return wide.to(layer.base.weight.dtype)


def merging(form, freeze=True):
    """A merge whose new weights are form(layer)."""

    @torch.no_grad()
    def merge(model):
        new = copy.deepcopy(model)
        for path, layer in lora_layers(new).items():
            layer.base.weight.data = form(layer).detach().contiguous()
            parent, _, name = path.rpartition(".")
            setattr(new.get_submodule(parent), name, layer.base)
        return new.requires_grad_(False) if freeze else new

    return merge


def with_library_pieces(model):
    return unwrap(merge_(copy.deepcopy(model))).requires_grad_(False)


def by_new_linears(model):
    new = copy.deepcopy(model)
    for path, layer in lora_layers(model).items():
        out, in_ = layer.base.weight.shape
        linear = nn.Linear(in_, out, layer.base.bias is not None, dtype=layer.base.weight.dtype)
        linear.weight.data = torch.addmm(
            layer.base.weight.double(), layer.B.double(), layer.A.double(), alpha=layer.scale
        )
        linear.weight.data = linear.weight.data.to(layer.base.weight.dtype)
        if layer.base.bias is not None:
            linear.bias.data = layer.base.bias.data.clone()
        parent, _, name = path.rpartition(".")
        setattr(new.get_submodule(parent), name, linear)
    return new.requires_grad_(False)


def in_place(model):
    return unwrap(merge_(model))


def still_wrapped(model):
    return merge_(copy.deepcopy(model))


def first_only(model):
    new = copy.deepcopy(model)
    path, layer = next(iter(lora_layers(new).items()))
    layer.base.weight.data = weight(layer).detach()
    parent, _, name = path.rpartition(".")
    setattr(new.get_submodule(parent), name, layer.base)
    return new


def shared(model):
    new = merging(weight)(model)
    new.embed = model.embed
    return new


def norm_changed(model):
    new = merging(weight)(model)
    new.norm.weight.data *= 1.01
    return new


def trains(model):
    new = merging(weight)(model)
    new.head.weight = nn.Parameter(new.head.weight.data)
    return new


def renamed(model):
    new = copy.deepcopy(model)
    for path, layer in lora_layers(new).items():
        layer.base.weight.data = weight(layer).detach()
        parent, _, name = path.rpartition(".")
        setattr(new.get_submodule(parent), name, nn.Sequential(layer.base))
    return new


def half(form):
    return merging(lambda layer: form(layer.base.weight, layer.A, layer.B, layer.scale))


MODELS = [
    right("7.1", "library", merged),
    right("7.1", "copy, write, put back", merging(weight)),
    right("7.1", "merge and unwrap", with_library_pieces),
    right("7.1", "new linears in double", by_new_linears),
    wrong("7.1", "in place", "of the model: leave the arguments", in_place),
    wrong("7.1", "the same model", "returns the model it was given", lambda model: model),
    wrong("7.1", "wrappers stay", "leaves 4 of 4 LoRA layers in the copy", still_wrapped),
    wrong("7.1", "one layer", "leaves 3 of 4 LoRA layers", first_only),
    wrong("7.1", "no update", "the adapter is gone without having been added", merging(lambda x: weight(x, 0))),
    wrong("7.1", "twice", "holds the update twice", merging(lambda x: weight(x, 2))),
    wrong("7.1", "subtracted", "holds W - s·BA", merging(lambda x: weight(x, -1))),
    wrong("7.1", "no scale", "leaves out the scale", merging(lambda x: weight(x, 1 / x.scale))),
    wrong("7.1", "scale twice", "applies the scale twice", merging(lambda x: weight(x, x.scale))),
    wrong("7.1", "alpha for scale", "is off by", merging(lambda x: weight(x, x.alpha / x.scale))),
    wrong("7.1", "half", "adds in bfloat16", half(lambda W, A, B, s: W + (s * (B @ A)).to(W.dtype))),
    wrong("7.1", "dtype lost", "is float32, but bfloat16", half(lambda W, A, B, s: W + s * (B @ A))),
    wrong("7.1", "shared", "shares embed.weight with the model", shared),
    wrong("7.1", "norm", "changes norm.weight, which no adapter touches", norm_changed),
    wrong("7.1", "trains", "still trains (head.weight)", trains),
    wrong("7.1", "renamed", "changes the names", renamed),
    wrong("7.1", "state", "should return a model, not", lambda model: merging(weight)(model).state_dict()),
]


def unmerge(W, A, B, scale):
    return (W.float() - scale * (B.float() @ A.float())).to(W.dtype)


def by_library(W, A, B, scale):
    from lora_lab.layer import LoRALinear

    base = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    layer = LoRALinear(base, len(A), scale * len(A), init=lambda *_: (A, B))
    layer.merged = True
    layer.base.weight.data.copy_(W)
    return unmerge_(layer).base.weight.detach()


def in_place_unmerge(W, A, B, scale):
    W -= (scale * (B @ A)).to(W.dtype)
    return W


UNMERGE = [
    right("7.2", "library", by_library),
    right("7.2", "float and back", unmerge),
    right("7.2", "addmm", lambda W, A, B, scale: torch.addmm(W.float(), B, A, alpha=-scale).to(W.dtype)),
    right("7.2", "promotion", lambda W, A, B, scale: (W - scale * (B @ A)).to(W.dtype)),
    wrong("7.2", "added", "that is a double merge", lambda W, A, B, scale: unmerge(W, A, B, -scale)),
    wrong("7.2", "no scale", "leaves out the scale", lambda W, A, B, scale: unmerge(W, A, B, 1)),
    wrong("7.2", "scale twice", "applies the scale twice", lambda W, A, B, scale: unmerge(W, scale * A, scale * B, 1)),
    wrong("7.2", "divided", "divides by the scale", lambda W, A, B, scale: unmerge(W, A, B, 1 / scale)),
    wrong("7.2", "unchanged", "returned the merged weight unchanged", lambda W, A, B, scale: W.clone()),
    wrong("7.2", "A B", "multiplies A B", lambda W, A, B, scale: unmerge(W, B, A, scale)),
    wrong("7.2", "transposed", "transposes the update", lambda W, A, B, scale: unmerge(W, B.T, A.T, scale)),
    wrong("7.2", "twice", "takes the update out twice", lambda W, A, B, scale: unmerge(W, A, B, 2 * scale)),
    wrong("7.2", "scaled", "scales W' too", lambda W, A, B, scale: (scale * (W.float() - B @ A)).to(W.dtype)),
    wrong("7.2", "in place", "changed W_merged itself", in_place_unmerge),
    wrong("7.2", "dtype lost", "the dtype got lost", lambda W, A, B, scale: W - scale * (B @ A)),
    wrong("7.2", "half", "subtracts in bfloat16", lambda W, A, B, scale: W - (scale * (B @ A)).to(W.dtype)),
]


def stacked(A1, B1, s1, A2, B2, s2):
    return torch.cat([s1 * A1, s2 * A2]), torch.cat([B1, B2], dim=1)


def in_B(A1, B1, s1, A2, B2, s2):
    return [torch.vstack([A1, A2]), torch.hstack([s1 * B1, s2 * B2])]


def second_first(A1, B1, s1, A2, B2, s2):
    A = torch.zeros(len(A1) + len(A2), A1.shape[1])
    A[: len(A2)], A[len(A2) :] = A2, s1 * A1
    return A, torch.cat([s2 * B2, B1], dim=1)


def by_combine(A1, B1, s1, A2, B2, s2):
    first, second = Factors(A1, B1, len(A1)), Factors(A2, B2, len(A2))
    both = combine([{"x": first}, {"x": second}], [s1, s2], "cat")["x"]
    return both.A, both.B * both.scale


def factors_added(A1, B1, s1, A2, B2, s2):
    return s1 * A1 + s2 * A2, B1 + B2


def roots_added(A1, B1, s1, A2, B2, s2):
    return s1**0.5 * A1 + s2**0.5 * A2, s1**0.5 * B1 + s2**0.5 * B2


def roots(A1, B1, s1, A2, B2, s2):
    root1, root2 = torch.tensor(s1).sqrt(), torch.tensor(s2).sqrt()
    return torch.cat([root1 * A1, root2 * A2]), torch.cat([root1 * B1, root2 * B2], dim=1)


def but(change):
    return lambda A1, B1, s1, A2, B2, s2: stacked(*change(A1, B1, s1, A2, B2, s2))


PAIRS = [
    right("7.6", "library", by_combine),
    right("7.6", "scales in A", stacked),
    right("7.6", "scales in B, a list", in_B),
    right("7.6", "second first", second_first),
    wrong("7.6", "no scales", "leaves the scales out", but(lambda A1, B1, s1, A2, B2, s2: (A1, B1, 1, A2, B2, 1))),
    wrong(
        "7.6",
        "scales twice",
        "each scale twice",
        but(lambda A1, B1, s1, A2, B2, s2: (A1, s1 * B1, s1, A2, s2 * B2, s2)),
    ),
    wrong("7.6", "swapped", "swaps the two scales", but(lambda A1, B1, s1, A2, B2, s2: (A1, B1, s2, A2, B2, s1))),
    wrong("7.6", "first alone", "the first adapter alone", but(lambda A1, B1, s1, A2, B2, s2: (A1, B1, s1, A2, B2, 0))),
    wrong(
        "7.6", "mean", "is the mean of the two", but(lambda A1, B1, s1, A2, B2, s2: (A1, B1, s1 / 2, A2, B2, s2 / 2))
    ),
    wrong("7.6", "absolute", "loses the sign", but(lambda A1, B1, s1, A2, B2, s2: (A1, B1, abs(s1), A2, B2, abs(s2)))),
    wrong("7.6", "factors added", "adds the factors instead of stacking", factors_added),
    wrong("7.6", "roots added", "adds the factors instead of stacking", roots_added),
    wrong("7.6", "roots", "a square root of a negative scale", roots),
    wrong("7.6", "matrix", "returns the sum as one matrix", lambda *args: stacked(*args)[1] @ stacked(*args)[0]),
    wrong("7.6", "order", "returns (B, A)", lambda *args: stacked(*args)[::-1]),
    wrong("7.6", "first factors", "are expected", lambda A1, B1, s1, A2, B2, s2: (s1 * A1, B1)),
    wrong(
        "7.6", "in place", "changed A1 itself", lambda A1, B1, s1, A2, B2, s2: stacked(A1.mul_(s1), B1, 1, A2, B2, s2)
    ),
]
