"""Answers to exercises 2.4, 2.5 and 2.6 of notebook 02."""

import math

from . import right, wrong

STATES = {"sgd": 0, "sgd-momentum": 1, "adamw": 2}
EIGHT = 2 * (1 + 4 / 256)


def recipe(dtype_bytes, optimizer, master):
    item = 4 if master else dtype_bytes
    states = EIGHT if optimizer == "adamw-8bit" else STATES[optimizer] * item
    return 2 * dtype_bytes + (4 if master else 0) + states


def by_cases(dtype_bytes, optimizer, master):
    total = dtype_bytes + dtype_bytes
    wide = dtype_bytes
    if master:
        total, wide = total + 4, 4
    match optimizer:
        case "sgd-momentum":
            total += wide
        case "adamw":
            total += wide + wide
        case "adamw-8bit":
            total += 1 + 1 + 4 / 256 + 4 / 256
    return total


def by_numbers(dtype_bytes, optimizer, master):
    sizes = [dtype_bytes, dtype_bytes]
    sizes += [4.0] if master else []
    if optimizer.endswith("8bit"):
        sizes += [1, 1, 1 / 64, 1 / 64]
    else:
        sizes += [max(dtype_bytes, 4) if master else dtype_bytes] * ["sgd", "sgd-momentum", "adamw"].index(optimizer)
    return sum(sizes)


def states(does):
    """`recipe` with states of its own: does(dtype_bytes, optimizer, master), None for the right ones."""

    def changed(d, o, m):
        new = does(d, o, m)
        return recipe(d, o, m) if new is None else 2 * d + 4 * m + new

    return changed


def if_full(item):
    """Other bytes for a state that is not in 8 bits."""
    return states(lambda d, o, m: None if o == "adamw-8bit" else STATES[o] * item(d, m))


def if_eight(value):
    """Other bytes for both 8-bit states."""
    return states(lambda d, o, m: value if o == "adamw-8bit" else None)


def if_eight_and_master(value):
    """Other bytes for both 8-bit states, beside a master copy only."""
    return states(lambda d, o, m: value if m and o == "adamw-8bit" else None)


BYTES = [
    right("2.4", "one line each", recipe),
    right("2.4", "case by case", by_cases),
    right("2.4", "a list of sizes", by_numbers),
    wrong("2.4", "no gradient", "leaves out the gradient", lambda d, o, m: recipe(d, o, m) - d),
    wrong("2.4", "gradient in fp32", "counts the gradient in fp32", lambda d, o, m: recipe(d, o, m) - d + 4),
    wrong("2.4", "optimizer alone", "the optimizer alone", lambda d, o, m: recipe(d, o, m) - 2 * d),
    wrong("2.4", "no master", "leaves out the fp32 master copy", lambda d, o, m: recipe(d, o, m) - 4 * m),
    wrong("2.4", "small master", "stands beside the weight", lambda d, o, m: recipe(d, o, m) - 2 * m),
    wrong("2.4", "master instead", "stands beside the weight", lambda d, o, m: recipe(d, o, m) - d + (0 if m else d)),
    wrong("2.4", "8 bits widened", "they stay one byte each", if_eight_and_master(8)),
    wrong("2.4", "8 bits and scales widened", "they stay one byte each", if_eight_and_master(4 * EIGHT)),
    wrong("2.4", "8 bits widened, a scale each block", "they stay one byte each", if_eight_and_master(8 + 8 / 256)),
    wrong(
        "2.4",
        "8 bits times a number",
        "whatever the dtype",
        states(lambda d, o, m: EIGHT * (4 if m else d) if o == "adamw-8bit" else None),
    ),
    wrong("2.4", "always master", "always adds a master copy", lambda d, o, m: recipe(d, o, m) + 4 * (not m)),
    wrong("2.4", "states half", "belong to the fp32 copies", if_full(lambda d, m: d)),
    wrong("2.4", "states fp32", "always keeps the states in fp32", if_full(lambda d, m: 4)),
    wrong(
        "2.4",
        "one state",
        "counts one state for AdamW",
        states(lambda d, o, m: (4 if m else d) if o == "adamw" else None),
    ),
    wrong(
        "2.4",
        "momentum doubled",
        "gives SGD with momentum two states",
        states(lambda d, o, m: 2 * (4 if m else d) if o == "sgd-momentum" else None),
    ),
    wrong(
        "2.4",
        "sgd with a state",
        "gives plain SGD a state",
        states(lambda d, o, m: (4 if m else d) if o == "sgd" else None),
    ),
    wrong("2.4", "no scales", "forgets the scales", if_eight(2)),
    wrong("2.4", "one byte", "m and v have a byte each", if_eight(1)),
    wrong("2.4", "one byte and scale", "m and v have a byte each", if_eight(1 + 4 / 256)),
    wrong("2.4", "scales once", "counts the scales once", if_eight(2 + 4 / 256)),
    wrong("2.4", "a scale each", "256 numbers share one", if_eight(10)),
    wrong("2.4", "unknown", "raised KeyError", lambda d, o, m: 2 * d + STATES[o] * d),
    wrong("2.4", "sixteen", "is off for", lambda d, o, m: 16),
]


