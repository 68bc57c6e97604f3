"""Answers to exercises 2.7 and 2.8 of notebook 02."""

import math

import torch

from . import right, wrong


def rank_under(limit, shapes, bytes_per_number, header):
    unit = bytes_per_number * sum(out + in_ for out, in_ in shapes)
    fits = (limit - header) // unit
    return max(0, min(fits, min(min(shape) for shape in shapes)))


def by_trying(limit, shapes, bytes_per_number, header):
    rank, highest = 0, min(side for shape in shapes for side in shape)
    while rank < highest:
        size = header + sum(bytes_per_number * (rank + 1) * (out + in_) for out, in_ in shapes)
        if size > limit:
            break
        rank += 1
    return rank


def quotient(divide, cap=True):
    """Another way to divide, with the right limits around it."""

    def does(limit, shapes, item, header):
        found = divide(limit, item, header, sum(map(sum, shapes)), shapes)
        return max(0, min(found, *map(min, shapes))) if cap else found

    return does


RANK = [
    right("2.7", "division", rank_under),
    right("2.7", "tried", by_trying),
    right("2.7", "floor of a float", quotient(lambda lim, b, head, sides, _: math.floor((lim - head) / (b * sides)))),
    wrong("2.7", "ceil", "rounds up", quotient(lambda lim, b, head, sides, _: math.ceil((lim - head) / (b * sides)))),
    wrong("2.7", "round", "to the nearest", quotient(lambda lim, b, head, sides, _: round((lim - head) / (b * sides)))),
    wrong(
        "2.7",
        "strictly below",
        "exactly the limit is allowed",
        quotient(lambda lim, b, head, sides, _: (lim - head - 1) // (b * sides)),
    ),
    wrong("2.7", "no header", "forgets the header", quotient(lambda lim, b, head, sides, _: lim // (b * sides))),
    wrong(
        "2.7", "numbers", "counts numbers, not bytes", quotient(lambda lim, b, head, sides, _: (lim - head) // sides)
    ),
    wrong(
        "2.7",
        "always fp32",
        "always takes 4 bytes",
        quotient(lambda lim, b, head, sides, _: (lim - head) // (4 * sides)),
    ),
    wrong(
        "2.7",
        "always half",
        "always takes 2 bytes",
        quotient(lambda lim, b, head, sides, _: (lim - head) // (2 * sides)),
    ),
    wrong(
        "2.7",
        "product",
        "divides by in · out",
        quotient(lambda lim, b, head, _, shapes: (lim - head) // (b * sum(o * i for o, i in shapes))),
    ),
    wrong(
        "2.7",
        "no cap",
        "goes beyond the shortest side",
        quotient(lambda lim, b, head, sides, _: max(0, (lim - head) // (b * sides)), cap=False),
    ),
    wrong(
        "2.7",
        "cap by the largest matrix",
        "must suit every matrix",
        quotient(
            lambda lim, b, head, sides, shapes: max(0, min((lim - head) // (b * sides), max(map(min, shapes)))),
            cap=False,
        ),
    ),
    wrong(
        "2.7",
        "negative",
        "gives a negative rank",
        quotient(lambda lim, b, head, sides, shapes: min((lim - head) // (b * sides), *map(min, shapes)), cap=False),
    ),
    wrong("2.7", "at least one", "gives rank 1 where nothing fits", lambda *args: max(1, rank_under(*args))),
    wrong(
        "2.7",
        "power of two",
        "rounds down to a power of two",
        lambda *args: 2 ** int(math.log2(rank_under(*args))) if rank_under(*args) else 0,
    ),
    wrong(
        "2.7",
        "a fraction",
        "a rank is a whole number",
        quotient(lambda lim, b, head, sides, _: (lim - head) / (b * sides), cap=False),
    ),
]


def hours(parameters, tokens, method, checkpointing, gpus, tflops, mfu):
    products = {"full": 3, "lora": 2}[method] + bool(checkpointing)
    return products * 2 * parameters * tokens / (gpus * tflops * 1e12 * mfu) / 3600


def by_parts(parameters, tokens, method, checkpointing, gpus, tflops, mfu):
    forward = 2 * parameters * tokens
    backward = forward * (2 if method == "full" else 1)
    again = forward if checkpointing else 0
    per_second = gpus * mfu * tflops * 10**12
    return (forward + backward + again) / per_second / 60 / 60


def by_gpu_seconds(parameters, tokens, method, checkpointing, gpus, tflops, mfu):
    per_token = {("full", False): 6, ("full", True): 8, ("lora", False): 4, ("lora", True): 6}
    flops = per_token[method, bool(checkpointing)] * parameters * tokens
    gpu_seconds = flops / 1e12 / tflops / mfu
    return torch.tensor(gpu_seconds / gpus / 3600, dtype=torch.float64)


def products(count):
    """`hours` with another number of products."""
    return lambda n, tokens, method, again, *speed: count(method, again) / 2 * hours(n, tokens, "lora", False, *speed)


def scaled(factor):
    return lambda *args: hours(*args) * factor(*args[4:])


HOURS = [
    right("2.8", "products", hours),
    right("2.8", "part by part", by_parts),
    right("2.8", "a table, as a tensor", by_gpu_seconds),
    wrong("2.8", "six for LoRA", "takes 6 FLOPs", lambda n, t, method, *rest: hours(n, t, "full", *rest)),
    wrong("2.8", "four for all", "the FLOPs of LoRA", lambda n, t, method, *rest: hours(n, t, "lora", *rest)),
    wrong("2.8", "no backward for LoRA", "LoRA's backward pass", products(lambda m, c: 1 + 2 * (m == "full") + c)),
    wrong("2.8", "forward alone", "leaves out the backward pass", products(lambda m, c: 1 + c)),
    wrong("2.8", "no checkpointing", "ignores checkpointing", lambda n, t, m, c, *rest: hours(n, t, m, False, *rest)),
    wrong(
        "2.8", "everything again", "repeats everything", products(lambda m, c: (2 + (m == "full")) * (2 if c else 1))
    ),
    wrong("2.8", "a third more", "multiplies by 4/3", products(lambda m, c: (2 + (m == "full")) * (4 / 3 if c else 1))),
    wrong("2.8", "half more", "multiplies by 3/2", products(lambda m, c: (2 + (m == "full")) * (1.5 if c else 1))),
    wrong("2.8", "always again", "always on", lambda n, t, m, c, *rest: hours(n, t, m, True, *rest)),
    wrong("2.8", "one per pair", "they are two", lambda *args: hours(*args) / 2),
    wrong("2.8", "no mfu", "ignores mfu", scaled(lambda gpus, tflops, mfu: mfu)),
    wrong("2.8", "times mfu", "multiplies by mfu", scaled(lambda gpus, tflops, mfu: mfu * mfu)),
    wrong("2.8", "one GPU", "ignores the number of GPUs", scaled(lambda gpus, tflops, mfu: gpus)),
    wrong("2.8", "times GPUs", "multiplies by the number", scaled(lambda gpus, tflops, mfu: gpus * gpus)),
    wrong("2.8", "seconds", "gives seconds", scaled(lambda *_: 3600)),
    wrong("2.8", "minutes", "gives minutes", scaled(lambda *_: 60)),
    wrong("2.8", "days", "gives days", scaled(lambda *_: 1 / 24)),
    wrong("2.8", "giga", "TFLOPS as GFLOPS", scaled(lambda *_: 1000)),
    wrong("2.8", "no tera", "forgets that tera", scaled(lambda *_: 1e12)),
    wrong("2.8", "text", "should be one number", lambda *args: f"{hours(*args):.1f} h"),
]
