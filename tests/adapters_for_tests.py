"""Adapters as plain data, random as if trained, and PEFT models that carry the same ones under a0, a1, ..."""

import copy
from collections.abc import Sequence

import peft
import torch
from models_for_tests import ALPHA, RANK
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_lab import Adapter, Factors
from lora_lab.base import oriented_weight

OUT, IN = 20, 12
WEIGHTS = [0.7, -1.3, 0.4]  # for the three of `unlike`
TARGETS = ("q_proj", "k_proj", "down_proj")  # in Llama: square, wide and wide


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def factors(out, in_, rank=RANK, alpha=ALPHA, seed=0, rslora=False, size=0.3, dtype=torch.float32) -> Factors:
    A, B = size * random(rank, in_, seed=2 * seed), size * random(out, rank, seed=2 * seed + 1)
    return Factors(A.to(dtype), B.to(dtype), alpha, rslora)


def adapter(model: nn.Module, targets=TARGETS, seed=0, **settings) -> Adapter:
    """An adapter for the layers of `model` whose paths end in one of `targets`."""
    paths = [path for path, _ in model.named_modules() if path.endswith(tuple(targets))]
    shapes = {path: oriented_weight(model.get_submodule(path)).shape for path in paths}
    return {path: factors(*shape, seed=100 * seed + n, **settings) for n, (path, shape) in enumerate(shapes.items())}


def unlike(dtype=torch.float32) -> list[Adapter]:
    """Three adapters of one layer that differ in rank, alpha and rsLoRA."""
    settings = (4, 10, False), (2, 3, True), (5, 7, False)
    return [{"x": factors(OUT, IN, r, a, seed, rs, dtype=dtype)} for seed, (r, a, rs) in enumerate(settings)]


def padded(adapter: Adapter, rank: int) -> Adapter:
    """The same updates at a larger rank: the factors padded with zeros, alpha raised with the rank."""

    def pad(f: Factors) -> Factors:
        A = torch.cat([f.A, f.A.new_zeros(rank - f.rank, f.A.shape[1])])
        B = torch.cat([f.B, f.B.new_zeros(len(f.B), rank - f.rank)], dim=1)
        return Factors(A, B, f.scale * rank)

    return {path: pad(f) for path, f in adapter.items()}


def wanted_sum(adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ wᵢ sᵢ Bᵢ Aᵢ (out, in) of every layer, dense, in fp64."""
    total: dict[str, Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, f in adapter.items():
            scale = f.alpha / f.rank**0.5 if f.rslora else f.alpha / f.rank
            total[path] = total.get(path, 0) + weight * scale * (f.B.double() @ f.A.double())
    return total


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def peft_carrying(base: nn.Module, adapters: Sequence[Adapter]) -> peft.PeftModel:
    """PEFT's LoRA on a copy of `base`, with `adapters` as a0, a1, ..."""
    twin = None
    for number, adapter in enumerate(adapters):
        first, name = next(iter(adapter.values())), f"a{number}"
        config = peft.LoraConfig(
            r=first.rank, lora_alpha=first.alpha, use_rslora=first.rslora, target_modules=list(adapter)
        )
        config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in base.modules())
        if twin is None:
            twin = peft.get_peft_model(copy.deepcopy(base), config, adapter_name=name)
        else:
            twin.add_adapter(name, config)
        for path, f in adapter.items():
            layer = twin.base_model.model.get_submodule(path)
            layer.lora_A[name].weight.data.copy_(f.A)
            layer.lora_B[name].weight.data.copy_(f.B)
    return twin


def peft_delta(twin: peft.PeftModel, path: str, name: str) -> Tensor:
    """PEFT's ΔW (out, in) of one layer."""
    layer = twin.base_model.model.get_submodule(path)
    delta = layer.get_delta_weight(name).detach()
    return delta.T if layer.fan_in_fan_out else delta


def peft_combined(base, adapters, weights, method, seed=0, **options) -> dict[str, Tensor]:
    """What `add_weighted_adapter` makes of them: ΔW (out, in) by path. `seed` holds when its pruning starts to draw."""
    twin = peft_carrying(base, adapters)
    inject = twin.base_model.inject_adapter

    def inject_then_seed(*args, **kwargs) -> None:
        inject(*args, **kwargs)  # makes a random adapter first, and draws for it
        torch.manual_seed(seed)

    twin.base_model.inject_adapter = inject_then_seed
    twin.add_weighted_adapter([f"a{n}" for n in range(len(adapters))], weights, "combined", method, **options)
    paths = dict.fromkeys(path for adapter in adapters for path in adapter)
    return {path: peft_delta(twin, path, "combined") for path in paths}
