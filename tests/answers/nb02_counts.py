"""Answers to exercises 2.1, 2.2 and 2.3 of notebook 02."""

import math

import torch

from . import right, wrong


def count(shapes, rank):
    return sum(rank * (out + in_) for out, in_ in shapes)


def by_tensors(shapes, rank):
    sizes = [torch.empty(rank, in_, device="meta").numel() + torch.empty(out, rank).numel() for out, in_ in shapes]
    return sum(sizes)


def by_sides(shapes, rank):
    return float(rank) * sum(map(sum, shapes))


def each(function):
    return lambda shapes, rank: sum(function(out, in_, rank) for out, in_ in shapes)


def sorts(shapes, rank):
    shapes.sort(reverse=True)
    return count(shapes, rank)


def returns_inside(shapes, rank):
    for out, in_ in shapes:
        return rank * (out + in_)
    return 0


PARAMETERS = [
    right("2.1", "sum over the sides", count),
    right("2.1", "numel of A and B", by_tensors),
    right("2.1", "as a float", by_sides),
    wrong("2.1", "product", "multiplies the two sides", each(lambda o, i, r: r * o * i)),
    wrong("2.1", "W itself", "counts W itself", each(lambda o, i, r: o * i)),
    wrong("2.1", "no rank", "leaves out the rank", each(lambda o, i, r: o + i)),
    wrong("2.1", "A only", "counts A only", each(lambda o, i, r: r * i)),
    wrong("2.1", "B only", "counts B only", each(lambda o, i, r: r * o)),
    wrong("2.1", "square by in", "with the side `in`", each(lambda o, i, r: 2 * r * i)),
    wrong("2.1", "square by out", "with the side `out`", each(lambda o, i, r: 2 * r * o)),
    wrong("2.1", "doubled", "counts both factors twice", each(lambda o, i, r: 2 * r * (o + i))),
    wrong("2.1", "bias of B", "adds a bias", each(lambda o, i, r: r * (o + i) + o)),
    wrong("2.1", "bias of both", "adds a bias", each(lambda o, i, r: r * (o + i) + o + r)),
    wrong("2.1", "with W", "adds W to its factors", each(lambda o, i, r: r * (o + i) + o * i)),
    wrong("2.1", "rank squared", "the square of the rank", each(lambda o, i, r: r * r * (o + i))),
    wrong("2.1", "return in the loop", "counts the first matrix only", returns_inside),
    wrong("2.1", "last only", "counts the last matrix only", lambda shapes, rank: count(shapes[-1:], rank)),
    wrong("2.1", "a set", "counts equal shapes once", lambda shapes, rank: count(set(shapes), rank)),
    wrong("2.1", "list", "should be one number", lambda shapes, rank: [rank * sum(shape) for shape in shapes]),
    wrong("2.1", "sorted in place", "changed the list shapes", sorts),
    wrong("2.1", "off by a factor", "is off for", lambda shapes, rank: 3 * count(shapes, rank)),
]


def attention(hidden, heads, kv_heads, head_dim, fused):
    q, kv = heads * head_dim, kv_heads * head_dim
    if fused:
        return {"qkv_proj": (q + 2 * kv, hidden), "o_proj": (hidden, q)}
    return {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}


def by_modules(hidden, heads, kv_heads, head_dim, fused):
    widths = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
    layers = {name: torch.nn.Linear(hidden, n * head_dim, device="meta") for name, n in widths.items()}
    shapes = {name: list(layer.weight.shape) for name, layer in layers.items()}
    if fused:
        shapes = {"qkv_proj": [sum(out for out, _ in shapes.values()), hidden]}
    return shapes | {"o_proj": [hidden, heads * head_dim]}


def by_heads(hidden, heads, kv_heads, head_dim, fused):
    counts = {"q": heads, "k": kv_heads, "v": kv_heads}
    if fused:
        counts = {"qkv": heads + kv_heads + kv_heads}
    table = {"o_proj": (hidden, heads * head_dim)}
    for letter, number in counts.items():
        table[f"{letter}_proj"] = (number * head_dim, hidden)
    return table


