"""Answers to exercises 7.3, 7.4 and 7.5 of notebook 07."""

import copy

import torch
from torch import nn

from lora_lab.inject import lora_layers
from lora_lab.layer import LoRALinear
from lora_lab.merge_bound import exact_merge
from lora_lab.merge_check import validate_merge

from . import right, wrong


def star(W, A, B, scale):
    return W.double() + scale * (B.double() @ A.double())


def fp32_part(W, A, B, scale):
    sizes = torch.outer(B.double().norm(dim=1), A.double().norm(dim=0))
    return (len(A) + 3) * 2**-24 * (W.double().abs() + abs(scale) * sizes)


def signed(W, A, B, scale, dtype):
    sizes = W.double().abs() + scale * torch.outer(B.double().norm(dim=1), A.double().norm(dim=0))
    u, t = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
    return u * (star(W, A, B, scale).abs() + t) + (len(A) + 3) * 2**-24 * sizes


def counting(extra):
    def of(W, A, B, scale, dtype):
        e = fp32_part(W, A, B, scale)
        return bound(W, A, B, scale, dtype) - e + (len(A) + extra) / (len(A) + 3) * e

    return of


def whole_step(W, A, B, scale, dtype):
    return 2 * bound(W, A, B, scale, dtype) - fp32_part(W, A, B, scale)


def bound(W, A, B, scale, dtype):
    u, t = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
    return u * (star(W, A, B, scale).abs() + t) + fp32_part(W, A, B, scale)


def without_tiny(W, A, B, scale, dtype):
    return torch.finfo(dtype).eps / 2 * star(W, A, B, scale).abs() + fp32_part(W, A, B, scale)


def by_library(W, A, B, scale, dtype):
    base = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=dtype)
    base.weight.data.copy_(W)
    layer = LoRALinear(base, len(A), abs(scale) * len(A), init=lambda *_: (A if scale > 0 else -A, B))
    return exact_merge(layer, nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=dtype))[1]


def by_absolute_products(W, A, B, scale, dtype):
    size = W.double().abs() + abs(scale) * (B.double().abs() @ A.double().abs())
    info = torch.finfo(dtype)
    return info.eps / 2 * (star(W, A, B, scale).abs() + info.tiny) + (len(A) + 3) * 2**-24 * size


def constant(value):
    return lambda W, A, B, scale, dtype: torch.full_like(W, value, dtype=torch.float64)


def unit(W, A, B, scale, dtype):
    return torch.full_like(W, torch.finfo(dtype).eps, dtype=torch.float64)


def of_largest(W, A, B, scale, dtype):
    return torch.full_like(W, float(bound(W, A, B, scale, dtype).max()), dtype=torch.float64)


BOUND = [
    right("7.3", "library", by_library),
    right("7.3", "the formula", bound),
    right("7.3", "products of sizes", by_absolute_products),
    right("7.3", "first order", counting(2)),
    wrong("7.3", "eps for half of it", "takes eps where half of it is enough", whole_step),
    wrong("7.3", "signed scale", "|s|", signed),
    wrong(
        "7.3",
        "signed scale, kept positive",
        "lets a negative scale make it smaller",
        lambda W, A, B, s, d: signed(W, A, B, s, d).clamp_min(0),
    ),
    wrong("7.3", "r", "counts too few roundings", counting(0)),
    wrong("7.3", "r + 1", "counts too few roundings", counting(1)),
    wrong("7.3", "twice", "is too large", lambda *args: 2 * bound(*args)),
    wrong("7.3", "eight times", "is too large", lambda *args: 8 * bound(*args)),
    wrong("7.3", "one number", "one number cannot fit", lambda *args: 1e-3),
    wrong("7.3", "constant", "is one number for every entry", constant(1e-3)),
    wrong("7.3", "eps", "is one number for every entry", unit),
    wrong("7.3", "largest", "is one number for every entry", of_largest),
    wrong("7.3", "of W", "takes the size of W alone", lambda W, A, B, s, d: torch.finfo(d).eps / 2 * W.double().abs()),
    wrong(
        "7.3",
        "no fp32",
        "leaves out what float32 loses",
        lambda W, A, B, s, d: torch.finfo(d).eps / 2 * star(W, A, B, s).abs(),
    ),
    wrong(
        "7.3", "fp32 alone", "leaves out the rounding to the stored dtype", lambda W, A, B, s, d: fp32_part(W, A, B, s)
    ),
    wrong("7.3", "no smallest numbers", "leaves out u·t", without_tiny),
    wrong(
        "7.3",
        "dtype ignored",
        "rounds to float32 whatever the dtype",
        lambda W, A, B, s, d: bound(W, A, B, s, torch.float32),
    ),
    wrong("7.3", "no scale", "leaves the scale out", lambda W, A, B, s, d: bound(W, A, B, 1.0, d)),
    wrong("7.3", "no abs", "is an abs() missing", lambda W, A, B, s, d: torch.finfo(d).eps / 2 * star(W, A, B, s)),
    wrong("7.3", "a hundred times", "is too large", lambda *args: 100 * bound(*args)),
    wrong("7.3", "a tenth", "is too small", lambda *args: bound(*args) / 10),
    wrong("7.3", "half precision", "needs float32 or float64 itself", lambda *args: bound(*args).bfloat16()),
    wrong("7.3", "in place", "changed W itself", lambda W, A, B, s, d: bound(W.abs_(), A, B, s, d)),
]


