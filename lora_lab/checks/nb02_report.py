"""Check 2.9: a calculator with mistakes in it, mended. Each line of its report is judged on its own."""

from collections.abc import Callable
from typing import Any

from .compare import Mistake, Trial, number
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb02_counts import Shapes, whole

LINES = ("trainable", "percent", "adapter_mb", "standing_gb", "hours")
LABELS = ("base_parameters", "shapes", "rank", "weight_bytes", "tokens", "tflops", "mfu")


def right_report(n: int, shapes: Shapes, rank: int, item: int, tokens: float, tflops: float, mfu: float) -> dict:
    """n parameters of the base in `item` bytes each; A and B in fp32 with AdamW."""
    trainable = sum(rank * (out + in_) for out, in_ in shapes)
    return {
        "trainable": trainable,
        "percent": 100 * trainable / (n + trainable),
        "adapter_mb": 4 * trainable / 1e6,
        "standing_gb": (n * item + 16 * trainable) / 1e9,
        "hours": 4 * n * tokens / (tflops * 1e12 * mfu) / 3600,
    }


def _from(line: str, change: Callable[..., float]) -> Callable[..., float]:
    """change(the right value of `line`, the right number of trainable parameters, *arguments)."""

    def does(*args: Any) -> float:
        right = right_report(*args)
        return whole(change(right[line], right["trainable"], *args))

    return does


def _line(line: str, *mistakes: tuple[str, Callable[..., float]]) -> tuple[Mistake, ...]:
    return tuple(Mistake(says, _from(line, change)) for says, change in mistakes)


PRODUCT = "is still r · in · out: the factors have r (in + out) numbers"
ADAPTER_PRODUCTS = "counts the adapter's own products: neglect them, and take the base's parameters alone"
MISTAKES = {
    "trainable": _line(
        "trainable",
        (PRODUCT, lambda y, t, n, s, r, *_: r * sum(o * i for o, i in s)),
        ("counts one factor only", lambda y, t, n, s, r, *_: r * sum(i for o, i in s)),
        ("counts one factor only", lambda y, t, n, s, r, *_: r * sum(o for o, i in s)),
        ("leaves out the rank", lambda y, t, n, s, r, *_: t / r),
    ),
    "percent": _line(
        "percent",
        (
            "is a share of the base alone: PEFT divides by all parameters, the adapter's included",
            lambda y, t, n, *_: 100 * t / n,
        ),
        ("is a share, not a percentage", lambda y, t, n, *_: y / 100),
        ("is a share, not a percentage", lambda y, t, n, *_: t / n),
    ),
    "adapter_mb": _line(
        "adapter_mb",
        (
            "takes the base's {weight_bytes} bytes for a number, and MB of 2²⁰: PEFT writes A and B in fp32, and a MB "
            "is 10⁶ bytes",
            lambda y, t, n, s, r, item, *_: item * t / 2**20,
        ),
        (
            "takes the base's {weight_bytes} bytes for a number: PEFT keeps and writes A and B in fp32",
            lambda y, t, n, s, r, item, *_: item * t / 1e6,
        ),
        ("divides by 2²⁰, which is a MiB: a MB is 10⁶ bytes", lambda y, t, *_: 4 * t / 2**20),
        ("counts numbers, not bytes", lambda y, t, *_: t / 1e6),
    ),
    "standing_gb": _line(
        "standing_gb",
        (
            "gives the frozen weights gradients and optimizer states: only A and B have them",
            lambda y, t, n, s, r, item, *_: 4 * item * n / 1e9,
        ),
        (
            "gives the frozen weights gradients and optimizer states: only A and B have them",
            lambda y, t, n, s, r, item, *_: (4 * item * n + 16 * t) / 1e9,
        ),
        (
            "gives the frozen weights gradients: only A and B have them",
            lambda y, t, n, s, r, item, *_: (2 * item * n + 16 * t) / 1e9,
        ),
        (
            "gives the frozen weights optimizer states: only A and B have them",
            lambda y, t, n, s, r, item, *_: (3 * item * n + 16 * t) / 1e9,
        ),
        ("leaves out A and B, and what AdamW keeps for them", lambda y, t, n, s, r, item, *_: item * n / 1e9),
        (
            "keeps A and B, their gradients and states in the base's dtype: all four are fp32",
            lambda y, t, n, s, r, item, *_: (item * n + 4 * item * t) / 1e9,
        ),
        (
            "counts A and B without gradients and states: AdamW makes it 16 bytes for each number",
            lambda y, t, n, s, r, item, *_: (item * n + 4 * t) / 1e9,
        ),
        (
            "leaves out the gradients of A and B: 4 + 4 + 8 bytes for each number",
            lambda y, t, n, s, r, item, *_: (item * n + 12 * t) / 1e9,
        ),
        (
            "leaves out A and B themselves: 4 + 4 + 8 bytes for each number",
            lambda y, t, n, s, r, item, *_: (item * n + 12 * t) / 1e9,
        ),
        (
            "leaves out the states of A and B: 4 + 4 + 8 bytes for each number",
            lambda y, t, n, s, r, item, *_: (item * n + 8 * t) / 1e9,
        ),
        (
            "divides by 2³⁰, which is a GiB: a GB is 10⁹ bytes",
            lambda y, t, *_: y * 1e9 / 2**30,
        ),
    ),
    "hours": _line(
        "hours",
        (
            "takes 6 FLOPs for each parameter and token, and the peak of the GPU: with LoRA it is 4, and mfu is the "
            "share of the peak that is reached",
            lambda y, t, n, s, r, item, tokens, tflops, mfu: y * mfu * 6 / 4,
        ),
        (
            "takes 6 FLOPs for each parameter and token: frozen weights need no gradient, so it is 4",
            lambda y, *_: y * 6 / 4,
        ),
        ("ignores mfu: no GPU reaches its peak", lambda y, t, n, s, r, item, tokens, tflops, mfu: y * mfu),
        (
            "multiplies by mfu: a lower share of the peak takes longer",
            lambda y, t, n, s, r, item, tokens, tflops, mfu: y * mfu**2,
        ),
        ("leaves out the backward pass: 2 FLOPs are the forward pass alone", lambda y, *_: y / 2),
        ("is in seconds", lambda y, *_: 3600 * y),
        (ADAPTER_PRODUCTS, lambda y, t, n, *_: y * (n + t) / n),
        (ADAPTER_PRODUCTS, lambda y, t, n, *_: y * (4 * n + 6 * t) / (4 * n)),
    ),
}


