"""Counts of parameters against published totals and against what PEFT reports; the table of targets against PEFT's."""

import peft
import pytest
import torch
from budget_for_tests import config as small
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lora_lab import find_targets
from lora_lab.budget import MODELS, adapter_sites, config_of, count_parameters, skeleton
from lora_lab.budget.families import FAMILIES

# Model cards and papers: the Llama, Mistral and Gemma weight files' own totals; Pythia and GPT-NeoX papers' tables.
PUBLISHED = {
    "LLaMA-7B": 6_738_415_616,
    "Llama-2-13B": 13_015_864_320,
    "Llama-2-70B": 68_976_648_192,
    "Llama-3-8B": 8_030_261_248,
    "Llama-3-70B": 70_553_706_496,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "TinyLlama-1.1B": 1_100_048_384,
    "Mistral-7B": 7_241_732_096,
    "Mixtral-8x7B": 46_702_792_704,
    "Phi-2": 2_779_683_840,
    "Phi-3-mini": 3_821_079_552,
    "Falcon-7B": 6_921_720_704,
    "BLOOM-560M": 559_214_592,
    "BLOOM-7B1": 7_069_016_064,
    "GPT-NeoX-20B": 20_554_567_680,
    "Pythia-160M": 162_322_944,
    "Pythia-1.4B": 1_414_647_808,
    "Pythia-6.9B": 6_857_302_016,
    "GPT-2": 124_439_808,
    "GPT-2-XL": 1_557_611_200,
    "Qwen3-8B": 8_190_735_360,
    "Gemma-2B": 2_506_172_416,
    "Gemma-7B": 8_537_680_896,
    "Gemma-2-2B": 2_614_341_888,
    "Gemma-3-1B": 999_885_952,
}
# Every architecture; what is left out differs from one of these in its sizes alone.
AGAINST_PEFT = [name for name in PUBLISHED if name not in ("Llama-2-13B", "Llama-3-70B", "TinyLlama-1.1B")]
AGAINST_PEFT = [name for name in AGAINST_PEFT if not name.startswith("Pythia") and name != "GPT-2-XL"]


