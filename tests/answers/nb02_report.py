"""Answers to exercise 2.9 of notebook 02."""

import copy

from . import right, wrong


def mended(base_parameters, shapes, rank, weight_bytes, tokens, tflops, mfu):
    trainable = sum(rank * (out + in_) for out, in_ in shapes)
    return {
        "trainable": trainable,
        "percent": 100 * trainable / (base_parameters + trainable),
        "adapter_mb": 4 * trainable / 1e6,
        "standing_gb": (weight_bytes * base_parameters + 16 * trainable) / 1e9,
        "hours": 4 * base_parameters * tokens / (tflops * 1e12 * mfu) / 3600,
    }


def in_steps(base_parameters, shapes, rank, weight_bytes, tokens, tflops, mfu):
    numbers = float(rank * sum(out for out, _ in shapes) + rank * sum(in_ for _, in_ in shapes))
    kinds = {"parameter": 4, "gradient": 4, "m": 4, "v": 4}
    standing = base_parameters * weight_bytes + sum(numbers * size for size in kinds.values())
    return {
        "hours": 2 * 2 * base_parameters * tokens / 3600 / mfu / tflops / 1e12,
        "standing_gb": standing * 1e-9,
        "adapter_mb": numbers * kinds["parameter"] * 1e-6,
        "percent": numbers / (base_parameters + numbers) * 100,
        "trainable": numbers,
        "note": "A and B in fp32",
    }


def by_lines(base_parameters, shapes, rank, weight_bytes, tokens, tflops, mfu):
    report = dict.fromkeys(("trainable", "percent", "adapter_mb", "standing_gb", "hours"), 0.0)
    for out, in_ in shapes:
        report["trainable"] += rank * in_ + out * rank
    trained, frozen = report["trainable"], base_parameters
    report["percent"] = 100 - 100 * frozen / (frozen + trained)
    report["adapter_mb"] = trained * 32 / 8 / 1_000_000
    report["standing_gb"] = frozen * weight_bytes / 1e9 + 2 * trained * 8 / 1e9
    report["hours"] = (2 * frozen + 2 * frozen) * tokens / (mfu * tflops * 1e12 * 3600)
    return report


def broken(base_parameters, shapes, rank, weight_bytes, tokens, tflops, mfu):
    """As it stands in the notebook."""
    trainable = sum(rank * out * in_ for out, in_ in shapes)
    return {
        "trainable": trainable,
        "percent": 100 * trainable / base_parameters,
        "adapter_mb": weight_bytes * trainable / 2**20,
        "standing_gb": 4 * weight_bytes * base_parameters / 1e9,
        "hours": 6 * base_parameters * tokens / (tflops * 1e12) / 3600,
    }


def still(line, value):
    """`mended` but for one line: value(what is right, trainable, *arguments)."""

    def does(*args):
        report = mended(*args)
        return report | {line: value(report[line], report["trainable"], *args)}

    return does


def adapter_line(line):
    """`mended` with one line from the broken one, computed with the right count."""

    def does(*args):
        t, n, item = mended(*args)["trainable"], args[0], args[3]
        left = {"percent": 100 * t / n, "adapter_mb": item * t / 2**20, "standing_gb": 4 * item * n / 1e9}
        left["hours"] = broken(*args)["hours"]
        return mended(*args) | {line: left[line]}

    return does


def without(line):
    def does(*args):
        report = copy.copy(mended(*args))
        del report[line]
        return report

    return does


