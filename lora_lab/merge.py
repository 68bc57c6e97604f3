"""W' = W + s·BA: fold the update into the weight, and take it out again.

The sum is formed in fp32 (fp64 for an fp64 base) and rounded once to the dtype of W, or quantized once to its codes.
Rounding is why unmerging is close, not exact: (W + ΔW) - ΔW differs from W by up to one unit in the last place of the
larger of W and W + ΔW. `keep_base=True` keeps W itself. `lora_lab.merge_check` proves a merge.
Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1, "No Additional Inference Latency".
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lora_lab.base import is_quantized, oriented_weight, refuse_unwritable, restore_, rewrite_, stored
from lora_lab.inject import lora_layers, unwrap
from lora_lab.layer import LoRALinear
from lora_lab.origin import mark_rounded
from lora_lab.variants.experts import expert_layers, merge_experts_, unmerge_experts_

KEPT = "kept_"  # buffers of a merged layer that hold the exact base, by the names of `stored`


@torch.no_grad()
def merged_weight(layer: LoRALinear) -> Tensor:
    """W + s·BA as a new tensor in the layout, dtype and device of `layer.base.weight`. Nothing is changed.

    Of a quantized base: (out, in), in fp32 or better, not yet quantized again.
    Raises ValueError if the layer is merged already: its weight holds the update.
    """
    if layer.merged:
        raise ValueError("the layer is merged: its base weight already holds s·BA")
    weight = oriented_weight(layer.base, wide=True)
    new = torch.empty_like(weight)  # keeps the strides: the layout of a Conv1D too
    layer.fold(weight, out=new)
    return new if is_quantized(layer.base) or weight is layer.base.weight else new.T


@torch.no_grad()
def merge_(model: nn.Module, keep_base: bool = False) -> nn.Module:
    """Fold every adapter of `model` into its base weight, in place. Merging the merged changes nothing.

    The adapters stay beside their merged weights, unused, until `unmerge_`. With `keep_base` a copy of each base
    weight is held as well, and `unmerge_` gives it back bit for bit.

    Raises ValueError with the model untouched: no LoRA layer, a NaN or infinity in A, B or W, a sum that the dtype
    of W cannot hold, a base weight that another module shares (merging would change that module too), or one that
    is computed from other tensors (weight or spectral norm: what is written to it would be lost).
    """
    layers = _mergeable(model)
    if expert_layers(model):
        merge_experts_(model, keep_base)
    spare: list[Tensor] = []
    for layer in layers.values():
        before = _rewrite(layer, layer.fold, True, spare)
        if keep_base:
            for name, tensor in before.items():
                layer.register_buffer(KEPT + name, tensor, persistent=False)
        else:
            spare += before.values()
    return model


@torch.no_grad()
def unmerge_(model: nn.Module) -> nn.Module:
    """Take every merged adapter out of its base weight again, in place. Unmerging the unmerged changes nothing.

    Exact after `merge_(model, keep_base=True)`, otherwise to the rounding of the base's dtype (of a quantized base:
    to the distance between its codes).
    Raises ValueError, with the model untouched, if it has no LoRA layer, or if W cannot be told from W' (DoRA with a
    magnitude of zero).
    """
    layers = [layer for layer in _layers(model).values() if layer.merged]
    for layer in layers:
        if not _kept(layer):
            layer.refuse_unfold()
    spare: list[Tensor] = []
    for layer in layers:
        kept = _kept(layer)
        if kept:
            restore_(layer.base, kept)
            layer.merged = False
            for name in kept:
                setattr(layer, KEPT + name, None)
        else:
            mark_rounded(layer.base)
            spare += _rewrite(layer, layer.unfold, False, spare).values()
    experts = expert_layers(model)
    for layer in experts.values():
        if layer.merged and any(getattr(layer, KEPT + tensor, None) is None for tensor in layer.updates):
            mark_rounded(layer.base)
    return unmerge_experts_(model) if experts else model


@torch.no_grad()
def merged(model: nn.Module) -> nn.Module:
    """A plain copy of `model` with every adapter folded in: no LoRA layer left, every parameter frozen.

    Of a bare `LoRALinear` the copy is a plain linear layer. `model` itself, merged or not, is left as it is. The copy
    has the dtypes and devices of `model`. Each new weight is formed once, where it stays; A and B are not copied.
    Raises ValueError as `merge_` does.
    """
    _mergeable(model, copied=True)
    # deepcopy takes what stands in `memo` for the copy of the object with that id.
    memo: dict[int, object] = {}
    for layer in lora_layers(model).values():
        if not layer.merged and not is_quantized(layer.base):
            memo[id(layer.base.weight)] = nn.Parameter(merged_weight(layer), requires_grad=False)
        base = memo[id(layer)] = copy.deepcopy(layer.base, memo)
        if not layer.merged and is_quantized(layer.base):
            base.requantize_(merged_weight(layer))
    new = copy.deepcopy(model, memo)
    return unwrap(merge_experts_(new) if expert_layers(new) else new).requires_grad_(False)


def _layers(model: nn.Module) -> dict[str, LoRALinear]:
    layers = lora_layers(model)
    if not layers and not expert_layers(model):
        raise ValueError(f"{type(model).__name__} has no LoRA layer: inject or load an adapter first")
    return layers


def _mergeable(model: nn.Module, copied: bool = False) -> dict[str, LoRALinear]:
    """The layers that are not merged yet, after everything that `merge_` refuses."""
    layers = {name: layer for name, layer in _layers(model).items() if not layer.merged}
    refuse_unwritable(model, {name: layer.base for name, layer in layers.items()}, copied)
    for name, layer in layers.items():
        _refuse_not_finite(name, layer)
    return layers


def _kept(layer: LoRALinear) -> dict[str, Tensor]:
    """The exact base, if it was kept."""
    kept = {name: getattr(layer, KEPT + name, None) for name in stored(layer.base)}
    return {} if None in kept.values() else kept


def _rewrite(layer: LoRALinear, formed: Callable, merged: bool, spare: list[Tensor]) -> dict[str, Tensor]:
    """Let the base hold `formed(W, out=...)`, in place, and the layer say so. Returns a copy of what it held before."""

    def write() -> None:
        weight = oriented_weight(layer.base, wide=True)
        formed(weight, out=weight)
        if is_quantized(layer.base):
            layer.base.requantize_(weight)

    def done(so: bool) -> None:
        layer.merged = merged if so else not merged

    return rewrite_(layer.base, write, done, spare)


def _refuse_not_finite(name: str, layer: LoRALinear) -> None:
    # A bound costs less than the product, and NaN fails every comparison.
    weight = oriented_weight(layer.base)
    low, high = torch.aminmax(weight)
    largest = torch.maximum(-low, high).to(layer.A.dtype)
    dtype = layer.base.dtype if is_quantized(layer.base) else weight.dtype
    bound, limit = layer.fold_bound(largest), torch.finfo(dtype).max
    # The bound may be far too high. Where it fails, the sum itself decides.
    if not bound < limit and not merged_weight(layer).abs().max() <= limit:
        raise ValueError(
            f"{name}: W + s·BA is not finite in {dtype}: max|W| = {largest:.3g}, |W + s·BA| <= {bound:.3g}, "
            f"limit {limit:.3g}"
        )
