"""W' = W + Σ wᵢ ΔWᵢ: the mix in use as one adapter, or inside the base weights.

No new arithmetic: `combine`'s "cat" is the exact sum, the base is written once and rounded once.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from lora_lab.adapter import Adapter
from lora_lab.base import oriented_weight, refuse_unwritable, restore_, stored, write_weight_
from lora_lab.combine import combine
from lora_lab.many.install import adapter_of_many, refuse_folded, selection_of, unwrap
from lora_lab.many.layer import multi_layers


def mixture(model: nn.Module) -> Adapter:
    """The mix in use as one adapter, exactly: its ranks add up. To save, or to inject on its own.

    Raises ValueError if no adapter is in use, or the rows of `with rows(...)` use several mixes.
    """
    selection = selection_of(model)
    if selection.rows is not None:
        raise ValueError("inside `with rows(...)` there are several mixes: leave it first")
    if not selection.mix:
        raise ValueError("no adapter is in use, so there is no mix: use(model, ...) first")
    return combine([adapter_of_many(model, name) for name in selection.mix], list(selection.mix.values()), "cat")


@contextmanager
def folded(model: nn.Module) -> Iterator[nn.Module]:
    """In the block the mix in use is in the base weights: no cost beside the base. Afterwards they are W to the bit.

    Copies of the weights of all layers of the mix are held meanwhile; adapters cannot be chosen, added or removed.
    Raises ValueError with the model untouched: nothing in use, an adapter in training, a sum that the base's dtype
    cannot hold, a base weight that is shared or computed.
    """
    selection = selection_of(model)
    refuse_folded(selection)
    bases, adapter = _foldable(model)
    if selection.trained is not None:
        raise ValueError(f"adapter {selection.trained!r} is in training: use(model, ...) without train first")
    kept = {path: {name: tensor.clone() for name, tensor in stored(base).items()} for path, base in bases.items()}
    try:
        _fold_(bases, adapter)
        selection.folded = True
        yield model
    finally:
        selection.folded = False
        for path, base in bases.items():
            restore_(base, kept[path])


def merged_mix(model: nn.Module) -> nn.Module:
    """A plain copy of `model` with the mix in use folded in: no adapter left, every parameter frozen.

    `model` is left as it is. Raises ValueError as `folded` does.
    """
    bases, adapter = _foldable(model)
    # deepcopy takes what stands in `memo` for the copy of the object with that id: a bare base for each layer.
    memo: dict[int, object] = {}
    for layer in multi_layers(model).values():
        memo[id(layer)] = copy.deepcopy(layer.base, memo)
    plain = copy.deepcopy(model, memo)
    _fold_({path: memo[id(base)] for path, base in bases.items()}, adapter)
    unwrap(plain, [])
    return plain.requires_grad_(False)


def _foldable(model: nn.Module) -> tuple[dict[str, nn.Module], Adapter]:
    """The bases that the mix changes, and the mix."""
    refuse_folded(selection_of(model))
    adapter, layers = mixture(model), multi_layers(model)
    bases = {path: layers[path].base for path in adapter}
    refuse_unwritable(model, bases)
    return bases, adapter


@torch.no_grad()
def _fold_(bases: Mapping[str, nn.Module], adapter: Adapter) -> None:
    for path, base in bases.items():
        weight = oriented_weight(base, wide=True)
        total, limit = weight + adapter[path].delta(), torch.finfo(weight.dtype).max
        if not total.abs().max() <= limit:  # NaN fails every comparison
            raise ValueError(
                f"{path}: W + Σ wᵢ ΔWᵢ is not finite in {weight.dtype}: max = {total.abs().max():.3g} > {limit:.3g}"
            )
        write_weight_(base, total)
