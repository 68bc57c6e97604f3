"""Small real models of every family that `lora_lab.budget` knows, and the budget of the same run beside them."""

import contextlib
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lora_lab import LoRALinear, inject
from lora_lab.budget import Budget, budget
from lora_lab.variants import DoRALinear

RANK, ALPHA = 5, 8
VOCAB = 48  # few, so that the layers and not the loss decide where the peak is
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 72}
NAMED = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
FAMILY: dict[str, dict[str, Any]] = {
    "llama": SIZES | GROUPED,
    "mistral": SIZES | GROUPED,
    "qwen3": SIZES | GROUPED | {"head_dim": 16},
    "gemma": SIZES | GROUPED | {"head_dim": 16},
    "gemma2": SIZES | GROUPED | {"head_dim": 16},
    "gemma3_text": SIZES | GROUPED | {"head_dim": 16},
    "phi3": SIZES | GROUPED | NAMED | {"resid_pdrop": 0.1},
    "mixtral": SIZES | GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": SIZES
    | GROUPED
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16, "norm_topk_prob": True},
    "phi": SIZES | NAMED | {"intermediate_size": 72, "resid_pdrop": 0.1},
    "gpt_neox": SIZES | NAMED | {"intermediate_size": 72, "rotary_pct": 0.25, "hidden_dropout": 0.1},
    "gpt2": {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.0}
    | NAMED,
    "bloom": {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "falcon": SIZES | NAMED | {"multi_query": True, "parallel_attn": True, "bias": False, "alibi": False},
}
STEPWISE = ("bloom", "gemma2")  # no flash kernel in transformers
MIXTURES = ("mixtral", "qwen3_moe")


BATCH, LENGTH = 3, 20
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
}


def config(family: str) -> Any:
    return AutoConfig.for_model(family, **FAMILY[family])


def build(made_of: Any, dtype: str = "float32", attention: str = "sdpa") -> nn.Module:
    """A model of a config with random weights, in training mode."""
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
    return AutoModelForCausalLM.from_config(made_of, **settings).train()


def model(family: str, method="lora", dtype="float32", attention="sdpa", checkpointing=False, **more) -> nn.Module:
    """A model in training mode, adapted as the budget of the same arguments says."""
    made = build(config(family), dtype, attention)
    targets, dropout = more.get("targets", "all-linear"), more.get("dropout", 0.0)
    if more.get("library") == "peft":
        settings = {"use_dora": method == "dora", "target_modules": targets, "task_type": "CAUSAL_LM"}
        settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **settings)
        made = peft.get_peft_model(made, settings)
    elif method != "full":
        codes = {"kind": more.get("codes", "nf4")} if method.startswith("q") else None
        layer = DoRALinear if method.endswith("dora") else LoRALinear
        inject(made, targets, RANK, ALPHA, dropout, quantize=codes, layer=layer, fused=more.get("fused", False))
    if checkpointing:
        made.activation_checkpointing_enable()
    return made


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def loss(made: nn.Module, tokens: Tensor, autocast: str | None = None) -> Tensor:
    with torch.autocast("cpu", dtype=getattr(torch, autocast)) if autocast else contextlib.nullcontext():
        return made(input_ids=tokens, labels=tokens, use_cache=False).loss


def predicted(family: str, batch: int, length: int, **settings: Any) -> Budget:
    """The budget of the same run on a CPU."""
    settings = {"dtype": "float32"} | settings
    return budget(config(family), rank=RANK, batch=batch, length=length, device="cpu", **settings)
