"""W' = W + s·BA: fold the update into the weight, and take it out again.

The sum is formed in fp32 (fp64 for an fp64 base) and rounded once to the dtype of W. Rounding is why unmerging is
close, not exact: (W + ΔW) - ΔW differs from W by up to one unit in the last place of the larger of W and W + ΔW.
`keep_base=True` keeps W itself.
Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1, "No Additional Inference Latency".
"""

import copy

import torch
from torch import Tensor, nn

from lora_lab.inject import lora_layers, unwrap
from lora_lab.layer import LoRALinear, is_conv1d, oriented_weight


@torch.no_grad()
def merged_weight(layer: LoRALinear) -> Tensor:
    """W + s·BA as a new tensor in the layout, dtype and device of `layer.base.weight`. Nothing is changed.

    Raises ValueError if the layer is merged already: its weight holds the update.
    """
    if layer.merged:
        raise ValueError("the layer is merged: its base weight already holds s·BA")
    return _shifted(layer, +1)


@torch.no_grad()
def merge_(model: nn.Module, keep_base: bool = False) -> nn.Module:
    """Fold every adapter of `model` into its base weight, in place. Merging the merged changes nothing.

    The adapters stay beside their merged weights, unused, until `unmerge_`. With `keep_base` a copy of each base
    weight is held as well, and `unmerge_` gives it back bit for bit.

    Raises ValueError with the model untouched: no LoRA layer, a NaN or infinity in A, B or W, a sum that the dtype
    of W cannot hold, a base weight that another module shares (merging would change that module too), or one that
    is computed from other tensors (weight or spectral norm: what is written to it would be lost).
    """
    layers = {name: layer for name, layer in _layers(model).items() if not layer.merged}
    _refuse_computed(layers)
    _refuse_shared(model, layers)
    for name, layer in layers.items():
        _refuse_not_finite(name, layer)
    for layer in layers.values():
        layer.kept_weight = layer.base.weight.detach().clone() if keep_base else None
        layer.base.weight.copy_(_shifted(layer, +1))
        layer.merged = True
    return model


@torch.no_grad()
def unmerge_(model: nn.Module) -> nn.Module:
    """Take every merged adapter out of its base weight again, in place. Unmerging the unmerged changes nothing.

    Exact after `merge_(model, keep_base=True)`, otherwise to the rounding of the base's dtype.
    Raises ValueError if the model has no LoRA layer.
    """
    for layer in _layers(model).values():
        if layer.merged:
            layer.base.weight.copy_(_shifted(layer, -1) if layer.kept_weight is None else layer.kept_weight)
            layer.kept_weight = None
            layer.merged = False
    return model


def merged(model: nn.Module) -> nn.Module:
    """A plain copy of `model` with every adapter folded in: no LoRA layer left, every parameter frozen.

    Of a bare `LoRALinear` the copy is a plain linear layer. `model` itself, merged or not, is left as it is. The copy
    has the dtypes and devices of `model`.
    Raises ValueError as `merge_` does.
    """
    _layers(model)
    return unwrap(merge_(copy.deepcopy(model))).requires_grad_(False)


def _layers(model: nn.Module) -> dict[str, LoRALinear]:
    layers = lora_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no LoRA layer: inject or load an adapter first")
    return layers


def _shifted(layer: LoRALinear, sign: int) -> Tensor:
    """W + sign·s·BA, summed wide and rounded once."""
    weight, delta = layer.base.weight, layer.delta_weight()
    # fp16 or bf16 plus fp32 is a sum in fp32.
    return (weight + sign * (delta.T if is_conv1d(layer.base) else delta)).to(weight.dtype)


def _refuse_computed(layers: dict[str, LoRALinear]) -> None:
    for name, layer in layers.items():
        if "weight" not in layer.base._parameters:
            raise ValueError(f"{name}: the weight is computed (weight or spectral norm?). Remove that first")


def _refuse_shared(model: nn.Module, layers: dict[str, LoRALinear]) -> None:
    # By address: two parameters may be different objects over the same memory.
    owners = {layer.base.weight.data_ptr(): name for name, layer in layers.items()}
    for other, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            name = owners.get(parameter.data_ptr())
            if name is not None and layers[name].base is not module:
                raise ValueError(f"{name} shares its weight with {other}: merging would change both. Untie them first")


def _refuse_not_finite(name: str, layer: LoRALinear) -> None:
    # Cauchy-Schwarz: |s·BA|_ij <= s·|B_i|·|A_j|. A bound costs less than the product, and NaN fails every comparison.
    update = layer.scale * layer.B.norm(dim=1).max() * layer.A.norm(dim=0).max()
    weight = oriented_weight(layer.base)
    largest = weight.abs().max().to(update.dtype)
    limit = torch.finfo(weight.dtype).max
    # The bound may be far too high. Where it fails, the sum itself decides.
    if not largest + update < limit and not _shifted(layer, +1).isfinite().all():
        raise ValueError(
            f"{name}: W + s·BA is not finite in {weight.dtype}: max|W| = {largest:.3g}, |s·BA| <= {update:.3g}, "
            f"limit {limit:.3g}"
        )
