"""Tiny mixtures of experts, ours and PEFT's side by side."""

import copy

import peft
import torch
from models_for_tests import ALPHA, RANK, VOCAB, seeded
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from lora_lab.variants.experts import ExpertUpdate, expert_layers, inject_experts

UP, DOWN = "experts.gate_up_proj", "experts.down_proj"
PATHS = [f"model.layers.{layer}.mlp.{tensor}" for layer in (0, 1) for tensor in (UP, DOWN)]
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def mixtral(dtype=torch.float32, how="eager") -> MixtralForCausalLM:
    return _with(how, seeded(lambda: MixtralForCausalLM(MixtralConfig(**SIZES)), dtype))


def gpt_oss(dtype=torch.float32, how="eager") -> GptOssForCausalLM:
    """Its experts are (experts, in, out), have biases, gate and up take turns, and the gate is its own."""
    config = GptOssConfig(**SIZES, head_dim=8, layer_types=["full_attention"] * 2)

    def build() -> GptOssForCausalLM:
        model = GptOssForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        return model

    return _with(how, seeded(build, dtype))


def _with(how: str, model: PreTrainedModel) -> PreTrainedModel:
    model.config._experts_implementation = how
    return model


MIXTURES = {"mixtral": mixtral, "gpt_oss": gpt_oss}


def updates(model: nn.Module) -> dict[str, ExpertUpdate]:
    """By the path of the tensor."""
    layers = expert_layers(model).items()
    return {f"{name}.{tensor}": update for name, layer in layers for tensor, update in layer.updates.items()}


def peft_updates(twin: peft.PeftModel) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """A and B of PEFT by the path of the tensor."""
    return {
        f"{name.replace('.base_layer', '')}.{m.parameter_name}": (
            m.lora_A["default"].weight,
            m.lora_B["default"].weight,
        )
        for name, m in twin.base_model.model.named_modules()
        if isinstance(m, ParamWrapper)
    }


@torch.no_grad()
def fill_experts(model: nn.Module, seed: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for update in updates(model).values():
        for factor in (update.A, update.B):
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator, dtype=torch.float64))
    return model


def pair(base: nn.Module, targets=(UP, DOWN), rslora=False, init=True, **more) -> tuple[nn.Module, peft.PeftModel]:
    """Ours and PEFT's, drawn from the same seed, and the global random state after both the same."""
    config = {"target_modules": [], "target_parameters": list(targets), "use_rslora": rslora, "init_lora_weights": init}
    torch.manual_seed(5)
    twin = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **config))
    after = torch.get_rng_state()
    torch.manual_seed(5)
    ours = inject_experts(copy.deepcopy(base), targets, RANK, ALPHA, rslora, init, **more)
    assert torch.equal(torch.get_rng_state(), after)
    return ours, twin


def filled_pair(base: nn.Module, targets=(UP, DOWN), **more) -> tuple[nn.Module, peft.PeftModel]:
    ours, twin = pair(base, targets, **more)
    fill_experts(ours)
    with torch.no_grad():
        for path, theirs in peft_updates(twin).items():
            theirs[0].copy_(updates(ours)[path].A)
            theirs[1].copy_(updates(ours)[path].B)
    return ours, twin


class Shared(nn.Module):
    """Two modules over one tensor of two experts."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Module(), nn.Module()
        self.a.w = nn.Parameter(torch.randn(2, 5, 4))
        self.b.w = nn.Parameter(self.a.w.data)
