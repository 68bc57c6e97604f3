"""Experts in PEFT's adapter files. PEFT wraps a module once for each of its adapted tensors, the first one innermost:

    base_model.model.<path>.lora_A.weight               of the last adapted tensor in the module
    base_model.model.<path>.base_layer.lora_A.weight    of the one before it, and so on

The tensors are named in the config, under "target_parameters"; patterns for rank and alpha mean <path>.<tensor>.
`lora_lab.adapter_file` calls this module; its keys come from here, its bytes from there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lora_lab.adapter import Adapter, Factors
from lora_lab.peft_config import by_pattern, config_of
from lora_lab.variants.experts.inject import expert_layers, find_experts
from lora_lab.variants.experts.layer import ExpertUpdate, check_expert_settings


def wrapped_paths(path: str, tensors: Iterable[str]) -> dict[str, str]:
    """The path under which PEFT files each adapted tensor of the module at `path`, given in the module's order."""
    tensors = list(tensors)
    return {tensor: path + ".base_layer" * (len(tensors) - 1 - i) for i, tensor in enumerate(tensors)}


def stored_experts(model: nn.Module) -> Adapter:
    """A and B of the experts of `model`, stacked as they are, under PEFT's paths: for the file, not for arithmetic."""
    adapter = {}
    for name, layer in expert_layers(model).items():
        for tensor, path in wrapped_paths(name, layer.updates.keys()).items():
            update = layer.updates[tensor]
            adapter[path] = Factors(update.A.detach(), update.B.detach(), update.alpha, update.rslora)
    return adapter


def config_with_experts(adapter: Adapter, model: nn.Module) -> dict[str, Any]:
    """`config_of(adapter, 0, model)` and what it must say about the experts of `model`; `adapter` may be empty."""
    experts = {}
    for name, layer in expert_layers(model).items():
        for tensor, update in layer.updates.items():
            A, B = (factors[0].detach() for factors in update.factors())  # of one expert: the rank that a config means
            experts[f"{name}.{tensor}"] = Factors(A, B, update.alpha, update.rslora)
    config = config_of(adapter | experts, model=model)
    return config | {"target_modules": sorted(adapter), "target_parameters": sorted(experts)}


def take_experts(
    model: nn.Module, config: Mapping[str, Any], pairs: dict[str, dict[str, Tensor]]
) -> dict[str, dict[str, ExpertUpdate]]:
    """Take from `pairs` ({PEFT's path: {"A", "B"}}) what belongs to experts: updates by module and tensor of `model`.

    Nothing of the model is changed, and nothing drawn. Raises ValueError if config, file and base do not agree.
    """
    targets = config.get("target_parameters") or []
    layers: dict[str, dict[str, ExpertUpdate]] = {}
    for name, tensors in (find_experts(model, targets) if targets else {}).items():
        turned = bool(getattr(model.get_submodule(name), "is_transposed", False))
        for tensor, path in wrapped_paths(name, tensors).items():
            weight, full = tensors[tensor], f"{name}.{tensor}"
            rank, alpha = (
                by_pattern(config.get(patterns), full, config[key])
                for patterns, key in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
            )
            pair = pairs.pop(path, None)
            if pair is None:
                raise ValueError(f"{full} is in the config's target_parameters, but {path}.lora_A is not in the file")
            check_expert_settings(weight, rank, alpha)
            try:
                update = ExpertUpdate(
                    weight, rank, alpha, bool(config.get("use_rslora")), (pair["A"], pair["B"]), turned
                )
            except ValueError as error:
                raise ValueError(f"{full}: {error}") from None
            layers.setdefault(name, {})[tensor] = update
    return layers