def with_other(**changes):
    """`attention` with some of its arguments computed anew from all of them."""

    def does(hidden, heads, kv_heads, head_dim, fused):
        args = {"hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "fused": fused}
        return attention(**(args | {name: new(**args) for name, new in changes.items()}))

    return does


def with_shape(name, shape):
    """`attention` with another shape for one matrix, where there is one."""

    def does(*args):
        table = attention(*args)
        return table | ({name: shape(*args)} if name in table else {})

    return does


ATTENTION = [
    right("2.2", "by hand", attention),
    right("2.2", "modules, shapes as lists", by_modules),
    right("2.2", "heads of each part, o first", by_heads),
    wrong("2.2", "in first", "as (in, out)", lambda *args: {n: s[::-1] for n, s in attention(*args).items()}),
    wrong("2.2", "o turned", "turns o_proj", with_shape("o_proj", lambda h, n, kv, d, f: (n * d, h))),
    wrong("2.2", "no groups", "every query head keys", with_other(kv_heads=lambda heads, **_: heads)),
    wrong(
        "2.2",
        "width from hidden",
        "takes hidden / heads",
        with_other(head_dim=lambda hidden, heads, **_: hidden // heads),
    ),
    wrong(
        "2.2",
        "a fraction of a head",
        "takes hidden / heads",
        with_other(head_dim=lambda hidden, heads, **_: hidden / heads),
    ),
    wrong(
        "2.2",
        "keys from hidden",
        "takes hidden / heads",
        lambda h, n, kv, d, f: (
            {"qkv_proj": (n * d + 2 * (h // n * kv), h), "o_proj": (h, n * d)}
            if f
            else {"q_proj": (n * d, h), "k_proj": (h // n * kv, h), "v_proj": (h // n * kv, h), "o_proj": (h, n * d)}
        ),
    ),
    wrong(
        "2.2",
        "o alone is right",
        "takes hidden / heads",
        lambda h, n, kv, d, f: attention(h, n, kv, h // n, f) | {"o_proj": (h, n * d)},
    ),
    wrong(
        "2.2",
        "queries as wide as hidden",
        "takes hidden for the width of all queries",
        lambda h, n, kv, d, f: (
            {"qkv_proj": (h + 2 * kv * d, h), "o_proj": (h, h)}
            if f
            else {"q_proj": (h, h), "k_proj": (kv * d, h), "v_proj": (kv * d, h), "o_proj": (h, h)}
        ),
    ),
    wrong("2.2", "o square", "lets o_proj read `hidden`", with_shape("o_proj", lambda h, n, kv, d, f: (h, h))),
    wrong(
        "2.2",
        "heads without width",
        "forgets the width of a key-value head",
        lambda h, n, kv, d, f: (
            {"qkv_proj": (n * d + 2 * kv, h), "o_proj": (h, n * d)}
            if f
            else {"q_proj": (n * d, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, n * d)}
        ),
    ),
    wrong(
        "2.2",
        "three queries",
        "three queries wide",
        with_shape("qkv_proj", lambda h, n, kv, d, f: (3 * n * d, h)),
    ),
    wrong("2.2", "three hidden", "3 · hidden wide", with_shape("qkv_proj", lambda h, n, kv, d, f: (3 * h, h))),
    wrong("2.2", "one of k and v", "but not both", with_shape("qkv_proj", lambda h, n, kv, d, f: ((n + kv) * d, h))),
    wrong("2.2", "never fused", "qkv_proj, o_proj are expected", with_other(fused=lambda **_: False)),
    wrong("2.2", "always fused", "q_proj, k_proj, v_proj, o_proj are expected", with_other(fused=lambda **_: True)),
    wrong("2.2", "list", "should return a dict", lambda *args: list(attention(*args).values())),
    wrong(
        "2.2", "counts", "not a pair (out, in)", lambda *args: {n: math.prod(s) for n, s in attention(*args).items()}
    ),
    wrong(
        "2.2", "long names", "are expected", lambda *args: {f"self_attn.{n}": s for n, s in attention(*args).items()}
    ),
]


def overtakes(hidden, query_width, kv_width, matrices):
    attention_sides = 2 * (hidden + query_width) + 2 * (hidden + kv_width)
    return attention_sides // matrices - hidden + 1


def by_trying(hidden, query_width, kv_width, matrices):
    width = 1
    while matrices * (hidden + width) <= 4 * hidden + 2 * query_width + 2 * kv_width:
        width += 1
    return width


def solved(attention_sides, one_more=1):
    """The least width for a sum of attention's sides that is computed otherwise."""
    return lambda h, q, k, m: attention_sides(h, q, k) // m - h + one_more


def trying(larger):
    """Count up from 1 until larger(h, q, k, m, width)."""
    return lambda h, q, k, m: next(width for width in range(1, 10_000) if larger(h, q, k, m, width))


OVERTAKES = [
    right("2.3", "solved", overtakes),
    right("2.3", "tried", by_trying),
    right("2.3", "as a float", lambda *args: float(overtakes(*args))),
    wrong(
        "2.3", "equal", "stops where both are equal", trying(lambda h, q, k, m, w: m * (h + w) >= 4 * h + 2 * (q + k))
    ),
    wrong("2.3", "one more", "is one too large", lambda *args: overtakes(*args) + 1),
    wrong("2.3", "weights", "compares the weights", trying(lambda h, q, k, m, w: m * h * w > 2 * h * (q + k))),
    wrong("2.3", "no groups", "the width of the queries", lambda h, q, k, m: overtakes(h, q, q, m)),
    wrong("2.3", "k only", "one of k_proj and v_proj", solved(lambda h, q, k: 3 * h + 2 * q + k)),
    wrong("2.3", "no o", "leaves out o_proj", solved(lambda h, q, k: 3 * h + q + 2 * k)),
    wrong("2.3", "q and v", "counts q_proj and v_proj only", solved(lambda h, q, k: 2 * h + q + k)),
    wrong("2.3", "three", "always takes three", lambda h, q, k, m: overtakes(h, q, k, 3)),
    wrong("2.3", "two", "always takes two", lambda h, q, k, m: overtakes(h, q, k, 2)),
    wrong("2.3", "one", "counts one MLP matrix", lambda h, q, k, m: overtakes(h, q, k, 1)),
    wrong(
        "2.3",
        "MLP without hidden",
        "has the side hidden",
        trying(lambda h, q, k, m, w: m * w > 4 * h + 2 * q + 2 * k),
    ),
    wrong(
        "2.3",
        "a fraction",
        "a width is a whole number",
        lambda h, q, k, m: (4 * h + 2 * q + 2 * k) / m - h + 0.5,
    ),
    wrong("2.3", "eight hidden", "counts attention as 8 · hidden", solved(lambda h, q, k: 8 * h)),
    wrong("2.3", "queries of hidden", "takes hidden for the width", lambda h, q, k, m: overtakes(h, h, k, m)),
    wrong("2.3", "twice", "is off for", lambda *args: 2 * overtakes(*args)),
]
