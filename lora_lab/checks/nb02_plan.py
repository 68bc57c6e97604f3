"""Checks 2.7 and 2.8: the largest rank whose file is small enough, and the hours of a run."""

from collections.abc import Callable
from typing import Any

from .compare import judge, number
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb02_counts import Shapes, mistake, whole


def _sides(shapes: Shapes) -> int:
    return sum(out + in_ for out, in_ in shapes)


def right_rank(limit: int, shapes: Shapes, item: int, header: int) -> int:
    """max r with header + item · r · Σ (in + out) <= limit and r <= the shortest side; 0 if there is none."""
    return max(0, min((limit - header) // (item * _sides(shapes)), *(min(shape) for shape in shapes)))


def _uncapped(rank: Callable[[int, Shapes, int, int], float]) -> Callable[..., float]:
    """The right limits around another quotient."""
    return lambda limit, s, item, header: max(0, min(rank(limit, s, item, header), *(min(shape) for shape in s)))


RANK_MISTAKES = (
    mistake(
        "rounds up, or to the nearest: the file would be larger than the limit",
        _uncapped(lambda limit, s, item, header: -(-(limit - header) // (item * _sides(s)))),
    ),
    mistake(
        "rounds up, or to the nearest: the file would be larger than the limit",
        _uncapped(lambda limit, s, item, header: round((limit - header) / (item * _sides(s)))),
    ),
    mistake(
        "is one too small: a file of exactly the limit is allowed",
        _uncapped(lambda limit, s, item, header: (limit - header - 1) // (item * _sides(s))),
    ),
    mistake("forgets the header", _uncapped(lambda limit, s, item, header: limit // (item * _sides(s)))),
    mistake(
        "counts numbers, not bytes: each takes {bytes_per_number}",
        _uncapped(lambda limit, s, item, header: (limit - header) // _sides(s)),
    ),
    mistake(
        "always takes 4 bytes for a number: here it is {bytes_per_number}",
        _uncapped(lambda limit, s, item, header: (limit - header) // (4 * _sides(s))),
    ),
    mistake(
        "always takes 2 bytes for a number: here it is {bytes_per_number}",
        _uncapped(lambda limit, s, item, header: (limit - header) // (2 * _sides(s))),
    ),
    mistake(
        "divides by in · out: an adapter has in + out numbers for each unit of rank",
        _uncapped(lambda limit, s, item, header: (limit - header) // (item * sum(o * i for o, i in s))),
    ),
    mistake(
        "goes beyond the shortest side of a matrix: no W (out, in) has a rank above min(out, in)",
        lambda limit, s, item, header: max(0, (limit - header) // (item * _sides(s))),
    ),
    mistake(
        "stops at the longest of the shortest sides: the rank must suit every matrix",
        lambda limit, s, item, header: max(
            0, min((limit - header) // (item * _sides(s)), max(min(shape) for shape in s))
        ),
    ),
    mistake(
        "gives a negative rank where nothing fits: say 0",
        lambda limit, s, item, header: min((limit - header) // (item * _sides(s)), *(min(shape) for shape in s)),
    ),
    mistake(
        "gives rank 1 where nothing fits: say 0",
        lambda *args: max(1, right_rank(*args)),
    ),
    mistake(
        "rounds down to a power of two: any whole rank will do",
        lambda *args: 2 ** (right_rank(*args).bit_length() - 1) if right_rank(*args) else 0,
    ),
)


def _read_rank(got: Any, _: int) -> int:
    value = whole(number(got, "the result of your largest_rank"))
    if not isinstance(value, int):
        raise Wrong(f"your largest_rank returned {value:.6g}: a rank is a whole number")
    return value


@exercise(
    "2.7",
    takes=("limit", "shapes", "bytes_per_number", "header"),
    points=1,
    minutes=8,
    hints=(
        "How many bytes does one more unit of rank cost? How many such units fit?",
        "A unit of rank costs bytes_per_number · Σ (in + out). The header is there first. And no W has a rank above "
        "its shorter side.",
        "(limit - header) // (bytes_per_number · Σ (in + out)), then at most min(out, in) of every shape, at least 0.",
    ),
)
def largest_rank(answer: Guard, cases: Cases) -> str:
    """The largest rank whose adapter file stays within a limit."""
    inputs = []
    for item in (4, 2, 4, 2, 4, 2):
        shapes = [tuple(cases.different(40, 90, 2)) for _ in range(cases.integer(2, 4))]
        rank, header = cases.pick((5, 6, 7, 9, 10, 11)), cases.integer(1000, 2000)
        unit = item * _sides(shapes)
        spare = cases.pick((0, unit - 1, cases.integer(unit // 2 + 1, unit - 1)))
        inputs.append((header + rank * unit + spare, shapes, item, header))
    shapes, item, header = inputs[0][1:]
    unit = item * _sides(shapes)
    inputs += [
        (header + 7 * unit, shapes, item, header),  # exactly
        (header + 7 * unit - 1, shapes, item, header),
        (header + unit - 1, shapes, item, header),  # not even rank 1
        (header // 2, shapes, item, header),  # not even the header
        (header + 1000 * unit, [(50, 8), *shapes], item, header),  # the shortest side
    ]
    count = judge(
        answer,
        inputs,
        right_rank,
        RANK_MISTAKES,
        look="one W of 3 × 5 at 4 bytes costs 32 bytes for each unit of rank",
        read=_read_rank,
    )
    return f"the largest rank under {count} limits"


# Hours.

Run = tuple[float, float, str, bool, int, float, float]


def right_hours(
    n: float, tokens: float, method: str, checkpointing: bool, gpus: int, tflops: float, mfu: float
) -> float:
    """Passes · 2 N FLOPs for each token, over what the GPUs deliver."""
    return _hours(2 + (method == "full") + checkpointing)(n, tokens, method, checkpointing, gpus, tflops, mfu)


def _hours(passes: float) -> Callable[..., float]:
    return lambda n, tokens, method, again, gpus, tflops, mfu: (
        passes * 2 * n * tokens / (gpus * tflops * 1e12 * mfu) / 3600
    )


def _passes(count: Callable[[str, bool], float]) -> Callable[..., float]:
    """Hours with another number of passes."""
    return lambda *args: _hours(count(args[2], args[3]))(*args)


def _times(factor: Callable[[int, float, float], float]) -> Callable[..., float]:
    return lambda *args: right_hours(*args) * factor(*args[4:])


HOURS_MISTAKES = (
    mistake(
        "takes 6 FLOPs for each parameter and token with LoRA too: the gradients of frozen weights are not computed",
        _passes(lambda method, again: 3 + again),
    ),
    mistake(
        "gives full fine-tuning the FLOPs of LoRA: the gradients of the weights are a third product",
        _passes(lambda method, again: 2 + again),
    ),
    mistake(
        "leaves out LoRA's backward pass: the gradient still passes through every frozen W to reach earlier layers",
        _passes(lambda method, again: 1 + 2 * (method == "full") + again),
    ),
    mistake(
        "leaves out the backward pass: 2 FLOPs are the forward pass alone",
        _passes(lambda method, again: 1 + again),
    ),
    mistake(
        "ignores checkpointing: it computes the forward pass a second time",
        _passes(lambda method, again: 2 + (method == "full")),
    ),
    mistake(
        "multiplies by 4/3 under checkpointing: the repeated forward pass is a third more in full fine-tuning only; "
        "LoRA has two products, and the third makes it half more",
        _passes(lambda method, again: (2 + (method == "full")) * (4 / 3 if again else 1)),
    ),
    mistake(
        "multiplies by 3/2 under checkpointing: the repeated forward pass is half more with LoRA only; full "
        "fine-tuning has three products, and the fourth makes it a third more",
        _passes(lambda method, again: (2 + (method == "full")) * (3 / 2 if again else 1)),
    ),
    mistake(
        "repeats everything under checkpointing: only the forward pass is computed again",
        _passes(lambda method, again: (2 + (method == "full")) * (1 + again)),
    ),
    mistake(
        "computes as if checkpointing were always on",
        _passes(lambda method, again: 3 + (method == "full")),
    ),
    mistake(
        "counts a multiplication and its addition as one FLOP: they are two",
        _passes(lambda method, again: (2 + (method == "full") + again) / 2),
    ),
    mistake("ignores mfu: no GPU reaches its peak", _times(lambda gpus, tflops, mfu: mfu)),
    mistake("multiplies by mfu: a lower share of the peak takes longer", _times(lambda gpus, tflops, mfu: mfu**2)),
    mistake("ignores the number of GPUs: they share the work", _times(lambda gpus, tflops, mfu: gpus)),
    mistake(
        "multiplies by the number of GPUs: wall-clock hours are asked for", _times(lambda gpus, tflops, mfu: gpus**2)
    ),
    mistake("gives seconds: divide by 3,600", _times(lambda *_: 3600)),
    mistake("gives minutes", _times(lambda *_: 60)),
    mistake("gives days", _times(lambda *_: 1 / 24)),
    mistake("reads TFLOPS as GFLOPS: tera is 10¹²", _times(lambda *_: 1000)),
    mistake("forgets that tera is 10¹²", _times(lambda *_: 1e12)),
)


@exercise(
    "2.8",
    takes=("parameters", "tokens", "method", "checkpointing", "gpus", "tflops", "mfu"),
    points=1,
    minutes=8,
    hints=(
        "Count products of the size of the weights: forward, gradient of the activations, gradient of the weights.",
        "Each costs 2 FLOPs for every parameter and token. LoRA leaves out the third; checkpointing repeats the first.",
        "passes = 2 (lora) or 3 (full), one more with checkpointing; hours = passes · 2 · parameters · tokens / "
        "(gpus · tflops · 1e12 · mfu) / 3600.",
    ),
)
def training_hours(answer: Guard, cases: Cases) -> str:
    """Wall-clock hours from parameters, tokens and what the GPUs deliver."""
    inputs: list[Run] = []
    for method in ("full", "lora"):
        for again in (False, True, False, True):
            scale = cases.real(1.0, 9.0)
            speed = (cases.integer(2, 9), 10 * cases.real(7.0, 90.0), cases.real(0.2, 0.6))
            inputs.append((scale * 1e9, cases.real(1.0, 50.0) * 1e7, method, again, *speed))
    count = judge(
        answer,
        cases.shuffled(inputs),
        right_hours,
        HOURS_MISTAKES,
        look="full fine-tuning without checkpointing takes 6 FLOPs for each parameter and token",
        read=lambda got, _: float(number(got, "the result of your training_hours")),
    )
    return f"the hours of {count} runs"
