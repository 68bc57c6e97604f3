"""Small adapted models for the checks of notebook 07, and what merging them should give."""

import copy
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lora_lab.inject import lora_layers
from lora_lab.layer import LoRALinear

from .harness import Cases
from .nb03_toy import Toy

ADAPTED = ("blocks.0.attn.q_proj", "blocks.0.attn.v_proj", "blocks.1.mlp.2", "head")


class Speaking(Toy):
    """A `Toy` that answers as transformers' models do: an object with .logits (batch, length, vocabulary)."""

    def forward(self, tokens: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(tokens))


def adapted(
    cases: Cases, dtype: torch.dtype = torch.float32, size: float = 1.0, dropout: float = 0.0, kind: type = Toy
) -> nn.Module:
    """A frozen model, its weights in `dtype`, with four LoRA layers whose updates are `size` times those of a LoRA
    that has learned something. alpha is not the rank."""
    model = kind(cases).requires_grad_(False).to(dtype)
    rank = cases.integer(2, 6)
    alpha = rank * cases.pick((0.6, 1.5, 2.5, 3.2))  # a scale of 2 could not be told from a double merge
    for path in ADAPTED:
        parent, _, name = path.rpartition(".")
        layer = LoRALinear(model.get_submodule(path), rank, alpha, dropout)
        layer.A.data.copy_(cases.normal(*layer.A.shape) / layer.A.shape[1] ** 0.5)
        layer.B.data.copy_(cases.normal(*layer.B.shape) * size)
        setattr(model.get_submodule(parent), name, layer)
    return model.eval()


@torch.no_grad()
def exact(layer: LoRALinear, times: float = 1.0) -> Tensor:
    """W + times · s·BA in fp64."""
    return layer.base.weight.double() + times * layer.scale * (layer.B.double() @ layer.A.double())


@torch.no_grad()
def plain(model: nn.Module, times: float = 1.0) -> nn.Module:
    """A copy without adapters, each weight W + times · s·BA rounded once."""
    new = copy.deepcopy(model)
    for path, layer in lora_layers(new).items():
        base = layer.base
        base.weight.copy_(exact(layer, times))
        parent, _, name = path.rpartition(".")
        setattr(new.get_submodule(parent), name, base)
    return new.requires_grad_(False)