REPORT = [
    right("2.9", "mended", mended),
    right("2.9", "in steps, another order", in_steps),
    right("2.9", "line by line", by_lines),
    wrong("2.9", "as it was", "trainable in your mended_report is still r · in · out", broken),
    wrong("2.9", "base alone", "a share of the base alone", adapter_line("percent")),
    wrong("2.9", "file as it was", "takes the base's", adapter_line("adapter_mb")),
    wrong("2.9", "states of everything", "the frozen weights gradients and optimizer", adapter_line("standing_gb")),
    wrong("2.9", "hours as they were", "takes 6 FLOPs", adapter_line("hours")),
    wrong(
        "2.9",
        "A only",
        "counts one factor only",
        still("trainable", lambda y, t, n, s, r, *_: r * sum(i for _, i in s)),
    ),
    wrong("2.9", "no rank", "leaves out the rank", still("trainable", lambda y, t, n, s, r, *_: y // r)),
    wrong("2.9", "share", "is a share, not a percentage", still("percent", lambda y, *_: y / 100)),
    wrong(
        "2.9",
        "half file",
        "PEFT keeps and writes A and B in fp32",
        still("adapter_mb", lambda y, t, n, s, r, b, *_: b * t / 1e6),
    ),
    wrong("2.9", "MiB", "which is a MiB", still("adapter_mb", lambda y, t, *_: 4 * t / 2**20)),
    wrong("2.9", "file of numbers", "counts numbers, not bytes", still("adapter_mb", lambda y, t, *_: t / 1e6)),
    wrong(
        "2.9",
        "states of both",
        "the frozen weights gradients and optimizer",
        still("standing_gb", lambda y, t, n, s, r, b, *_: (4 * b * n + 16 * t) / 1e9),
    ),
    wrong(
        "2.9",
        "gradients of the base",
        "gives the frozen weights gradients:",
        still("standing_gb", lambda y, t, n, s, r, b, *_: (2 * b * n + 16 * t) / 1e9),
    ),
    wrong(
        "2.9",
        "states of the base",
        "gives the frozen weights optimizer states:",
        still("standing_gb", lambda y, t, n, s, r, b, *_: (3 * b * n + 16 * t) / 1e9),
    ),
    wrong(
        "2.9",
        "base alone stands",
        "leaves out A and B, and",
        still("standing_gb", lambda y, t, n, s, r, b, *_: b * n / 1e9),
    ),
    wrong(
        "2.9",
        "adapter in half",
        "all four are fp32",
        still("standing_gb", lambda y, t, n, s, r, b, *_: (b * n + 4 * b * t) / 1e9),
    ),
    wrong(
        "2.9",
        "adapter without states",
        "without gradients and states",
        still("standing_gb", lambda y, t, n, s, r, b, *_: (b * n + 4 * t) / 1e9),
    ),
    wrong(
        "2.9",
        "adapter without gradients",
        "leaves out the gradients of A and B",
        still("standing_gb", lambda y, t, n, s, r, b, *_: (b * n + 12 * t) / 1e9),
    ),
    wrong(
        "2.9",
        "no Adam",
        "leaves out the states of A and B",
        still("standing_gb", lambda y, t, n, s, r, b, *_: (b * n + 8 * t) / 1e9),
    ),
    wrong("2.9", "GiB", "which is a GiB", still("standing_gb", lambda y, *_: y * 1e9 / 2**30)),
    wrong("2.9", "six", "frozen weights need no gradient", still("hours", lambda y, *_: 1.5 * y)),
    wrong("2.9", "no mfu", "ignores mfu", still("hours", lambda y, *args: y * args[-1])),
    wrong("2.9", "times mfu", "multiplies by mfu", still("hours", lambda y, *args: y * args[-1] ** 2)),
    wrong("2.9", "forward alone", "leaves out the backward pass", still("hours", lambda y, *_: y / 2)),
    wrong("2.9", "seconds", "is in seconds", still("hours", lambda y, *_: 3600 * y)),
    wrong(
        "2.9",
        "adapter as part of N",
        "the adapter's own products",
        still("hours", lambda y, t, n, *_: y * (n + t) / n),
    ),
    wrong(
        "2.9",
        "adapter trained in full",
        "the adapter's own products",
        still("hours", lambda y, t, n, *_: y + y * 6 * t / (4 * n)),
    ),
    wrong("2.9", "line lost", "has no hours", without("hours")),
    wrong("2.9", "tuple", "should return a dict", lambda *args: tuple(mended(*args).values())),
]
