"""What the checks of notebook 02 take for right, and cases of their own. The answers: `test_checks_answers`.

What they take for right is what the library, autograd and PEFT's own files say.
"""

import pytest
import torch
from torch import nn

from lora_lab import LoRALinear
from lora_lab.budget import MODELS, adapter_file_bytes, adapter_sites, budget, count_parameters, target_table
from lora_lab.budget import measure as accounting
from lora_lab.checks.nb02_counts import right_attention, right_parameters
from lora_lab.checks.nb02_memory import right_bytes
from lora_lab.checks.nb02_overtakes import right_overtakes
from lora_lab.checks.nb02_plan import right_hours, right_rank
from lora_lab.checks.nb02_report import right_report
from lora_lab.checks.nb02_saved import TRAINS, held, right_saved, right_segment

ATTENTION_NAMES, MLP_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")

pytestmark = pytest.mark.usefixtures("away")


# What the checks take for right


@pytest.mark.parametrize("name", ["LLaMA-7B", "Llama-3-8B", "Llama-3.2-3B", "Gemma-2B", "Phi-3-mini", "Qwen3-8B"])
def test_counts_and_attention_are_the_models_own(name):
    sites = adapter_sites(name, 5)
    shapes = [(site.out, site.in_) for site in sites.values()]
    assert right_parameters(shapes, 5) == count_parameters(name, 5).trainable
    sizes = MODELS[name].settings
    heads = sizes["num_attention_heads"]
    kv = sizes.get("num_key_value_heads", heads)
    width = sizes.get("head_dim", sizes["hidden_size"] // heads)
    fused = name == "Phi-3-mini"
    names = ("qkv_proj", "o_proj") if fused else ATTENTION_NAMES
    found = {row.name: (row.out, row.in_) for row in target_table(name) if row.role == "attention"}
    assert dict(zip(names, right_attention(sizes["hidden_size"], heads, kv, width, fused), strict=True)) == found


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2)])
def test_the_mlp_overtakes_attention_where_the_counts_say(heads, kv):
    from transformers import LlamaConfig

    def counts(width):
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=48,
            intermediate_size=width,
            num_hidden_layers=1,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            head_dim=10,
        )
        return (count_parameters(config, 2, names).trainable for names in (MLP_NAMES, ATTENTION_NAMES))

    width = right_overtakes(48, 10 * heads, 10 * kv, 3)
    mlp, attention = counts(width)
    assert mlp > attention
    mlp, attention = counts(width - 1)
    assert mlp <= attention


@pytest.mark.parametrize(("dtype", "master"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adamw"])
def test_bytes_for_a_parameter_are_those_of_a_whole_model(dtype, master, optimizer):
    run = budget("Qwen3-0.6B", "full", dtype=dtype, optimizer=optimizer, master=master)
    kinds = ("weights", "gradients", "optimizer", "master copies")
    item = torch.float32.itemsize if dtype == "float32" else 2
    total = sum(run.memory.kinds[kind] for kind in kinds)
    assert total == right_bytes(item, optimizer, master) * run.counts.total


@pytest.mark.parametrize("trains", TRAINS)
@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float32])
def test_a_layer_keeps_what_autograd_saves(trains, base_dtype):
    tokens, in_, out, rank = 7, 12, 9, 3
    layer = nn.Linear(in_, out, bias=False).to(base_dtype)
    if trains == "adapter":
        layer = LoRALinear(layer, rank, alpha=6)
    layer.requires_grad_(False) if trains == "nothing" else None
    x = torch.randn(tokens, in_, dtype=base_dtype, requires_grad=True)
    want = accounting.saved_bytes(layer, lambda: layer(x))
    assert right_saved(tokens, in_, out, rank, trains, base_dtype.itemsize, 4) == want


@pytest.mark.parametrize("layers", [1, 7, 16])
def test_the_best_segment_is_the_best_of_all(layers):
    for layer_bytes, input_bytes in ((5, 3), (2, 31), (4, 4)):
        segment, nbytes = right_segment(layers, layer_bytes, input_bytes)
        every = [held(layers, layer_bytes, input_bytes, k) for k in range(1, layers + 1)]
        assert nbytes == min(every) == every[segment - 1]
        assert min(every) < min(every[: segment - 1], default=nbytes + 1)


@pytest.mark.parametrize("limit", [1_000_000, 20_000_000, 123_456_789])
def test_the_largest_rank_is_the_largest_whose_file_fits(limit):
    def size(rank):
        return adapter_file_bytes(adapter_sites("Qwen3-0.6B", rank))

    shapes = [(site.out, site.in_) for site in adapter_sites("Qwen3-0.6B", 1).values()]
    header = size(40) - 4 * right_parameters(shapes, 40)  # a few digits longer or shorter at other ranks
    rank = right_rank(limit, shapes, 4, header)
    assert size(rank + 1) > limit
    assert rank == 0 or size(rank) <= limit + 1024


def test_hours_are_those_of_the_flops_of_a_large_model_with_short_sequences():
    """What the formula leaves out: attention, the adapter's own products, the embedding, which computes nothing.

    Checkpointing repeats a little less than the whole forward pass: torch stops once all that is needed is back.
    """
    for method in ("full", "lora"):
        for checkpointing in (False, True):
            run = budget("Llama-2-70B", method, batch=1, length=128, checkpointing=checkpointing)
            formula = right_hours(run.counts.total, 1e7, method, checkpointing, 1, 312.0, 0.4)
            assert formula == pytest.approx(
                run.seconds("A100 80GB", 1e7, 0.4) / 3600, rel=0.08 if checkpointing else 0.02
            )


def test_the_report_is_the_librarys():
    name, rank = "Llama-3-8B", 16
    run = budget(name, "lora", rank, library="peft", length=128)
    shapes = [(site.out, site.in_) for site in adapter_sites(name, rank).values()]
    total = run.counts.total - run.counts.trainable
    report = right_report(total, shapes, rank, 2, 1e7, 312.0, 0.4)
    kinds = ("weights", "adapter", "gradients", "optimizer")
    assert report["trainable"] == run.counts.trainable
    assert report["percent"] == pytest.approx(run.counts.percent)
    assert report["adapter_mb"] * 1e6 == pytest.approx(run.adapter_file_bytes, rel=1e-3)
    assert report["standing_gb"] * 1e9 == pytest.approx(sum(run.memory.kinds[kind] for kind in kinds))
    assert report["hours"] == pytest.approx(run.seconds("A100 80GB", 1e7, 0.4) / 3600, rel=0.06)  # 6.5 % is embedding
