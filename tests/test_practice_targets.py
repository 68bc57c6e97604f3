"""Targets by architecture: PEFT adapts what the table says, and the folklore's lists fail as they are said to."""

import copy
import re

import pytest
import torch
from models_for_tests import gpt2, llama, neox
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from lora_lab.practice import targets as T
from lora_lab.practice.targets import FAMILIES, FOLKLORE, STABLELM, folklore, targets_of, verdict


def two_blocks(name: str) -> torch.nn.Module:
    """Its own copy: the library's skeletons are shared, and PEFT wraps what it is given in place."""
    return copy.deepcopy(T._two_blocks(T._config(name)))


def adapted_by_peft(model, **options) -> set[str]:
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=5, task_type="CAUSAL_LM", **options))
    return {name for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("build", [llama, gpt2, neox])
def test_the_names_are_those_behind_all_linear_and_the_default_is_what_peft_takes_without_any(build):
    found = targets_of(build())
    whole = adapted_by_peft(build(), target_modules="all-linear")
    assert adapted_by_peft(build(), target_modules=list(found.all_linear)) == whole
    assert adapted_by_peft(build()) == adapted_by_peft(build(), target_modules=list(found.peft_default))
    assert set(found.all_linear) == {*found.attention, *found.mlp}
    assert found.grouped is (build is llama)


def test_a_verdict_counts_what_peft_adapts_in_weights():
    one = verdict(llama(), ["q_proj", "down_proj", "seq_proj"])
    q, kv, mlp = 32 * 32, 16 * 32, 48 * 32
    assert one.share == pytest.approx((q + mlp) / (2 * q + 2 * kv + 3 * mlp))
    assert (one.found, one.missing, one.refused) == ({"q_proj": 1, "down_proj": 1}, ("seq_proj",), "")
    assert set(one.unadapted) == {"k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    assert "without a word" in one.says
    assert verdict(llama(), targets_of(llama()).all_linear).share == 1
    with pytest.raises(ValueError, match="names is empty"):
        verdict(llama(), [])


def test_the_folklore_fails_for_mixtral_phi_3_and_stablelm_and_nowhere_else():
    found = folklore()
    bad = {label for label, one in found.items() if one.share < 1}
    assert bad == {"Mixtral", "Phi-3", "GPT-NeoX, StableLM"}
    assert all(found[label].refused for label in bad - {"Mixtral"})
    # Mixtral is the worse one: accepted, and all experts left out.
    mixtral = found["Mixtral"]
    assert mixtral.refused == ""
    assert mixtral.missing == ("gate_proj", "up_proj", "down_proj")
    h, kv, f, experts = 4096, 1024, 14336, 8
    attention = 2 * h * h + 2 * h * kv
    assert mixtral.share == pytest.approx(attention / (attention + experts * 3 * h * f + experts * h))


def test_derived_names_repair_what_the_folklore_gets_wrong():
    for model in ("Phi-3-mini", STABLELM):
        assert verdict(model, targets_of(model).all_linear).share == 1
    phi3 = targets_of("Phi-3-mini")
    assert set(phi3.all_linear) == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert phi3.peft_default == ()
    # Experts are parameters, not modules: PEFT takes them as target_parameters.
    mixtral = targets_of("Mixtral-8x7B")
    small = two_blocks("Mixtral-8x7B")
    with torch.device("meta"):
        layers = adapted_by_peft(small, target_modules=list(mixtral.attention), target_parameters=list(mixtral.experts))
    assert sum("experts" in name for name in layers) == 2 * 2


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")
def test_peft_s_all_linear_takes_experts_and_router_besides():
    """The names in `all_linear` leave both out; with them as target_parameters the two adapt the same modules."""
    mixtral = targets_of("Mixtral-8x7B")
    with torch.device("meta"):
        whole = adapted_by_peft(two_blocks("Mixtral-8x7B"), target_modules="all-linear")
        linears = adapted_by_peft(two_blocks("Mixtral-8x7B"), target_modules=list(mixtral.all_linear))
        every = adapted_by_peft(
            two_blocks("Mixtral-8x7B"),
            target_modules=list(mixtral.all_linear),
            target_parameters=[*mixtral.experts, *mixtral.router],
        )
    assert every == whole > linears
    assert {name.split(".mlp.")[-1].split(".")[0] for name in whole - linears} == {"experts", "gate"}


def test_the_tables_tell_of_each_family_what_is_true_of_it():
    rows = dict(zip(FAMILIES, T.architecture_table().splitlines()[1:], strict=True))
    for name, row in rows.items():
        config = T.config_of(name)
        shared = getattr(config, "multi_query", False)  # Falcon-7B: one head of keys and values for all
        keys = 1 if shared else getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        cells = re.split(r"  +", row)
        assert (cells[0], cells[4]) == (name, "yes" if keys < config.num_attention_heads else "no")
    assert len({re.split(r"  +", row)[4] for row in rows.values()}) == 2
    assert rows["Phi-3-mini"].endswith("none: refuses")
    assert "q_proj k_proj v_proj o_proj  -  gate_up_proj down_proj" in re.sub(r"  +", "  ", rows["Mixtral-8x7B"])
    folk = dict(zip(FOLKLORE, T.folklore_table().splitlines()[1:], strict=True))
    assert re.split(r"  +", folk["Phi-3"]) == ["Phi-3", "0 of 6", "0%", "PEFT refuses: no name matches"]
    assert re.split(r"  +", folk["Llama"])[1:] == ["7 of 7", "100%", "every linear layer of the blocks"]
