"""One decoder layer of each family, as its `forward` in transformers computes it: x (tokens · hidden) -> the same.

What is saved follows from the operations. Of a Llama layer in 16 bits, in bytes per token, with h = hidden, f = MLP,
q and k = all query and all key-value heads, H = number of query heads, and fp32 adapters of rank r on every layer:

                     everything trains        W frozen, A and B train
    2 norms          2 (4h + 4 + 2h)          2 (4h + 4)         x in fp32 and 1/rms; the output only if w trains
    q, k, v          2h                       3 (4h + 4r)        one shared input; or a copy each, and A x
    flash            4q + 4k + 4H             4q + 4k + 4H       q, k, v, the output, sums in fp32
    o                -                        4q + 4r            its input is what flash saves already
    gate, up         2h                       2 (4h + 4r)
    silu, product    2f + 4f                  2f + 4f            gate; silu(gate) and up
    down             2f                       4f + 4r
"""

from collections.abc import Callable
from typing import Any

import torch

from lora_lab.budget.blocks import Layer, activation, attend, eager, fallback, heads_of, rope
from lora_lab.budget.experts import mixture
from lora_lab.budget.rules import Rules
from lora_lab.budget.tape import Value

STEPWISE = ("bloom", "gemma2")  # whose attention has no flash kernel in transformers
FUSED, HEAD_NORMS, SANDWICH = ("phi3",), ("qwen3", "qwen3_moe", "gemma3_text"), ("gemma2", "gemma3_text")


def llama(t: Rules, x: Value, layer: Layer, c: Any) -> Value:
    """x + attention(norm x), then x + mlp(norm x): Llama, Mistral, Mixtral, Qwen3, Gemma, Phi-3."""
    kind, heads = c.model_type, heads_of(c)
    residual_dropout = getattr(c, "resid_pdrop", 0.0)

    def norm(x: Value, width: int = c.hidden_size) -> Value:
        return t.rms_norm(x, width, layer.trains, plus_one=kind.startswith("gemma"))

    normed = norm(x)
    if kind in FUSED:
        qkv = layer(t, normed, "self_attn.qkv_proj")
        q, k, v = (t.part(qkv, t.how.tokens * n * heads.width) for n in (heads.query, heads.kv, heads.kv))
    else:
        q, k, v = (layer(t, normed, f"self_attn.{name}_proj") for name in "qkv")
    if kind in HEAD_NORMS:
        q, k = norm(q, heads.width), norm(k, heads.width)
    q, k = rope(t, q, k, heads, joined=kind in FUSED)
    y = layer(t, attend(t, q, k, v, heads, joined=kind in FUSED, softcap=kind == "gemma2"), "self_attn.o_proj")
    t.hold(normed, q, k, v)
    x = t.add(x, t.dropout(norm(y) if kind in SANDWICH else y, residual_dropout))
    normed = norm(x)
    y = mixture(t, normed, layer, c) if "moe" in kind or kind == "mixtral" else _gated(t, normed, layer, c)
    t.hold(normed)
    return t.add(x, t.dropout(norm(y) if kind in SANDWICH else y, residual_dropout))


