"""The table of targets against what "all-linear" finds, against PEFT's defaults, and against the number of weights."""

import pytest
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS
from torch import nn

from lora_lab import find_targets
from lora_lab.budget import MODELS, config_of, skeleton, target_table

KINDS = {config_of(name).model_type: name for name in MODELS}


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_target_table_lists_what_all_linear_means(name):
    table, model = target_table(name), skeleton(name)
    named = find_targets(model, table.names("attention", "mlp"))
    assert named.keys() == find_targets(model, "all-linear").keys()
    rows = [row for row in table if row.role in ("attention", "mlp")]
    assert sum(row.total for row in rows) == len(named)
    assert {row.total for row in rows} == {row.per_layer * model.config.num_hidden_layers for row in rows}
    weights = sum(row.total * row.out * row.in_ * row.experts for row in table if row.role != "head")
    others = sum(
        p.numel()
        for module in model.modules()
        for p in module.parameters(recurse=False)
        if p.ndim == 1 or isinstance(module, nn.Embedding) or module is model.get_output_embeddings()
    )
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head = next(row for row in table if row.role == "head")
    assert weights + others - tied * head.out * head.in_ == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_target_table_holds_pefts_default_targets(name):
    kind = config_of(name).model_type
    if kind not in PEFT_DEFAULTS:
        assert kind == "phi3"  # PEFT has no default for it
        return
    assert set(PEFT_DEFAULTS[kind]) <= set(target_table(name).names("attention", "mlp"))


def test_fused_layers_routers_and_experts_are_told_apart():
    def fused(name):
        return [row.name for row in target_table(name) if row.fused]

    assert fused("Phi-3-mini") == ["qkv_proj", "gate_up_proj"]
    assert fused("GPT-2") == ["c_attn"]
    assert fused("Falcon-7B") == fused("BLOOM-560M") == fused("Pythia-160M") == ["query_key_value"]
    assert fused("Llama-3-8B") == fused("Qwen3-8B") == fused("Phi-2") == []
    mixtral = target_table("Mixtral-8x7B")
    assert mixtral.names("router") == ["gate.weight"]
    assert mixtral.names("experts") == ["gate_up_proj", "down_proj"]
    assert {row.experts for row in mixtral if row.role == "experts"} == {8}
    text = str(mixtral)
    assert "experts, fused" in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match="norm"):
        target_table("GPT-2").names("norm")
