"""Published models as plain numbers, and their skeleton: the real module tree on the meta device, without weights.

The values are those of each model's own config.json on the Hugging Face Hub, as far as they decide a shape or an
operation. With them `transformers` builds the same modules as for the downloaded model, in a few hundredths of a
second and no memory, also at 70 billion parameters. Nothing is downloaded.
"""

import copy
import functools
from typing import Any, NamedTuple

import torch
from torch import nn


class Architecture(NamedTuple):
    """`model_type` and `settings` make the config; `source` is the model's id on the Hub."""

    model_type: str
    source: str
    settings: dict[str, Any]


def _sizes(
    vocab: int, hidden: int, mlp: int, layers: int, heads: int, kv: int = 0, width: int = 0, **more
) -> dict[str, Any]:
    sizes = {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": width}
    return {name: size for name, size in sizes.items() if size} | more


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {"vocab_size": 50257, "n_positions": 1024, "n_embd": hidden, "n_layer": layers, "n_head": heads}


def _bloom(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {"vocab_size": 250880, "hidden_size": hidden, "n_layer": layers, "n_head": heads}


_TIED, _QUARTER = {"tie_word_embeddings": True}, {"rotary_pct": 0.25}
_FALCON = {"multi_query": True, "parallel_attn": True, "bias": False, "alibi": False, "new_decoder_architecture": False}
_PHI = {"partial_rotary_factor": 0.4, "resid_pdrop": 0.1, "hidden_act": "gelu_new"}
_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}

MODELS: dict[str, Architecture] = {
    name: Architecture(model_type, source, settings)
    for name, model_type, source, settings in [
        ("LLaMA-7B", "llama", "huggyllama/llama-7b", _sizes(32000, 4096, 11008, 32, 32)),
        ("Llama-2-7B", "llama", "meta-llama/Llama-2-7b-hf", _sizes(32000, 4096, 11008, 32, 32)),
        ("Llama-2-13B", "llama", "meta-llama/Llama-2-13b-hf", _sizes(32000, 5120, 13824, 40, 40)),
        ("Llama-2-70B", "llama", "meta-llama/Llama-2-70b-hf", _sizes(32000, 8192, 28672, 80, 64, 8)),
        ("Llama-3-8B", "llama", "meta-llama/Meta-Llama-3-8B", _sizes(128256, 4096, 14336, 32, 32, 8)),
        ("Llama-3-70B", "llama", "meta-llama/Meta-Llama-3-70B", _sizes(128256, 8192, 28672, 80, 64, 8)),
        ("Llama-3.2-1B", "llama", "meta-llama/Llama-3.2-1B", _sizes(128256, 2048, 8192, 16, 32, 8, 64, **_TIED)),
        ("Llama-3.2-3B", "llama", "meta-llama/Llama-3.2-3B", _sizes(128256, 3072, 8192, 28, 24, 8, 128, **_TIED)),
        ("TinyLlama-1.1B", "llama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", _sizes(32000, 2048, 5632, 22, 32, 4)),
        ("Mistral-7B", "mistral", "mistralai/Mistral-7B-v0.1", _sizes(32000, 4096, 14336, 32, 32, 8)),
        ("Mixtral-8x7B", "mixtral", "mistralai/Mixtral-8x7B-v0.1", _sizes(32000, 4096, 14336, 32, 32, 8, **_EXPERTS)),
        ("Phi-2", "phi", "microsoft/phi-2", _sizes(51200, 2560, 10240, 32, 32, **_PHI)),
        ("Phi-3-mini", "phi3", "microsoft/Phi-3-mini-4k-instruct", _sizes(32064, 3072, 8192, 32, 32, 32)),
        ("Falcon-7B", "falcon", "tiiuae/falcon-7b", {**_FALCON, **_sizes(65024, 4544, 4 * 4544, 32, 71)}),
        ("BLOOM-560M", "bloom", "bigscience/bloom-560m", _bloom(1024, 24, 16)),
        ("BLOOM-7B1", "bloom", "bigscience/bloom-7b1", _bloom(4096, 30, 32)),
        ("GPT-NeoX-20B", "gpt_neox", "EleutherAI/gpt-neox-20b", _sizes(50432, 6144, 24576, 44, 64, **_QUARTER)),
        ("Pythia-160M", "gpt_neox", "EleutherAI/pythia-160m", _sizes(50304, 768, 3072, 12, 12, **_QUARTER)),
        ("Pythia-1.4B", "gpt_neox", "EleutherAI/pythia-1.4b", _sizes(50304, 2048, 8192, 24, 16, **_QUARTER)),
        ("Pythia-6.9B", "gpt_neox", "EleutherAI/pythia-6.9b", _sizes(50432, 4096, 16384, 32, 32, **_QUARTER)),
        ("GPT-2", "gpt2", "openai-community/gpt2", _gpt2(768, 12, 12)),
        ("GPT-2-XL", "gpt2", "openai-community/gpt2-xl", _gpt2(1600, 48, 25)),
        ("Qwen3-0.6B", "qwen3", "Qwen/Qwen3-0.6B", _sizes(151936, 1024, 3072, 28, 16, 8, 128, **_TIED)),
        ("Qwen3-8B", "qwen3", "Qwen/Qwen3-8B", _sizes(151936, 4096, 12288, 36, 32, 8, 128)),
        ("Gemma-2B", "gemma", "google/gemma-2b", _sizes(256000, 2048, 16384, 18, 8, 1, 256)),
        ("Gemma-7B", "gemma", "google/gemma-7b", _sizes(256000, 3072, 24576, 28, 16, 16, 256)),
        ("Gemma-2-2B", "gemma2", "google/gemma-2-2b", _sizes(256000, 2304, 9216, 26, 8, 4, 256)),
        ("Gemma-3-1B", "gemma3_text", "google/gemma-3-1b-pt", _sizes(262144, 1152, 6912, 26, 4, 1, 256)),
    ]
}


@functools.lru_cache(maxsize=32)
def _named(name: str) -> Any:
    from transformers import AutoConfig

    model_type, _, settings = MODELS[name]
    return AutoConfig.for_model(model_type, **settings)


def config_of(model: Any) -> Any:
    """The transformers config of a name in `MODELS`, of a config, or of a model (anything with `.config`).

    Raises ValueError for a name that is not in `MODELS`, TypeError for anything else.
    """
    if isinstance(model, str):
        names = {name.lower(): name for name in MODELS}
        if model.lower() not in names:
            raise ValueError(f"unknown model {model!r}: give a transformers config, or one of {', '.join(MODELS)}")
        return _named(names[model.lower()])
    config = getattr(model, "config", model)
    if not hasattr(config, "model_type") or not hasattr(config, "to_json_string"):
        raise TypeError(f"model must be a name, a transformers config or a model, got {type(model).__name__}")
    return config.get_text_config()


_SKELETONS: dict[str, nn.Module] = {}


def skeleton(model: Any) -> nn.Module:
    """The causal language model on the meta device: all modules and shapes, no weights. Kept for the next call.

    `model` as in `config_of`; of a model only the config is read, not what was done to it (injected, quantized).
    """
    config = config_of(model)
    key = config.to_json_string(use_diff=False)
    if key not in _SKELETONS:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
        while len(_SKELETONS) >= 32:
            _SKELETONS.pop(next(iter(_SKELETONS)))
        _SKELETONS[key] = built
    return _SKELETONS[key]


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder layers of a skeleton by path: the first list of modules that is as long as the config says."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return {f"{name}.{i}": layer for i, layer in enumerate(module)}
    raise ValueError(f"{type(model).__name__} has no list of {model.config.num_hidden_layers} decoder layers")