def _gated(t: Rules, y: Value, layer: Layer, c: Any) -> Value:
    """down(act(gate y) · up y)"""
    act = getattr(c, "hidden_activation", None) or c.hidden_act
    if c.model_type in FUSED:
        both = layer(t, y, "mlp.gate_up_proj")
        gate, up = t.part(both, both.size // 2), t.part(both, both.size // 2)
        y = t.mul(up, activation(t, gate, act))
    else:
        gate = activation(t, layer(t, y, "mlp.gate_proj"), act)
        y = t.mul(gate, layer(t, y, "mlp.up_proj"))
    return layer(t, y, "mlp.down_proj")


def gpt2(t: Rules, x: Value, layer: Layer, c: Any) -> Value:
    normed = t.layer_norm(x, c.hidden_size, layer.trains)
    qkv = layer(t, normed, "attn.c_attn")
    q, k, v = (t.part(qkv, qkv.size // 3) for _ in "qkv")
    y = t.dropout(layer(t, attend(t, q, k, v, heads_of(c), wide=False), "attn.c_proj"), c.resid_pdrop)
    t.hold(normed, qkv)
    x = t.add(y, x)
    t.hold(y)
    normed = t.layer_norm(x, c.hidden_size, layer.trains)
    z = layer(t, activation(t, layer(t, normed, "mlp.c_fc"), c.activation_function), "mlp.c_proj")
    z = t.dropout(z, c.resid_pdrop)
    t.hold(normed, y)
    return t.add(x, z)


def neox(t: Rules, x: Value, layer: Layer, c: Any) -> Value:
    """GPT-NeoX and Pythia: attention and MLP side by side, both from x."""
    heads, normed = heads_of(c), t.layer_norm(x, c.hidden_size, layer.trains)
    qkv = layer(t, normed, "attention.query_key_value")
    q, k, v = (t.part(qkv, qkv.size // 3) for _ in "qkv")
    q, k = rope(t, q, k, heads, joined=True)
    y = layer(t, attend(t, q, k, v, heads, joined=True), "attention.dense")
    t.hold(normed, qkv, q, k)
    y = t.dropout(y, c.hidden_dropout)
    middle = x if c.use_parallel_residual else t.add(y, x)
    normed = t.layer_norm(middle, c.hidden_size, layer.trains)
    z = layer(t, activation(t, layer(t, normed, "mlp.dense_h_to_4h"), c.hidden_act), "mlp.dense_4h_to_h")
    t.hold(normed, y)
    z = t.dropout(z, c.hidden_dropout)
    return t.add(t.add(z, y), x) if c.use_parallel_residual else t.add(z, middle)


def phi(t: Rules, x: Value, layer: Layer, c: Any) -> Value:
    """Phi-1.5 and Phi-2: side by side, from one norm."""
    heads, h = heads_of(c), t.layer_norm(x, c.hidden_size, layer.trains)
    q, k, v = (layer(t, h, f"self_attn.{name}_proj") for name in "qkv")
    q, k = rope(t, q, k, heads, joined=True)
    y = layer(t, attend(t, q, k, v, heads, joined=True), "self_attn.dense")
    t.hold(q, k, v)
    y = t.dropout(y, c.resid_pdrop)
    z = layer(t, activation(t, layer(t, h, "mlp.fc1"), c.hidden_act), "mlp.fc2")
    t.hold(h, y)
    return t.add(t.add(y, t.dropout(z, c.resid_pdrop)), x)


def falcon(t: Rules, x: Value, layer: Layer, c: Any) -> Value:
    """Falcon-7B: side by side, from one norm; one key-value head for all queries."""
    heads, h = heads_of(c), t.layer_norm(x, c.hidden_size, layer.trains)
    qkv = layer(t, h, "self_attention.query_key_value")
    sizes = (t.how.tokens * n * heads.width for n in (heads.query, heads.kv, heads.kv))
    q, k, v = (t.part(qkv, size) for size in sizes)
    k, v = (t.record("index", [x], x.size, x.dtype, saves=[Value(1, torch.int64)]) for x in (k, v))
    q, k = rope(t, q, k, heads)
    y = fallback(t, q, k, v, heads) if t.how.attention == "sdpa" else eager(t, q, k, v, heads, wide=False)
    y = layer(t, y, "self_attention.dense")
    t.hold(qkv, q, k, v)
    z = layer(t, activation(t, layer(t, h, "mlp.dense_h_to_4h"), c.activation), "mlp.dense_4h_to_h")
    t.hold(h, y)
    return t.add(x, t.dropout(t.add(z, y), c.hidden_dropout))


def bloom(t: Rules, x: Value, layer: Layer, c: Any) -> Value:
    """Only ever step by step: the scores carry a bias (ALiBi)."""
    normed = t.layer_norm(x, c.hidden_size, layer.trains)
    qkv = layer(t, normed, "self_attention.query_key_value")
    q, k, v = (t.part(qkv, qkv.size // 3) for _ in "qkv")
    y = layer(t, eager(t, q, k, v, heads_of(c)), "self_attention.dense")
    t.hold(normed, qkv)
    x = t.add(x, t.dropout(y, c.hidden_dropout))
    normed = t.layer_norm(x, c.hidden_size, layer.trains)
    y = activation(t, layer(t, normed, "mlp.dense_h_to_4h"), "bloom")
    y = layer(t, y, "mlp.dense_4h_to_h")
    t.hold(normed)
    return t.add(x, t.dropout(y, c.hidden_dropout))


FAMILIES: dict[str, Callable[[Rules, Value, Layer, Any], Value]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen3", "qwen3_moe", "phi3"), llama),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), llama),
    "gpt2": gpt2,
    "gpt_neox": neox,
    "phi": phi,
    "falcon": falcon,
    "bloom": bloom,
}
