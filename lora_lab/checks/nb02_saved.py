"""Checks 2.5 and 2.6: bytes that wait for the backward pass, in one layer, and in a stack with checkpoints."""

import math
from collections.abc import Callable
from typing import Any

from .compare import Mistake, judge, number
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb02_counts import mistake, whole

# What a linear layer keeps for its backward pass.

TRAINS = ("weight", "adapter", "nothing")


def right_saved(t: int, in_: int, out: int, r: int, trains: str, base: int, adapter: int) -> int:
    """tokens t, sides in_ and out, rank r, bytes of a number in the base and in the adapter."""
    return {"weight": t * in_ * base, "adapter": t * (in_ + r) * adapter, "nothing": 0}[trains]


def _if(which: str, does: Callable[..., float]) -> Callable[..., float]:
    """Right but for one value of `trains`."""
    return lambda t, i, o, r, trains, b, a: (
        does(t, i, o, r, b, a) if trains == which else right_saved(t, i, o, r, trains, b, a)
    )


SAVED_MISTAKES = (
    mistake(
        "keeps x in the base's dtype for the adapter: A and B compute in theirs, {adapter_bytes} bytes a number, so "
        "the layer makes a copy of x and keeps that",
        _if("adapter", lambda t, i, o, r, b, a: t * (i * b + r * a)),
    ),
    mistake(
        "keeps everything in the base's dtype for the adapter: x and x Aᵀ are in the adapter's, {adapter_bytes} bytes",
        _if("adapter", lambda t, i, o, r, b, a: t * (i + r) * b),
    ),
    mistake(
        "keeps x twice for the adapter: a frozen W needs no x, so only the adapter's copy waits",
        _if("adapter", lambda t, i, o, r, b, a: t * (i * (a + b) + r * a)),
    ),
    mistake("leaves out x Aᵀ: the gradient of B needs it", _if("adapter", lambda t, i, o, r, b, a: t * i * a)),
    mistake(
        "leaves out x: the gradient of A needs it, however small A is",
        _if("adapter", lambda t, i, o, r, b, a: t * r * a),
    ),
    mistake(
        "keeps the update x AᵀBᵀ too: the gradient of a sum, and of a number times a tensor, needs no output",
        _if("adapter", lambda t, i, o, r, b, a: t * (i + r + o) * a),
    ),
    mistake(
        "counts A and B: they are parameters, and no activations",
        _if("adapter", lambda t, i, o, r, b, a: t * (i + r) * a + r * (i + o) * a),
    ),
    mistake(
        "says that LoRA keeps nothing because W is frozen: A and B train, and their gradients need x and x Aᵀ",
        _if("adapter", lambda t, i, o, r, b, a: 0),
    ),
    mistake(
        "says that LoRA keeps what full fine-tuning keeps",
        _if("adapter", lambda t, i, o, r, b, a: t * i * b),
    ),
    mistake(
        "keeps x for a frozen W: only the gradient of W needs x, the gradient of x needs W",
        _if("nothing", lambda t, i, o, r, b, a: t * i * b),
    ),
    mistake(
        "keeps the output when W trains: ∂L/∂W = Gᵀ x needs x alone",
        _if("weight", lambda t, i, o, r, b, a: t * (i + o) * b),
    ),
    mistake(
        "keeps the output instead of the input: ∂L/∂W = Gᵀ x needs x", _if("weight", lambda t, i, o, r, b, a: t * o * b)
    ),
    mistake("keeps nothing when W trains: ∂L/∂W = Gᵀ x needs x", _if("weight", lambda t, i, o, r, b, a: 0)),
    mistake(
        "counts W itself: it is there anyway, and no activation",
        _if("weight", lambda t, i, o, r, b, a: t * i * b + i * o * b),
    ),
    mistake("forgets that every token keeps its own", lambda t, i, o, r, tr, b, a: right_saved(1, i, o, r, tr, b, a)),
    mistake(
        "counts numbers, not bytes",
        lambda t, i, o, r, tr, b, a: right_saved(t, i, o, r, tr, 1, 1),
    ),
)


@exercise(
    "2.5",
    takes=("tokens", "in_features", "out_features", "rank", "trains", "base_bytes", "adapter_bytes"),
    points=2,
    minutes=12,
    hints=(
        "Write down the gradient of everything that trains. Whatever else stands in it must be kept until then.",
        "∂L/∂W = Gᵀ x. ∂L/∂A = s Bᵀ Gᵀ x and ∂L/∂B = s Gᵀ (x Aᵀ): the adapter needs x and x Aᵀ, in its own dtype.",
        "weight: tokens · in_features · base_bytes. adapter: tokens · (in_features + rank) · adapter_bytes. "
        "nothing: 0.",
    ),
)
def saved_bytes(answer: Guard, cases: Cases) -> str:
    """What one linear layer keeps from its forward to its backward pass."""
    inputs = []
    for trains in (*TRAINS, *TRAINS, "adapter", "weight"):
        tokens, in_, out = cases.different(20, 90, 3)
        inputs.append((tokens, in_, out, cases.integer(2, 9), trains, 2, 4))
    inputs += [(*inputs[1][:4], "adapter", 4, 4), (*inputs[0][:4], "weight", 4, 4), (*inputs[0][:4], "adapter", 2, 2)]
    count = judge(
        answer,
        inputs,
        right_saved,
        SAVED_MISTAKES,
        look="ask for each trained matrix which tensors stand in its gradient",
        read=lambda got, _: whole(number(got, "the result of your saved_bytes")),
    )
    return f"what a layer keeps for its backward pass, in {count} settings"


# Checkpointing in segments.