def saved(tokens, in_features, out_features, rank, trains, base_bytes, adapter_bytes):
    if trains == "weight":
        return tokens * in_features * base_bytes
    if trains == "adapter":
        return tokens * (in_features + rank) * adapter_bytes
    return 0


def by_table(t, i, o, r, trains, b, a):
    return t * {"weight": i * b, "adapter": i * a + r * a, "nothing": 0}[trains]


def by_tensors(t, i, o, r, trains, b, a):
    tensors = {"weight": [(t, i, b)], "adapter": [(t, i, a), (t, r, a)]}.get(trains, [])
    return float(sum(math.prod(tensor) for tensor in tensors))


def only(which, does):
    """`saved`, but for one value of `trains`."""
    return lambda t, i, o, r, trains, b, a: (
        does(t, i, o, r, b, a) if trains == which else saved(t, i, o, r, trains, b, a)
    )


SAVED = [
    right("2.5", "three cases", saved),
    right("2.5", "table", by_table),
    right("2.5", "the tensors one by one", by_tensors),
    wrong("2.5", "x of the base", "makes a copy of x", only("adapter", lambda t, i, o, r, b, a: t * (i * b + r * a))),
    wrong(
        "2.5",
        "all of the base",
        "keeps everything in the base's",
        only("adapter", lambda t, i, o, r, b, a: t * (i + r) * b),
    ),
    wrong("2.5", "x twice", "keeps x twice", only("adapter", lambda t, i, o, r, b, a: t * (i * (a + b) + r * a))),
    wrong("2.5", "no x A", "leaves out x Aᵀ", only("adapter", lambda t, i, o, r, b, a: t * i * a)),
    wrong("2.5", "no x", "leaves out x", only("adapter", lambda t, i, o, r, b, a: t * r * a)),
    wrong(
        "2.5",
        "output too",
        "keeps the update x AᵀBᵀ too",
        only("adapter", lambda t, i, o, r, b, a: t * (i + r + o) * a),
    ),
    wrong(
        "2.5",
        "factors",
        "counts A and B",
        only("adapter", lambda t, i, o, r, b, a: t * (i + r) * a + r * (i + o) * a),
    ),
    wrong("2.5", "frozen means free", "says that LoRA keeps nothing", only("adapter", lambda *_: 0)),
    wrong("2.5", "as full", "what full fine-tuning keeps", only("adapter", lambda t, i, o, r, b, a: t * i * b)),
    wrong("2.5", "x for frozen W", "keeps x for a frozen W", only("nothing", lambda t, i, o, r, b, a: t * i * b)),
    wrong(
        "2.5",
        "output with W",
        "keeps the output when W trains",
        only("weight", lambda t, i, o, r, b, a: t * (i + o) * b),
    ),
    wrong("2.5", "output for input", "instead of the input", only("weight", lambda t, i, o, r, b, a: t * o * b)),
    wrong("2.5", "nothing for W", "keeps nothing when W trains", only("weight", lambda *_: 0)),
    wrong("2.5", "W itself", "counts W itself", only("weight", lambda t, i, o, r, b, a: t * i * b + i * o * b)),
    wrong("2.5", "one token", "every token keeps its own", lambda t, *rest: saved(1, *rest)),
    wrong(
        "2.5", "numbers", "counts numbers, not bytes", lambda t, i, o, r, trains, b, a: saved(t, i, o, r, trains, 1, 1)
    ),
    wrong("2.5", "doubled", "is off for", lambda *args: 2 * saved(*args)),
]


