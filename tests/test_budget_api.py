"""The one call that notebooks make, its table, the adapter file to the byte, and what is refused."""

import math
import os

import peft
import pytest
import torch
from budget_for_tests import ALPHA, RANK, config, model, predicted
from transformers import AutoModelForCausalLM

from lora_lab import save_adapter
from lora_lab.budget import adapter_file_bytes, adapter_sites, budget, count_parameters
from lora_lab.budget.storage import safetensors_bytes

FILE = "adapter_model.safetensors"


@pytest.mark.parametrize("method", ["lora", "dora", "qlora"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_adapter_file_of_lora_lab(family, method, tmp_path):
    made = model(family, method)
    save_adapter(made, tmp_path)
    assert predicted(family, 1, 8, method=method).adapter_file_bytes == os.path.getsize(tmp_path / FILE)


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match:RuntimeWarning", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("bloom", {}),
        ("llama", {"use_dora": True}),
        ("mixtral", {}),
        ("mixtral", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
    ],
)
def test_adapter_file_of_peft(family, more, half, tmp_path):
    base = AutoModelForCausalLM.from_config(config(family), dtype=torch.bfloat16 if half else torch.float32)
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | more
    adapted = peft.get_peft_model(base, peft.LoraConfig(**settings), autocast_adapter_dtype=not half)
    adapted.save_pretrained(tmp_path)
    sites = adapter_sites(
        config(family), RANK, more.get("target_modules", "all-linear"), more.get("target_parameters", ())
    )
    dtype = torch.bfloat16 if half else torch.float32
    assert adapter_file_bytes(sites, dtype, "use_dora" in more) == os.path.getsize(tmp_path / FILE)


def test_adapter_files_at_real_sizes():
    single, half = (budget("Llama-3-8B", adapter_dtype=dtype) for dtype in ("float32", "bfloat16"))
    numbers = 41_943_040
    assert 0 < single.adapter_file_bytes - 4 * numbers < 100_000  # the header
    assert single.adapter_file_bytes / 1e6 == pytest.approx(167.8, abs=0.1)
    assert half.adapter_file_bytes / 1e6 == pytest.approx(83.9, abs=0.1)
    assert budget("Llama-3-8B", "full").adapter_file_bytes == 0
    assert single.weights_file_bytes == budget("Llama-3-8B", "full").weights_file_bytes == 2 * 8_030_261_248


def test_a_header_is_padded_to_eight():
    for name in ("a", "ab", "abc", "abcdefgh"):
        assert safetensors_bytes({name: (3, 2)}, torch.float32, {}) % 8 == 0


def test_the_budget_of_a_notebook():
    run = budget(
        model="Llama-3-8B",
        method="qlora",
        rank=16,
        targets="all-linear",
        optimizer="adamw",
        dtype="bfloat16",
        batch=4,
        length=2048,
        checkpointing=True,
    )
    assert run.counts == count_parameters("Llama-3-8B", 16)
    assert run.flops_per_step == run.flops.total
    assert run.flops_per_token == run.flops.total / 8192
    text = str(run)
    for said in ("Llama-3-8B", "qlora", "4 × 2048", "41,943,040", "167.8", "weights", "workspace", "H200 141GB"):
        assert said in text
    for kind, nbytes in run.memory.at_peak.items():
        assert (f"{nbytes / 1e9:.2f} GB" in text) == (nbytes > 0), kind


def test_the_methods_are_in_their_order():
    methods = ("full", "lora", "dora", "qlora")
    runs = {method: budget("Llama-3-8B", method, length=512, checkpointing=True) for method in methods}
    peak = {method: run.memory.peak for method, run in runs.items()}
    assert peak["qlora"] < peak["lora"] < peak["dora"] < peak["full"]
    assert runs["lora"].counts.trainable < runs["dora"].counts.trainable < runs["full"].counts.trainable
    assert runs["lora"].flops.total < runs["full"].flops.total
    # 16 bytes for each parameter: the classic mixed precision of Megatron and DeepSpeed
    classic = budget("Llama-2-70B", "full", master=True, length=8).memory.kinds
    states = sum(classic[kind] for kind in ("weights", "gradients", "master copies", "optimizer"))
    assert states == 16 * 68_976_648_192


def test_any_config_and_any_model_will_do():
    made = model("llama", "full")
    assert budget(made, rank=3, length=9).memory == budget(config("llama"), rank=3, length=9).memory
    assert budget(config("llama"), rank=3, targets=iter(["q_proj"])).counts.trainable == 3 * 3 * 2 * 32


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"model": "gpt9"}, ValueError, "gpt9"),
        ({"model": None}, TypeError, "NoneType"),
        ({"model": 3.5}, TypeError, "float"),
        ({"method": "LoRA"}, ValueError, "method.*LoRA"),
        ({"method": None}, ValueError, "method.*None"),
        ({"rank": 0}, ValueError, "rank.*768.*0"),
        ({"rank": -3}, ValueError, "rank.*-3"),
        ({"rank": 10**9}, ValueError, "rank.*768"),
        ({"rank": True}, ValueError, "rank.*True"),
        ({"rank": "8"}, ValueError, "rank.*'8'"),
        ({"rank": math.nan}, ValueError, "rank.*nan"),
        ({"targets": []}, ValueError, "empty"),
        ({"targets": ["nothing"]}, ValueError, "nothing"),
        ({"targets": ["wte"]}, ValueError, "Embedding"),
        ({"target_parameters": ["experts"]}, ValueError, "experts"),
        ({"optimizer": "lion"}, ValueError, "optimizer.*lion"),
        ({"dtype": "int8"}, ValueError, "dtype.*int8"),
        ({"dtype": torch.int32}, ValueError, "dtype.*int32"),
        ({"dtype": None}, ValueError, "dtype.*None"),
        ({"adapter_dtype": "nf4"}, ValueError, "adapter_dtype.*nf4"),
        ({"autocast": "fp8"}, ValueError, "autocast.*fp8"),
        ({"batch": 0}, ValueError, "batch.*0"),
        ({"batch": 2.0}, ValueError, "batch.*2.0"),
        ({"batch": True}, ValueError, "batch.*True"),
        ({"length": -1}, ValueError, "length.*-1"),
        ({"length": 2**40}, ValueError, "length"),
        ({"attention": "paged"}, ValueError, "attention.*paged"),
        ({"device": "tpu"}, ValueError, "device.*tpu"),
        ({"codes": "int4"}, ValueError, "codes.*int4"),
        ({"block_size": 0}, ValueError, "block_size.*0"),
        ({"block_size": 1.5}, ValueError, "block_size.*1.5"),
        ({"double": "yes"}, ValueError, "double.*yes"),
        ({"library": "me"}, ValueError, "library.*me"),
        ({"dropout": 1.0}, ValueError, "dropout.*1.0"),
        ({"dropout": math.nan}, ValueError, "dropout.*nan"),
        ({"fused": True, "method": "dora"}, ValueError, "fused.*dora"),
        ({"fused": True, "dropout": 0.1}, ValueError, "fused.*0.1"),
        ({"fused": True, "library": "peft"}, ValueError, "fused.*peft"),
        ({"master": True}, ValueError, "master"),
        ({"master": True, "method": "full", "dtype": "float32"}, ValueError, "master"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, error, says):
    with pytest.raises(error, match=says):
        budget(**({"model": "GPT-2"} | settings))


def test_refused_file_settings():
    sites = adapter_sites("GPT-2", 4)
    with pytest.raises(ValueError, match=r"library.*pickle"):
        adapter_file_bytes(sites, library="pickle")
    with pytest.raises(ValueError, match=r"dtype.*int8"):
        adapter_file_bytes(sites, torch.int8)