def held(layers: int, layer_bytes: int, input_bytes: int, segment: int) -> int:
    """Inputs of all segments, and everything in the one that is computed again."""
    return math.ceil(layers / segment) * input_bytes + segment * layer_bytes


def right_segment(layers: int, layer_bytes: int, input_bytes: int) -> tuple[int, int]:
    """The segment that needs least, the shortest if several do, and its bytes."""
    return _least(lambda k: held(layers, layer_bytes, input_bytes, k), layers)


def _least(cost: Callable[[int], float], layers: int) -> tuple[int, int]:
    best = min(range(1, layers + 1), key=cost)
    return best, whole(cost(best))


def _most(n: int, layer: int, given: int) -> tuple[int, int]:
    worst = max(range(1, n + 1), key=lambda k: held(n, layer, given, k))
    return worst, held(n, layer, given, worst)


def _root(n: int, layer: int, given: int) -> tuple[int, int]:
    k = max(1, round(math.sqrt(n)))
    return k, held(n, layer, given, k)


def _calculus(whole_of: Callable[[float], int]) -> Callable[[int, int, int], tuple[int, int]]:
    """The best k of n / k · given + k · layer over real numbers, made whole."""

    def does(n: int, layer: int, given: int) -> tuple[int, int]:
        k = min(n, max(1, whole_of(math.sqrt(n * given / layer))))
        return k, held(n, layer, given, k)

    return does


SEGMENT_MISTAKES = (
    Mistake(
        "takes √layers: that is best only where a layer keeps as much as its input; here a layer keeps {layer_bytes} "
        "and an input {input_bytes}",
        _root,
    ),
    *(
        Mistake(
            "rounds the k that calculus gives, √(layers · input_bytes / layer_bytes): the number of segments jumps, "
            "so the best whole k may lie elsewhere; try them all",
            _calculus(whole_of),
        )
        for whole_of in (round, math.floor, math.ceil)
    ),
    Mistake(
        "drops the last, shorter segment: its input is kept too, so round up",
        lambda n, layer, given: _least(lambda k: n // k * given + k * layer, n),
    ),
    Mistake(
        "counts a fraction of a segment: round the number of segments up",
        lambda n, layer, given: _least(lambda k: n / k * given + k * layer, n),
    ),
    Mistake(
        "keeps the layers of every segment: only the one that is computed again is there in full",
        lambda n, layer, given: _least(lambda k: math.ceil(n / k) * given + n * layer, n),
    ),
    Mistake(
        "computes one layer at a time: a segment is computed again as a whole, {want[0]} layers of it",
        lambda n, layer, given: _least(lambda k: math.ceil(n / k) * given + layer, n),
    ),
    Mistake("leaves out the inputs", lambda n, layer, given: _least(lambda k: k * layer, n)),
    Mistake(
        "keeps one input in all: every segment keeps its own",
        lambda n, layer, given: _least(lambda k: given + k * layer, n),
    ),
    Mistake(
        "takes the number of segments for the length of one",
        lambda n, layer, given: _least(lambda k: k * given + math.ceil(n / k) * layer, n),
    ),
    Mistake(
        "takes the worst segment: the least memory is wanted",
        lambda n, layer, given: _most(n, layer, given),
    ),
    Mistake(
        "takes the longest of equally good segments: the shortest is asked for",
        lambda n, layer, given: (
            max(k for k in range(1, n + 1) if held(n, layer, given, k) == right_segment(n, layer, given)[1]),
            right_segment(n, layer, given)[1],
        ),
    ),
    Mistake(
        "returns the bytes first: (segment, bytes) is asked for",
        lambda n, layer, given: right_segment(n, layer, given)[::-1],
    ),
    Mistake(
        "never takes one segment for all: {layers} layers may be one",
        lambda n, layer, given: min((held(n, layer, given, k), k) for k in range(1, max(n, 2)))[::-1],
    ),
)


def _read_segment(got: Any, _: Any) -> tuple[float, float]:
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Wrong(f"your best_segment should return (segment, bytes), not {kind(got)}")
    return tuple(
        whole(number(value, f"the {place} value of your best_segment"))
        for value, place in zip(got, ("first", "second"), strict=True)
    )


@exercise(
    "2.6",
    takes=("layers", "layer_bytes", "input_bytes"),
    points=1,
    minutes=6,
    hints=(
        "For one length of the segments: how many inputs are kept, and how much is there while one is computed again?",
        "ceil(layers / segment) inputs, and segment · layer_bytes. Nothing clever is needed: try every length.",
        "min over segment = 1 ... layers of ceil(layers / segment) · input_bytes + segment · layer_bytes; min takes "
        "the first of equals, which is the shortest.",
    ),
)
def best_segment(answer: Guard, cases: Cases) -> str:
    """The best number of layers between two checkpoints."""
    inputs = []
    for layers, ratio in ((32, 3), (48, 1), (40, 5), (29, 2), (27, 7), (24, 30)):
        input_bytes = cases.integer(20, 60)
        inputs.append((layers + cases.integer(0, 3), ratio * input_bytes + cases.integer(0, 9), input_bytes))
    unit = cases.integer(4, 9)
    inputs.append((24, unit, 9 * unit))  # over real numbers 14.7 would be best, in whole segments it is 12
    inputs += [(1, 7, 3), (5, 1, cases.integer(40, 90)), (4, 4, 4), (2, 5, 5)]
    count = judge(
        answer,
        inputs,
        right_segment,
        SEGMENT_MISTAKES,
        look="for 4 layers, layer_bytes = 4 and input_bytes = 4 the best is (2, 16)",
        read=_read_segment,
    )
    return f"the best segment for {count} stacks of layers"
