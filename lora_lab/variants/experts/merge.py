"""W_e <- W_e + s·B_e A_e for every expert, and back: as `lora_lab.merge`, one expert after the other.

The sum is formed in fp32 (fp64 for fp64) and rounded once. Beside the tensors only a block of one expert is in memory.
"""

import torch
from torch import nn

from lora_lab.variants.experts.inject import expert_layers
from lora_lab.variants.experts.layer import ExpertUpdate, LoRAExperts

KEPT = "kept_"  # buffers of a merged layer that hold the exact tensors


@torch.no_grad()
def merge_experts_(model: nn.Module, keep_base: bool = False) -> nn.Module:
    """Fold the updates of all adapted experts into their tensors, in place. Merging the merged changes nothing.

    With `keep_base` a copy of each tensor is held, and `unmerge_experts_` gives it back bit for bit.
    Raises ValueError with the model untouched: no adapted experts, a NaN or infinity, a sum that the dtype cannot
    hold, or a tensor that another module shares.
    """
    _refuse_none(model)
    for layer in mergeable_experts(model).values():
        for tensor, update in layer.updates.items():
            weight = getattr(layer.base, tensor)
            if keep_base:
                layer.register_buffer(KEPT + tensor, weight.detach().clone(), persistent=False)
            update.fold(weight, weight)
        layer.merged = True
    return model


@torch.no_grad()
def unmerge_experts_(model: nn.Module) -> nn.Module:
    """Take the updates out again, in place: exact after `merge_experts_(model, keep_base=True)`, else to rounding.

    Unmerging the unmerged changes nothing. Raises ValueError if no experts are adapted.
    """
    _refuse_none(model)
    for layer in expert_layers(model).values():
        if layer.merged:
            for tensor, update in layer.updates.items():
                weight, kept = getattr(layer.base, tensor), layer._buffers.pop(KEPT + tensor, None)
                if kept is None:
                    update.fold(weight, weight, sign=-1)
                else:
                    weight.copy_(kept)
            layer.merged = False
    return model


@torch.no_grad()
def mergeable_experts(model: nn.Module) -> dict[str, LoRAExperts]:
    """The adapted experts that are not merged yet, after everything that `merge_experts_` refuses; maybe none."""
    layers = {name: layer for name, layer in expert_layers(model).items() if not layer.merged}
    # By address: two parameters may be different objects over the same memory.
    owners = {getattr(layer.base, t).data_ptr(): (n, layer) for n, layer in layers.items() for t in layer.updates}
    for other, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            name, layer = owners.get(parameter.data_ptr(), (other, None))
            if layer is not None and layer.base is not module:
                raise ValueError(f"{name} shares a tensor with {other}: merging would change both. Untie them first")
    for name, layer in layers.items():
        for tensor, update in layer.updates.items():
            _refuse_not_finite(f"{name}.{tensor}", update, getattr(layer.base, tensor))
    return layers


def _refuse_none(model: nn.Module) -> None:
    if not expert_layers(model):
        raise ValueError(f"{type(model).__name__} has no adapted experts: inject_experts first")


def _refuse_not_finite(name: str, update: ExpertUpdate, weight: nn.Parameter) -> None:
    limit, bound = torch.finfo(weight.dtype).max, update.fold_bound(weight)
    if not bound < limit:  # NaN fails every comparison; the bound may be far too high, so the sum itself decides
        total = torch.empty_like(weight)
        update.fold(weight, total)
        if not total.isfinite().all():
            raise ValueError(
                f"{name}: W + s·BA is not finite in {weight.dtype}: |W + s·BA| <= {bound:.3g}, limit {limit:.3g}"
            )
