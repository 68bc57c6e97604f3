"""Adapters on disk: PEFT reads ours, we read PEFT's, with the same logits."""

import copy
import dataclasses

import peft
import pytest
import safetensors.torch
import torch
from models_for_tests import (
    ALPHA,
    LANGUAGE_MODELS,
    RANK,
    copy_factors,
    fill,
    gpt2,
    linear,
    llama,
    logits,
    peft_twin,
    saved,
    unchanged,
)
from torch import nn

from lora_lab import LoRALinear, eject, inject, load_adapter, lora_layers, merge_, peft_config, save_adapter
from lora_lab.adapter_format import CONFIG, WEIGHTS

WAYS = {  # settings of inject, beside rank and alpha
    "plain": {},
    "rslora": {"rslora": True},
    "dropout": {"dropout": 0.3},
}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_peft_loads_ours_and_we_load_ours(name, dtype, settings, tmp_path):
    base = LANGUAGE_MODELS[name](dtype)
    ours = saved(tmp_path, lambda: copy.deepcopy(base), "all-linear", **settings)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    again = load_adapter(copy.deepcopy(base), tmp_path)
    assert (logits(ours) - logits(base)).abs().max() > 0.01
    assert_close(logits(ours), logits(theirs))
    assert torch.equal(logits(ours), logits(again))
    for path, layer in lora_layers(again).items():
        original = lora_layers(ours)[path]
        assert torch.equal(layer.A, original.A)
        assert torch.equal(layer.B, original.B)
        assert repr(layer) == repr(original)
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in ours.named_parameters() if p.requires_grad
    ]


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_we_load_what_peft_saves(name, dtype, settings, tmp_path):
    base = LANGUAGE_MODELS[name](dtype)
    theirs = peft_twin(base, "all-linear", **settings)
    copy_factors(fill(inject(copy.deepcopy(base), "all-linear", RANK, ALPHA)), theirs)
    theirs.save_pretrained(tmp_path)
    random_state = torch.get_rng_state()
    ours = load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert_close(logits(ours), logits(theirs.eval()))
    for layer in lora_layers(ours).values():
        assert (layer.rank, layer.alpha, layer.rslora) == (RANK, ALPHA, settings.get("rslora", False))
        assert getattr(layer.dropout, "p", 0.0) == settings.get("dropout", 0.0)


PATTERNS = {  # keys that match nothing come first: "self_attn" is inside a path, "_proj" ends one without a dot before
    "rank_pattern": {"self_attn": 3, "proj": 3, "down_proj": 7, "mlp.down_proj": 3, r"layers\.1\.self_attn\.q_proj": 2},
    "alpha_pattern": {"_proj": 99, "model.layers.0.self_attn.q_proj": 33, "^model.layers.1.mlp.down_proj": 5},
}


@pytest.mark.filterwarnings("ignore:The following .* keys did not match:RuntimeWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_by_pattern(rslora, tmp_path):
    """PEFT's file with patterns into ours, and ours back into PEFT's."""
    theirs = peft_twin(llama(), ["q_proj", "down_proj", "o_proj"], rslora=rslora, **PATTERNS)
    for module in theirs.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            nn.init.normal_(module.lora_B["default"].weight)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapter(llama(), tmp_path / "theirs")
    assert {layer.rank for layer in lora_layers(ours).values()} == {RANK, 7, 2}
    assert {layer.alpha for layer in lora_layers(ours).values()} == {ALPHA, 33, 5}
    assert_close(logits(ours), logits(theirs.eval()))
    save_adapter(ours, tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(llama(), tmp_path / "ours")
    assert_close(logits(back), logits(ours))
    assert torch.equal(logits(load_adapter(llama(), tmp_path / "ours")), logits(ours))


def test_a_pattern_names_one_path_only(tmp_path):
    """ "proj" is also how "block.proj" ends, and "block.proj" comes first: "proj" is the one that needs a pattern."""

    def build() -> nn.Module:
        return nn.ModuleDict({"block": nn.ModuleDict({"proj": linear(9, 6)}), "proj": linear(6, 9)})

    model = build()
    model["block"]["proj"] = LoRALinear(model["block"]["proj"], RANK, ALPHA)
    model["proj"] = LoRALinear(model["proj"], 2, 3)
    save_adapter(fill(model), tmp_path)
    loaded = load_adapter(build(), tmp_path)
    expected = {"block.proj": (RANK, ALPHA), "proj": (2, 3)}
    assert {name: (layer.rank, layer.alpha) for name, layer in lora_layers(loaded).items()} == expected


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True:UserWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_conv1d_beside_linear(tmp_path):
    ours = saved(tmp_path, gpt2, ["c_attn", "lm_head"])
    assert_close(logits(peft.PeftModel.from_pretrained(gpt2(), tmp_path)), logits(ours))
    assert torch.equal(logits(load_adapter(gpt2(), tmp_path)), logits(ours))


def test_the_files_hold_what_peft_needs(tmp_path):
    model = saved(tmp_path / "an adapter, with spaces é")
    folder = tmp_path / "an adapter, with spaces é"
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    config = peft.LoraConfig.from_pretrained(folder)
    assert (config.r, config.lora_alpha, config.task_type, config.bias) == (RANK, ALPHA, "CAUSAL_LM", "none")
    state = safetensors.torch.load_file(folder / WEIGHTS)
    assert set(state) == {f"base_model.model.{n}.lora_{f}.weight" for n in lora_layers(model) for f in "AB"}
    assert torch.equal(logits(load_adapter(llama(), str(folder))), logits(model))


def test_what_is_loaded_can_be_merged_ejected_and_loaded_again(tmp_path):
    saved(tmp_path)
    model = llama()
    with unchanged(model):
        eject(load_adapter(model, tmp_path))
    merge_(load_adapter(model, tmp_path))
    save_adapter(model, tmp_path / "merged")
    again, state = (safetensors.torch.load_file(f / WEIGHTS) for f in (tmp_path / "merged", tmp_path))
    assert again.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.items())


def test_every_field_of_pefts_config_is_known():
    """A field that this list does not know may mean an adapter that is more than plain LoRA: decide, then add it."""
    read = {
        "peft_type",
        "r",
        "use_dora",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "target_parameters",
    }
    describing = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    choosing = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"}
    of_an_init = {"init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"}
    of_running = {"megatron_config", "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying"}
    known = read | describing | choosing | of_an_init | of_running | set(peft_config.UNSUPPORTED)
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} <= known
