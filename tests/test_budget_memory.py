"""Predicted memory against tensor accounting: what autograd saves, to the byte, and the worst moment of a step."""

import pytest
import torch
from budget_for_tests import (
    BATCH,
    FAMILY,
    LENGTH,
    MIXTURES,
    OPTIMIZERS,
    RANK,
    STEPWISE,
    config,
    ids,
    loss,
    model,
    predicted,
)
from torch import nn

from lora_lab import inject, lora_layers
from lora_lab.budget import budget, code_bytes
from lora_lab.budget.measure import saved_bytes
from lora_lab.budget.optimizers import state_bytes
from lora_lab.quantized_linear import QuantizedLinear


def saved_as_predicted(family: str, batch: int, length: int, **settings) -> None:
    made, tokens = model(family, **settings), ids(batch, length)
    found = saved_bytes(made, lambda: loss(made, tokens, settings.get("autocast")))
    memory = predicted(family, batch, length, **settings).memory
    # Token ids and labels are the caller's, but autograd saves the ids where the embedding trains.
    own = 2 * tokens.nbytes - (tokens.nbytes if settings.get("method") == "full" else 0)
    assert memory.kinds["activations"] + memory.kinds["logits"] - own == found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["full", "lora", "dora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_saved_bytes(family, method, attention, dtype):
    saved_as_predicted(family, BATCH, LENGTH, method=method, attention=attention, dtype=dtype)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", [name for name in FAMILY if name not in ("llama", "gpt2", "gpt_neox")])
def test_saved_bytes_of_every_other_family(family, method):
    targets = ["q_proj", "v_proj"] if family in MIXTURES else "all-linear"
    attention = "eager" if family in STEPWISE else "sdpa"
    saved_as_predicted(family, 2, 11, method=method, attention=attention, dtype="bfloat16", targets=targets)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 33), (5, 4)])
@pytest.mark.parametrize("targets", [["v_proj"], ["q_proj", "down_proj"], r"model\.layers\.2\..*(k|up)_proj"])
def test_saved_bytes_of_other_targets_and_sizes(targets, batch, length):
    saved_as_predicted("llama", batch, length, targets=targets)
    saved_as_predicted("llama", batch, length, targets=targets, dtype="bfloat16")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "qlora"},
        {"method": "qlora", "dtype": "bfloat16", "codes": "int8"},
        {"method": "qdora", "dtype": "bfloat16"},
        {"dropout": 0.1},
        {"dropout": 0.1, "dtype": "bfloat16", "method": "dora"},
        {"autocast": "bfloat16"},
        {"autocast": "bfloat16", "dtype": "bfloat16"},
        {"autocast": "bfloat16", "method": "full"},
        {"library": "peft"},
        {"library": "peft", "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_saved_bytes_of_other_ways_to_run(settings):
    saved_as_predicted("llama", BATCH, LENGTH, **settings)


def test_saved_bytes_of_a_fused_layer():
    saved_as_predicted("llama", BATCH, LENGTH, dtype="bfloat16", fused=True)
    plain = predicted("llama", BATCH, LENGTH, dtype="bfloat16").memory.kinds["activations"]
    assert predicted("llama", BATCH, LENGTH, dtype="bfloat16", fused=True).memory.kinds["activations"] < plain


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", MIXTURES)
def test_saved_bytes_of_experts_adapted_by_peft(family, dtype):
    saved_as_predicted(family, 2, 11, dtype=dtype, library="peft")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("method", "dtype"), [("full", "bfloat16"), ("dora", "float32")])
def test_optimizer_states(optimizer, method, dtype):
    made, tokens = model("llama", method, dtype), ids(2, 5)
    parameters = [p for p in made.parameters() if p.requires_grad]
    run = OPTIMIZERS[optimizer](parameters)
    loss(made, tokens).backward()
    run.step()
    states = [t for state in run.state.values() for name, t in state.items() if torch.is_tensor(t) and name != "step"]
    memory = predicted("llama", 2, 5, method=method, dtype=dtype, optimizer=optimizer).memory
    assert memory.kinds["optimizer"] == sum(t.nbytes for t in states)
    assert memory.kinds["gradients"] == sum(p.grad.nbytes for p in parameters)
    assert memory.kinds["adapter"] == (0 if method == "full" else sum(p.nbytes for p in parameters))
    frozen = sum(p.nbytes for p in made.parameters()) - memory.kinds["adapter"]
    assert memory.kinds["weights"] == frozen


def test_eight_bit_states_and_master_copies_by_arithmetic():
    big, small = ((1000, 300), torch.bfloat16), ((50, 60), torch.bfloat16)
    # 1 byte for each of m and v, fp32 scales for blocks of 256; below 4,096 numbers both in fp32
    assert state_bytes("adamw-8bit", [big]) == 2 * (300_000 + 4 * 1172)
    assert state_bytes("adamw-8bit", [small]) == 2 * 4 * 3000
    memory = budget("GPT-2", "full", master=True, length=8).memory
    n = 124_439_808
    assert memory.kinds["weights"] == memory.kinds["gradients"] == 2 * n
    assert memory.kinds["master copies"] == 4 * n
    assert memory.kinds["optimizer"] == 8 * n
    assert budget("GPT-2", "full", length=8).memory.kinds["optimizer"] == 4 * n


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("out", "in_", "block"), [(7, 9, None), (64, 48, 64), (31, 100, 32)])
def test_code_bytes(kind, double, out, in_, block):
    layer = QuantizedLinear.from_linear(nn.Linear(in_, out, bias=False), kind, block, double)
    assert code_bytes(out, in_, kind, block, double) == layer.quantized.nbytes == sum(b.nbytes for b in layer.buffers())