def _read_report(got: Any) -> dict:
    if not isinstance(got, dict):
        raise Wrong(f"your mended_report should return a dict, as the broken one does, not {kind(got)}")
    if missing := [line for line in LINES if line not in got]:
        raise Wrong(f"your mended_report has no {missing[0]}: keep the five lines of the broken one")
    return {line: whole(number(got[line], f"{line} in your mended_report")) for line in LINES}


@exercise(
    "2.9",
    takes=LABELS,
    points=3,
    minutes=15,
    hints=(
        "Every line holds at least one mistake. Try it on a case you can do in your head: one W of 3 × 5 at rank 2.",
        "What has a gradient? In which dtype does PEFT keep A and B? What share of its peak does a GPU reach? Which "
        "product does LoRA save? What is the whole of which PEFT prints the percentage?",
        "r (in + out); 100 t / (base + t); 4 t / 1e6; (base · weight_bytes + 16 t) / 1e9; 4 FLOPs, divided by mfu.",
    ),
)
def mended_report(answer: Guard, cases: Cases) -> str:
    """All five lines of the report right."""
    trials = {line: Trial(f"{line} in your mended_report", LABELS, MISTAKES[line], "do it by hand") for line in LINES}
    runs = 6
    for run in range(runs):
        shapes = [tuple(cases.different(2000, 9000, 2)) for _ in range(cases.integer(3, 6))]
        base = 3 * sum(out * in_ for out, in_ in shapes) + cases.integer(1, 9999)
        rank, tokens = cases.integer(3, 40), cases.integer(10, 90) * 1_000_000
        args = (base, shapes, rank, 2 if run % 3 else 4, tokens, cases.real(50.0, 900.0), cases.real(0.2, 0.6))
        got, want = _read_report(answer(*args)), right_report(*args)
        for line, trial in trials.items():
            trial.add(args, got[line], whole(want[line]))
    for trial in trials.values():
        trial.verdict()
    return f"all five lines of the report, on {runs} models"
