"""Checks 2.1 and 2.2: how many numbers an adapter has, from the shapes of the matrices it goes to.

A (r, in) and B (out, r): r (in + out) for each W (out, in).
"""

from collections.abc import Callable, Sequence
from typing import Any

from .compare import Mistake, judge, number
from .describe import kind, short
from .guard import Guard, Wrong
from .harness import Cases, exercise

Shapes = Sequence[tuple[int, int]]


def whole(value: float) -> float:
    """A number without a fraction as an int, so that 65536.0 equals 65536."""
    return int(value) if float(value).is_integer() else float(value)


def mistake(says: str, does: Callable[..., float]) -> Mistake:
    """A mistake whose output is one number."""
    return Mistake(says, lambda *args: whole(does(*args)))


def right_parameters(shapes: Shapes, rank: int) -> int:
    """Σ r (in + out)."""
    return sum(rank * (out + in_) for out, in_ in shapes)


def _each(count: Callable[[int, int, int], int]) -> Callable[[Shapes, int], int]:
    """The same count for every matrix, added up."""
    return lambda shapes, rank: sum(count(out, in_, rank) for out, in_ in shapes)


PARAMETER_MISTAKES = (
    mistake(
        "multiplies the two sides: that is r times all of W; A has r rows of `in` and B has `out` rows of r",
        _each(lambda out, in_, r: r * out * in_),
    ),
    mistake("counts W itself: that one is frozen, its factors are asked for", _each(lambda out, in_, r: out * in_)),
    mistake("leaves out the rank: in + out is the count at rank 1", _each(lambda out, in_, r: out + in_)),
    mistake("counts A only: B has out · r numbers more", _each(lambda out, in_, r: r * in_)),
    mistake("counts B only: A has r · in numbers more", _each(lambda out, in_, r: r * out)),
    mistake("takes every W for square, with the side `in`: B has `out` rows", _each(lambda out, in_, r: 2 * r * in_)),
    mistake(
        "takes every W for square, with the side `out`: A has `in` columns", _each(lambda out, in_, r: 2 * r * out)
    ),
    mistake("counts both factors twice: r (in + out) holds A and B", _each(lambda out, in_, r: 2 * r * (out + in_))),
    mistake("adds a bias: A and B have none", _each(lambda out, in_, r: r * (out + in_) + out)),
    mistake("adds a bias: A and B have none", _each(lambda out, in_, r: r * (out + in_) + out + r)),
    mistake("adds W to its factors: W does not train", _each(lambda out, in_, r: r * (out + in_) + out * in_)),
    mistake(
        "uses the square of the rank: r enters once for A and once for B, each times one side",
        _each(lambda out, in_, r: r * r * (out + in_)),
    ),
    mistake("counts the first matrix only: add up over all shapes", lambda s, r: right_parameters(s[:1], r)),
    mistake("counts the last matrix only: add up over all shapes", lambda s, r: right_parameters(s[-1:], r)),
    mistake(
        "counts equal shapes once: a model has many layers of one shape",
        lambda s, r: right_parameters(sorted(set(s)), r),
    ),
)


@exercise(
    "2.1",
    takes=("shapes", "rank"),
    points=1,
    minutes=5,
    hints=(
        "Take one W (out, in) first. What are the shapes of A and B, and how many numbers does each hold?",
        "A is (rank, in), B is (out, rank). Together rank · in + out · rank. Then add up over all shapes.",
        "Loop over `for out, in_ in shapes` and sum rank · (out + in_).",
    ),
)
def lora_parameters(answer: Guard, cases: Cases) -> str:
    """Σ r (in + out) over a list of shapes."""
    inputs = []
    for _ in range(6):
        sides = cases.different(3, 60, 4)
        first, last = (sides[0], sides[1]), (sides[2], sides[3])
        inputs.append(([first, *[(sides[1], sides[3])] * cases.integer(1, 2), first, last], cases.integer(2, 9)))
    inputs.append(([tuple(cases.different(10, 90, 2))], 1))
    inputs.append(([], cases.integer(2, 9)))
    count = judge(
        answer,
        inputs,
        right_parameters,
        PARAMETER_MISTAKES,
        look="for one W of 3 × 5 at rank 2 it must give 16",
        read=lambda got, _: whole(number(got, "the result of your lora_parameters")),
    )
    return f"the parameters of an adapter for {count} lists of shapes"


# Attention: grouped queries, fused projections.

PLAIN, FUSED = ("q_proj", "k_proj", "v_proj", "o_proj"), ("qkv_proj", "o_proj")
Table = tuple[tuple[int, int], ...]


def right_attention(hidden: int, heads: int, kv_heads: int, head_dim: int, fused: bool) -> Table:
    """(out, in) of the matrices, in the order of PLAIN or FUSED."""
    return _attention(hidden, heads * head_dim, kv_heads * head_dim, fused)


def _attention(hidden: int, query: int, kv: int, fused: bool) -> Table:
    if fused:
        return (query + 2 * kv, hidden), (hidden, query)
    return (query, hidden), (kv, hidden), (kv, hidden), (hidden, query)


def _changed(change: Callable[[Table, bool], Table]) -> Callable[..., Table]:
    return lambda h, n, kv, d, fused: change(right_attention(h, n, kv, d, fused), fused)


