"""The parts that decoder layers are made of: shape of the attention, rotary embedding, attention, activation."""

from typing import Any, NamedTuple

from lora_lab.budget.linear import Linear, linear
from lora_lab.budget.rules import FP32, Rules
from lora_lab.budget.tape import Buffer, Value


class Layer(NamedTuple):
    """One decoder layer: its linear layers by their path inside it, and whether its norms train."""

    linears: dict[str, Linear]
    trains: bool

    def __call__(self, t: Rules, x: Value, name: str) -> Value:
        t.where = name.rpartition(".")[2]
        y = linear(t, x, self.linears[name])
        t.where = ""
        return y


class Heads(NamedTuple):
    """Shape of the attention: query heads, key-value heads, width of a head, and how much of it is rotated."""

    query: int
    kv: int
    width: int
    rotated: int


def heads_of(config: Any) -> Heads:
    """Read from a transformers config, under the names that its family gives them."""
    query = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // query
    kv = getattr(config, "num_key_value_heads", None) or query
    if config.model_type == "falcon":
        kv = 1 if config.multi_query else query
    rope = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor", 1.0) if "rope_type" in rope or "full_attention" in rope else 0
    return Heads(query, kv, width, int(width * share))


def rope(t: Rules, q: Value, k: Value, heads: Heads, joined: bool = False) -> tuple[Value, Value]:
    """x · cos + rotate_half(x) · sin, of the rotated part of each head; `joined`: put together again with the rest.

    cos and sin are saved, but all layers share them: they are counted once, elsewhere.
    """
    turned = []
    for x in (q, k):
        size = x.size * heads.rotated // heads.width
        rest = t.part(x, x.size - size) if joined else x
        x = t.part(x, size) if joined else x
        table = Value(1, x.dtype, buffer=Buffer(0))
        straight = t.mul(x, table)
        half = t.join(t.scale(t.part(x, size // 2)), t.part(x, size // 2))
        x = t.add(straight, t.mul(half, table))
        turned.append(t.join(x, rest) if joined else x)
    t.hold(q, k)
    return turned[0], turned[1]


def attend(t: Rules, q: Value, k: Value, v: Value, heads: Heads, **style: bool) -> Value:
    """softmax(q kᵀ/√width + mask) v: by a flash kernel, or one operation at a time.

    style: `joined` if q and k come out of `cat`. The kernel lays its output out like q: after a projection token by
    token, as the next layer wants it, but after `cat` head by head, and one more copy puts it right.
    """
    if t.how.attention == "sdpa":
        y = t.flash(q, k, v, heads.query, heads.width)
        return t.copy(y) if style.get("joined") else y
    return eager(t, q, k, v, heads, softcap=style.get("softcap", False), wide=style.get("wide", True))


def eager(t: Rules, q: Value, k: Value, v: Value, heads: Heads, softcap: bool = False, wide: bool = True) -> Value:
    """All length² scores of every head in memory. `wide`: their softmax in fp32."""
    repeat = q.size if heads.query != heads.kv else 0  # each key-value head once for every query head
    k, v = t.copy(k, repeat), t.copy(v, repeat)
    cells = t.how.batch * heads.query * t.how.length**2
    flops = 2 * cells * heads.width
    scores = t.scale(t.product(t.copy(q), k, cells, flops, "scores"))
    if softcap:
        scores = t.scale(t.of_output("tanh", t.scale(scores)))
    scores = t.shift(scores)
    weights = t.of_output("softmax", t.cast(scores, FP32) if wide else scores)
    return t.copy(t.product(t.cast(weights, q.dtype), v, q.size, flops, "scores"))


def fallback(t: Rules, q: Value, k: Value, v: Value, heads: Heads) -> Value:
    """What sdpa does where no fused kernel fits (one key-value head, given as such): step by step, in fp32."""
    dtype = q.dtype
    q, k, v = (t.cast(x, FP32) for x in (q, k, v))
    cells = t.how.batch * heads.query * t.how.length**2
    flops = 2 * cells * heads.width
    scores = t.product(t.scale(q), t.copy(t.scale(k), q.size), cells, flops, "scores")
    weights = t.of_output("softmax", t.shift(scores))
    return t.copy(t.cast(t.product(weights, t.copy(v, q.size), q.size, flops, "scores"), dtype))


def activation(t: Rules, x: Value, name: str) -> Value:
    """gelu_new is computed one operation at a time in transformers, and saves four tensors instead of one. BLOOM's own
    gelu saves one, but computes as many on the way: at the worst moment 3 beside its output, and 5 going backward."""
    if name == "bloom":
        return t.record(name, [x], x.size, x.dtype, saves=[x], scratch=3 * x.nbytes, backward_scratch=5 * x.nbytes)
    if name != "gelu_new":
        return t.of_input(name, x)
    half = t.scale(x)
    inner = t.scale(t.add(x, t.scale(t.of_input("pow", x))))
    return t.mul(half, t.shift(t.of_output("tanh", inner)))