def of_peft(model, rank: int, targets, **more) -> tuple[int, int]:
    """(trainable, total) of PEFT on a fresh copy of the same model, on the meta device."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config_of(model))
    settings = {"r": rank, "lora_alpha": rank + 3, "target_modules": targets, "task_type": "CAUSAL_LM"} | more
    return peft.get_peft_model(base, peft.LoraConfig(**settings)).get_nb_trainable_parameters()


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_parameters_are_the_published_ones(name):
    count = count_parameters(name, method="full")
    assert (count.trainable, count.total, count.percent) == (PUBLISHED[name], PUBLISHED[name], 100.0)


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match:RuntimeWarning", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", AGAINST_PEFT)
def test_counts_are_those_of_peft(name):
    count = count_parameters(name, rank=16)
    assert count[:2] == of_peft(name, 16, "all-linear")
    assert count.percent == 100 * count.trainable / count.total


@pytest.mark.parametrize(
    ("targets", "more"),
    [
        (["q_proj", "v_proj"], {}),
        (["o_proj", "up_proj"], {}),
        (r".*layers\.[13]\.self_attn\.(k|o)_proj", {}),
        (["q_proj", "v_proj"], {"use_dora": True}),
        ("all-linear", {"use_dora": True}),
    ],
)
def test_counts_of_other_targets_and_of_dora(targets, more):
    method = "dora" if more else "lora"
    assert count_parameters("Llama-3.2-1B", 5, targets, method)[:2] == of_peft("Llama-3.2-1B", 5, targets, **more)


def test_counts_of_a_head():
    sizes = {"vocab_size": 96, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    config = AutoConfig.for_model("llama", **sizes, num_attention_heads=4)
    assert count_parameters(config, 5, ["q_proj", "lm_head"])[:2] == of_peft(config, 5, ["q_proj", "lm_head"])


@pytest.mark.parametrize(
    ("targets", "parameters"),
    [
        ([], ["mlp.experts.down_proj"]),
        (["q_proj"], ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    ],
)
def test_counts_of_experts_by_name(targets, parameters):
    config = AutoConfig.for_model(
        "mixtral",
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    count = count_parameters(config, 3, targets, target_parameters=parameters)
    assert count[:2] == of_peft(config, 3, targets, target_parameters=parameters)


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("targets", ["all-linear", ["k_proj"]])
def test_counts_of_another_mixture(targets):
    made = small("qwen3_moe")
    assert count_parameters(made, 3, targets)[:2] == of_peft(made, 3, targets)


def test_experts_that_all_linear_does_not_name_are_refused():
    sizes = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    other = AutoConfig.for_model("olmoe", **sizes, intermediate_size=24, num_experts=4)
    with pytest.raises(ValueError, match=r"all-linear.*olmoe"):
        count_parameters(other, 3)
    assert count_parameters(other, 3, ["q_proj"]).trainable == 2 * 3 * 64


def test_the_seed_documents_number_is_of_rank_32():
    assert count_parameters("Llama-3-8B", 16)[:2] == (41_943_040, 8_072_204_288)
    assert count_parameters("Llama-3-8B", 32).trainable == 83_886_080
    assert count_parameters("LLaMA-7B", 8, ["q_proj", "k_proj", "v_proj", "o_proj"]).trainable == 8_388_608


def test_a_quantized_base_counts_numbers_not_bytes():
    assert count_parameters("Llama-3-8B", method="qlora") == count_parameters("Llama-3-8B", method="lora")


@pytest.mark.parametrize("name", ["Llama-2-70B", "Mixtral-8x7B", "GPT-2"])
def test_a_skeleton_has_no_weights_and_is_built_once(name):
    model = skeleton(name)
    assert all(p.is_meta for p in (*model.parameters(), *model.buffers()))
    assert skeleton(name) is model
    assert skeleton(config_of(name)) is model
    assert skeleton(name.lower()) is model


def test_building_a_skeleton_leaves_the_config_alone():
    config = AutoConfig.for_model("gpt2", vocab_size=31, n_embd=24, n_layer=2, n_head=2)
    before = config.to_json_string(use_diff=False)
    assert skeleton(config) is skeleton(config)
    assert config.to_json_string(use_diff=False) == before


def test_a_real_model_is_read_through_its_config():
    config = AutoConfig.for_model("gpt2", vocab_size=64, n_embd=24, n_layer=2, n_head=2)
    model = AutoModelForCausalLM.from_config(config)
    assert count_parameters(model, 4) == count_parameters(config, 4)
    assert count_parameters(model, 4).total == sum(p.numel() for p in model.parameters()) + sum(
        4 * sum(layer.weight.shape) for layer in find_targets(model, "all-linear").values()
    )


def test_every_model_is_of_a_known_family():
    assert {config_of(name).model_type for name in MODELS} <= set(FAMILIES)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: count_parameters("Llama-9"), ValueError, "Llama-9.*LLaMA-7B"),
        (lambda: count_parameters(7), TypeError, "int"),
        (lambda: count_parameters(nn.Linear(2, 3)), TypeError, "Linear"),
        (lambda: count_parameters("GPT-2", 0), ValueError, "rank.*768.*0"),
        (lambda: count_parameters("GPT-2", 769), ValueError, "rank.*768.*769"),
        (lambda: count_parameters("GPT-2", True), ValueError, "rank.*True"),
        (lambda: count_parameters("GPT-2", 4.0), ValueError, "rank.*4.0"),
        (lambda: count_parameters("GPT-2", 4, ["q_proj"]), ValueError, "q_proj.*c_attn"),
        (lambda: count_parameters("GPT-2", 4, ["ln_1"]), ValueError, "LayerNorm"),
        (lambda: count_parameters("GPT-2", 4, []), ValueError, "empty"),
        (lambda: count_parameters("GPT-2", 4, "("), ValueError, "regular expression"),
        (lambda: count_parameters("GPT-2", 4, method="ia3"), ValueError, "ia3"),
        (lambda: count_parameters("GPT-2", 4, [], target_parameters=["x"]), ValueError, "'x' matches nothing"),
        (lambda: count_parameters("Mixtral-8x7B", 4, method="dora"), ValueError, "DoRA"),
        (lambda: adapter_sites("Mixtral-8x7B", 0, [], ["down_proj"]), ValueError, "rank"),
    ],
)
def test_bad_calls_are_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