HEAD_WIDTH = "takes hidden / heads for the width of a head: it is {head_dim} here, whatever hidden is"
ATTENTION_MISTAKES = (
    Mistake("gives the shapes as (in, out): W is (out, in)", _changed(lambda t, _: tuple(s[::-1] for s in t))),
    Mistake(
        "turns o_proj the wrong way round: it reads the heads, which are {heads} · {head_dim} wide together, and "
        "writes hidden = {hidden}",
        _changed(lambda t, _: (*t[:-1], t[-1][::-1])),
    ),
    Mistake(
        "gives every query head keys and values of its own: there are {kv_heads} key-value heads, not {heads}",
        lambda h, n, kv, d, fused: _attention(h, n * d, n * d, fused),
    ),
    Mistake(
        HEAD_WIDTH,
        lambda h, n, kv, d, fused: _attention(h, h // n * n, h // n * kv, fused),
    ),
    Mistake(HEAD_WIDTH, lambda h, n, kv, d, fused: _attention(h, n * d, h // n * kv, fused)),
    Mistake(
        HEAD_WIDTH,  # but the output of all heads is as wide as it should be
        lambda h, n, kv, d, fused: (*_attention(h, h, h // n * kv, fused)[:-1], (h, n * d)),
    ),
    Mistake(
        "takes hidden for the width of all queries: that is heads · head_dim = {heads} · {head_dim}",
        lambda h, n, kv, d, fused: _attention(h, h, kv * d, fused),
    ),
    Mistake(
        "lets o_proj read `hidden` numbers: it reads the outputs of all heads, {heads} · {head_dim}",
        _changed(lambda t, _: (*t[:-1], (t[-1][0], t[-1][0]))),
    ),
    Mistake(
        "forgets the width of a key-value head: {kv_heads} heads are {kv_heads} · {head_dim} numbers wide",
        lambda h, n, kv, d, fused: _attention(h, n * d, kv, fused),
    ),
    Mistake(
        "makes the fused matrix three queries wide: keys and values have {kv_heads} heads, the queries {heads}",
        lambda h, n, kv, d, fused: ((3 * n * d, h), (h, n * d)) if fused else right_attention(h, n, kv, d, fused),
    ),
    Mistake(
        "makes the fused matrix 3 · hidden wide: it has heads + 2 · kv_heads heads of head_dim each",
        lambda h, n, kv, d, fused: ((3 * h, h), (h, n * d)) if fused else right_attention(h, n, kv, d, fused),
    ),
    Mistake(
        "puts keys or values into the fused matrix, but not both",
        lambda h, n, kv, d, fused: (((n + kv) * d, h), (h, n * d)) if fused else right_attention(h, n, kv, d, fused),
    ),
)


def _read_table(got: Any, hidden: int, heads: int, kv_heads: int, head_dim: int, fused: bool) -> Table:
    if not isinstance(got, dict):
        raise Wrong(f"your attention_shapes should return a dict from names to (out, in), not {kind(got)}")
    names = FUSED if fused else PLAIN
    if set(got) != set(names):
        raise Wrong(
            f"your attention_shapes returns the names {', '.join(map(str, got)) or 'of nothing'} for "
            f"fused = {bool(fused)}, but {', '.join(names)} are expected"
        )
    table = []
    for name in names:
        pair = got[name]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise Wrong(f"your attention_shapes gives {name} {kind(pair)}, not a pair (out, in): {short(pair)}")
        table.append(tuple(whole(number(side, f"a side of {name}")) for side in pair))
    return tuple(table)


@exercise(
    "2.2",
    takes=("hidden", "heads", "kv_heads", "head_dim", "fused"),
    points=1,
    minutes=8,
    hints=(
        "Every matrix reads something and writes something. What does each of the four read? How wide is it?",
        "Queries are heads · head_dim wide, keys and values kv_heads · head_dim. q, k and v read the hidden vector; "
        "o reads what the query heads put out, and writes the hidden vector.",
        "With q = heads · head_dim and kv = kv_heads · head_dim: q_proj (q, hidden), k_proj and v_proj (kv, hidden), "
        "o_proj (hidden, q). Fused: qkv_proj stacks the rows, (q + 2 kv, hidden).",
    ),
)
def attention_shapes(answer: Guard, cases: Cases) -> str:
    """Shapes of the projections for any number of key-value heads, fused or not."""
    inputs = []
    for fused in (False, True):
        for groups in (4, 2, 3, 1):
            kv_heads, head_dim = cases.integer(2, 5), cases.integer(5, 16)
            heads = groups * kv_heads
            hidden = heads * cases.integer(17, 24)  # never heads · head_dim
            inputs.append((hidden, heads, kv_heads, head_dim, fused))
        inputs.append((96, 8, 1, cases.integer(5, 11), fused))  # one key-value head for all
    settings = iter(inputs)
    count = judge(
        answer,
        inputs,
        right_attention,
        ATTENTION_MISTAKES,
        look="Llama-3-8B has hidden = 4096, heads = 32, kv_heads = 8, head_dim = 128: k_proj is (1024, 4096)",
        read=lambda got, _: _read_table(got, *next(settings)),
    )
    return f"the shapes of {count} attention blocks, grouped and fused"