def held(layers, layer_bytes, input_bytes, segment):
    return math.ceil(layers / segment) * input_bytes + segment * layer_bytes


def best(layers, layer_bytes, input_bytes):
    costs = [(held(layers, layer_bytes, input_bytes, k), k) for k in range(1, layers + 1)]
    cost, segment = min(costs)
    return segment, cost


def by_loop(layers, layer_bytes, input_bytes):
    found = None
    for segment in range(1, layers + 1):
        inputs = -(-layers // segment)
        total = inputs * input_bytes + segment * layer_bytes
        if found is None or total < found[1]:
            found = [segment, total]
    return found


def by_number_of_segments(layers, layer_bytes, input_bytes):
    shortest = {}  # for each number of segments the shortest that needs no more of them
    for segment in range(layers, 0, -1):
        shortest[math.ceil(layers / segment)] = segment
    costs = sorted((n * input_bytes + k * layer_bytes, k) for n, k in shortest.items())
    return costs[0][1], float(costs[0][0])


def least(cost):
    """The first segment with the least cost(layers, layer_bytes, input_bytes, segment)."""

    def does(n, layer, given):
        segment = min(range(1, n + 1), key=lambda k: cost(n, layer, given, k))
        return segment, cost(n, layer, given, segment)

    return does


def root(n, layer, given):
    segment = round(n**0.5)
    return segment, held(n, layer, given, segment)


def calculus(whole):
    """The best real k, made whole."""

    def does(n, layer, given):
        segment = max(1, min(n, whole((n * given / layer) ** 0.5)))
        return segment, held(n, layer, given, segment)

    return does


def longest(n, layer, given):
    cost, segment = min((held(n, layer, given, k), -k) for k in range(1, n + 1))
    return -segment, cost


def last_left_out(n, layer, given):
    cost, segment = min((held(n, layer, given, k), k) for k in range(1, max(n, 2)))
    return segment, cost


SEGMENT = [
    right("2.6", "min", best),
    right("2.6", "loop, as a list", by_loop),
    right("2.6", "by the number of segments", by_number_of_segments),
    wrong("2.6", "root", "takes √layers", root),
    wrong("2.6", "calculus, rounded", "that calculus gives", calculus(round)),
    wrong("2.6", "calculus, rounded down", "that calculus gives", calculus(int)),
    wrong("2.6", "calculus, rounded up", "that calculus gives", calculus(math.ceil)),
    wrong(
        "2.6", "rounded down", "drops the last, shorter segment", least(lambda n, layer, x, k: n // k * x + k * layer)
    ),
    wrong("2.6", "not rounded", "a fraction of a segment", least(lambda n, layer, x, k: n / k * x + k * layer)),
    wrong("2.6", "all layers", "keeps the layers of every", least(lambda n, layer, x, k: -(-n // k) * x + n * layer)),
    wrong("2.6", "one layer", "one layer at a time", least(lambda n, layer, x, k: -(-n // k) * x + layer)),
    wrong("2.6", "no inputs", "leaves out the inputs", least(lambda n, layer, x, k: k * layer)),
    wrong("2.6", "one input", "keeps one input in all", least(lambda n, layer, x, k: x + k * layer)),
    wrong(
        "2.6", "number of them", "the number of segments for", least(lambda n, layer, x, k: k * x + -(-n // k) * layer)
    ),
    wrong(
        "2.6",
        "worst",
        "takes the worst segment",
        lambda n, layer, x: max(((k, held(n, layer, x, k)) for k in range(1, n + 1)), key=lambda pair: pair[1]),
    ),
    wrong("2.6", "longest", "the longest of equally good", longest),
    wrong("2.6", "bytes first", "returns the bytes first", lambda *args: best(*args)[::-1]),
    wrong("2.6", "range too short", "never takes one segment for all", last_left_out),
    wrong("2.6", "segment alone", "should return (segment, bytes)", lambda *args: best(*args)[0]),
]