@torch.no_grad()
def wrong_layers(before, after):
    adapters, found = lora_layers(before), []
    for name, module in after.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if name in adapters:
            layer = adapters[name]
            args = layer.base.weight, layer.A, layer.B, layer.scale
            ok = ((module.weight.double() - star(*args)).abs() <= bound(*args, module.weight.dtype)).all()
        else:
            ok = torch.equal(module.weight, before.get_submodule(name).weight)
        if not ok:
            found.append(name)
    return found


def with_the_library(before, after):
    """The faults of validate_merge, as paths."""
    tokens = torch.zeros(1, 2, dtype=torch.long)
    report = validate_merge(before, after, tokens)
    linear = {name for name, module in after.named_modules() if isinstance(module, nn.Linear)}
    named = {fault.split()[0].removesuffix(".weight") for fault in report.faults}
    return named & linear


def layerwise(judge, untouched=True):
    """Judge each weight by judge(W', W*, layer): what it returns must be true of a right one."""

    @torch.no_grad()
    def find(before, after):
        adapters, found = lora_layers(before), set()
        for name, module in after.named_modules():
            if isinstance(module, nn.Linear) and name in adapters:
                layer = adapters[name]
                exact = star(layer.base.weight, layer.A, layer.B, layer.scale)
                if not judge(module.weight, exact, layer):
                    found.add(name)
            elif isinstance(module, nn.Linear) and untouched:
                same = torch.equal(module.weight, before.get_submodule(name).weight)
                found |= set() if same else {name}
        return found

    return find


def margin(got, exact, layer):
    return bound(layer.base.weight, layer.A, layer.B, layer.scale, got.dtype)


def absolute(tolerance):
    return layerwise(lambda got, exact, layer: torch.allclose(got.double(), exact, rtol=0, atol=tolerance))


def within(got, exact, layer):
    return ((got.double() - exact).abs() <= margin(got, exact, layer)).all()


def nan_passes(got, exact, layer):
    return not ((got.double() - exact).abs() > margin(got, exact, layer)).any()


def by_norm(got, exact, layer):
    # An entry that is wrong by a little vanishes in a norm.
    off = (got.double() - exact).norm() / exact.norm()
    return bool(off <= 16 * torch.finfo(got.dtype).eps)


def mean(got, exact, layer):
    return bool((got.double() - exact).abs().mean() <= margin(got, exact, layer).mean())


SABOTAGE = [
    right("7.4", "entry by entry", wrong_layers),
    right("7.4", "library", with_the_library),
    right("7.4", "as a set", layerwise(within)),
    wrong(
        "7.4",
        "equal to the bit",
        "calls an honest",
        layerwise(lambda got, exact, layer: torch.equal(got.double(), exact)),
    ),
    wrong("7.4", "atol 1e-3", "calls an honest bfloat16 merge wrong", absolute(1e-3)),
    wrong("7.4", "atol 1e-5", "calls an honest bfloat16 merge wrong", absolute(1e-5)),
    wrong(
        "7.4",
        "wide tolerances",
        "lost a small update",
        layerwise(lambda got, exact, layer: torch.allclose(got.double(), exact, rtol=4e-3, atol=1e-3)),
    ),
    wrong("7.4", "NaN passes", "ask what is not <= bound", layerwise(nan_passes)),
    wrong("7.4", "norm", "a single wrong entry", layerwise(by_norm)),
    wrong("7.4", "mean", "a single wrong entry", layerwise(mean)),
    wrong("7.4", "adapters only", "a changed layer that has no adapter", layerwise(within, untouched=False)),
    wrong("7.4", "first only", "the second of two wrong layers", lambda b, a: wrong_layers(b, a)[-1:]),
    wrong("7.4", "never", "whose update was never added", lambda b, a: []),
    wrong("7.4", "always", "calls an honest merge wrong", lambda b, a: list(lora_layers(b))),
    wrong("7.4", "one string", "a list of paths", lambda b, a: ", ".join(wrong_layers(b, a))),
    wrong(
        "7.4", "names of weights", "the path without .weight", lambda b, a: [f"{n}.weight" for n in wrong_layers(b, a)]
    ),
    wrong("7.4", "in place", "of the", lambda b, a: (wrong_layers(b, a), b.head.A.data.mul_(2))[0]),
]