def test_bits_of_a_quantized_number():
    n = 4096
    assert 8 * code_bytes(n, n, double=False) / n**2 == 4.5
    assert 8 * code_bytes(n, n) / n**2 == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), rel=1e-6)


def test_a_frozen_layer_saves_no_input():
    def activations(**settings):
        return predicted("llama", BATCH, LENGTH, **settings).memory.kinds["activations"]

    few, more = activations(targets=["v_proj"]), activations(targets=["q_proj", "v_proj", "o_proj"])
    assert few < more < activations(method="full")
    # Beside a half-precision base each adapter keeps an fp32 copy of its input: more than full fine-tuning saves.
    assert activations(dtype="bfloat16") > activations(dtype="bfloat16", method="full")


def test_how_memory_grows():
    def activations(**settings):
        return predicted("llama", **({"batch": 2, "length": 16} | settings)).memory.kinds["activations"]

    once = activations(attention="eager")
    assert activations(attention="eager", batch=4) > 1.9 * once
    # sdpa grows with the tokens (its tables of cos and sin with the length), eager with the square of the length too
    assert activations(length=32) == 2 * activations()
    assert activations(attention="eager", length=32) > 2.05 * once
    kept = predicted("llama", 2, 16, checkpointing=True).memory.kinds["activations"]
    assert kept < activations() / 3


def test_moments_and_kinds_agree():
    memory = budget("Llama-3.2-1B", "full", batch=1, length=16).memory
    assert memory.worst == "step"
    assert memory.peak == sum(memory.at_peak.values()) == max(sum(kinds.values()) for kinds in memory.moments.values())
    for kinds in memory.moments.values():
        passing = ("activations", "logits")  # more of them exist for a moment than are kept
        assert all(0 <= kinds[kind] <= memory.kinds[kind] for kind in kinds if kind not in passing)
    long = budget("Llama-3.2-1B", "lora", batch=4, length=1024).memory
    assert long.worst == "backward"
    # log softmax, its gradient and that of the loss, in fp32: 12 bytes for each logit
    logits = 4 * 1024 * 128_256
    assert long.at_peak["logits"] == 4 * logits
    assert long.at_peak["workspace"] == 8 * logits


def test_saved_by_layer_names_the_operations():
    found = predicted("llama", 2, 8, dtype="bfloat16").saved_by_layer()
    tokens, hidden, mlp = 16, 32, 72
    assert found["q_proj: linear"] == 4 * tokens * (hidden + RANK)  # an fp32 copy of its input, and A x
    assert found["silu"] == 2 * tokens * mlp
    full = predicted("llama", 2, 8, dtype="bfloat16", method="full").saved_by_layer()
    assert full["down_proj: linear"] == 2 * tokens * mlp
    one, two = (sum(predicted("llama", 2, 8).saved_by_layer().values()) for _ in range(2))
    assert one == two


def test_a_llama_layer_by_the_formula_of_its_docstring():
    h, q, k, f, heads, r = 4096, 4096, 1024, 14336, 32, 16
    flash, gated = 4 * q + 4 * k + 4 * heads, 6 * f
    full = 2 * (6 * h + 4) + 2 * h + flash + 2 * h + gated + 2 * f
    lora = 2 * (4 * h + 4) + 5 * (4 * h + 4 * r) + flash + (4 * q + 4 * r) + gated + (4 * f + 4 * r)
    for method, expected in (("full", full), ("lora", lora)):
        run = budget("Llama-3-8B", method, rank=r, batch=1, length=1)
        assert sum(run.saved_by_layer().values()) == expected
        longer = budget("Llama-3-8B", method, rank=r, batch=2, length=5)
        assert sum(longer.saved_by_layer().values()) == 10 * expected


def test_only_some_layers_adapted():
    made = inject(model("llama", "full"), r"model\.layers\.1\..*_proj", RANK, RANK + 1)
    tokens = ids(2, 6)
    memory = predicted("llama", 2, 6, targets=r"model\.layers\.1\..*_proj").memory
    assert len(lora_layers(made)) == 7
    found = saved_bytes(made, lambda: loss(made, tokens))
    assert memory.kinds["activations"] + memory.kinds["logits"] - 2 * tokens.nbytes == found


def test_a_family_that_is_not_written_down_is_refused():
    from transformers import AutoConfig

    small = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    strange = AutoConfig.for_model("stablelm", **small, intermediate_size=24)
    with pytest.raises(ValueError, match=r"stablelm.*llama"):
        _ = budget(strange, rank=2).memory
    assert budget(strange, rank=2).counts.trainable > 0
    assert config("llama").model_type == "llama"