@torch.no_grad()
def release_check(model, release, tokens, tolerance):
    reference = model.eval()(tokens).logits.clone()
    logits = release(model).eval()(tokens).logits
    error = (logits - reference).abs().max()
    agreement = (logits.argmax(-1) == reference.argmax(-1)).float().mean()
    return {"max_error": error.item(), "agreement": agreement.item(), "passed": bool(error <= tolerance)}


def on_a_copy(model, release, tokens, tolerance):
    kept = copy.deepcopy(model).eval()
    new = release(model).eval()
    with torch.no_grad():
        old, given = (each(tokens).logits for each in (kept, new))
    near = torch.isclose(old, given, rtol=0, atol=tolerance).all()
    return {
        "max_error": (old - given).abs().max(),
        "agreement": (old.argmax(-1) == given.argmax(-1)).float().mean(),
        "passed": near,
    }


@torch.no_grad()
def reference_after(model, release, tokens, tolerance):
    new = release(model.eval()).eval()
    return compared(model(tokens).logits, new(tokens).logits, tolerance)


def compared(old, new, tolerance, size=lambda gap: gap.abs().max(), passed=lambda error, limit: error <= limit):
    error = size(new - old).item()
    agreement = (old.argmax(-1) == new.argmax(-1)).float().mean().item()
    return {"max_error": error, "agreement": agreement, "passed": bool(passed(error, tolerance))}


def measured(change, mode=True):
    @torch.no_grad()
    def check(model, release, tokens, tolerance):
        old = (model.eval() if mode else model)(tokens).logits
        new = release(model)
        new = (new.eval() if mode else new)(tokens).logits
        return change(old, new, tolerance)

    return check


def agreeing(agreement):
    return measured(lambda old, new, t: compared(old, new, t) | {"agreement": agreement(old, new)})


RELEASE = [
    right("7.5", "reference first", release_check),
    right("7.5", "a copy first", on_a_copy),
    right("7.5", "in parts", measured(compared)),
    wrong("7.5", "reference after", "compares the released model with itself", reference_after),
    wrong("7.5", "train mode", "because dropout is on", measured(compared, mode=False)),
    wrong(
        "7.5",
        "NaN passes",
        "NaN > tolerance is False",
        measured(lambda o, n, t: compared(o, n, t, passed=lambda e, lim: not e > lim)),
    ),
    wrong(
        "7.5",
        "signed",
        "take the size of the difference",
        measured(lambda o, n, t: compared(o, n, t, size=lambda gap: gap.max())),
    ),
    wrong(
        "7.5",
        "mean",
        "the mean of the differences",
        measured(lambda o, n, t: compared(o, n, t, size=lambda gap: gap.abs().mean())),
    ),
    wrong(
        "7.5", "flips", "the share that differs", agreeing(lambda o, n: (o.argmax(-1) != n.argmax(-1)).float().mean())
    ),
    wrong("7.5", "count", "that is a count", agreeing(lambda o, n: (o.argmax(-1) == n.argmax(-1)).sum())),
    wrong("7.5", "equal logits", "keep their most likely token", agreeing(lambda o, n: (o == n).float().mean())),
    wrong("7.5", "too strict", "refuses an honest merge", measured(lambda o, n, t: compared(o, n, -1.0))),
    wrong("7.5", "always", "threw the adapter away", measured(lambda o, n, t: compared(o, n, t) | {"passed": True})),
    wrong("7.5", "bool alone", "should return a dict", measured(lambda o, n, t: compared(o, n, t)["passed"])),
    wrong(
        "7.5",
        "passed as words",
        "passed should be True or False",
        measured(lambda o, n, t: compared(o, n, t) | {"passed": "yes"}),
    ),
    wrong(
        "7.5",
        "released twice",
        "calls release 2 times",
        lambda m, r, x, t: (release_check(copy.deepcopy(m), r, x, t), release_check(m, r, x, t))[1],
    ),
    wrong("7.5", "never released", "calls release never", lambda m, r, x, t: release_check(m, lambda same: same, x, t)),
]
