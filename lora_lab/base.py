"""The frozen layer under an adapter: read and write its weight as (out, in), whatever holds it.

`nn.Linear` stores (out, in), GPT-2's `Conv1D` stores (in, out), `QuantizedLinear` stores 4- or 8-bit codes. Everything
else in the package asks here, and sees one matrix W (out, in).
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def _is_loaded_instance(module: nn.Module, home: str, name: str) -> bool:
    # Looked up, not imported: the home stays optional, and none of its objects exist before it is loaded.
    loaded = sys.modules.get(home)
    return loaded is not None and isinstance(module, getattr(loaded, name))


def is_conv1d(module: nn.Module) -> bool:
    """True for GPT-2's `Conv1D`: a linear layer that stores its weight as (in, out)."""
    return _is_loaded_instance(module, "transformers.pytorch_utils", "Conv1D")


def is_quantized(module: nn.Module) -> bool:
    """True for `QuantizedLinear`: a linear layer that stores codes and scales."""
    return _is_loaded_instance(module, "lora_lab.quantized_linear", "QuantizedLinear")


def is_linear(module: nn.Module) -> bool:
    """True for the layers that LoRA can wrap: `nn.Linear`, GPT-2's `Conv1D`, `QuantizedLinear`."""
    # nn.MultiheadAttention reads the weight of its out_proj without ever calling the module.
    uncalled = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return (isinstance(module, nn.Linear) and not uncalled) or is_conv1d(module) or is_quantized(module)


def oriented_weight(base: nn.Module, wide: bool = False) -> Tensor:
    """The weight of a linear layer as (out, in): a view, also for `Conv1D`.

    Of a quantized layer it is a new tensor, in the dtype before quantization, or with `wide` in fp32 or better.
    """
    if is_quantized(base):
        return base.dequantized(torch.promote_types(base.dtype, torch.float32) if wide else None)
    return base.weight.T if is_conv1d(base) else base.weight


def weight_shape(base: nn.Module) -> tuple[int, int]:
    """(out, in), without dequantizing anything."""
    if is_quantized(base):
        return base.out_features, base.in_features
    return tuple(oriented_weight(base).shape)


@torch.no_grad()
def write_weight_(base: nn.Module, weight: Tensor) -> None:
    """Put `weight` (out, in) into `base`, in place: rounded once to its dtype, or quantized once to its codes."""
    if is_quantized(base):
        base.requantize_(weight)
    else:
        oriented_weight(base).copy_(weight)


def stored(base: nn.Module) -> dict[str, Tensor]:
    """The tensors that hold the weight, by name: what to copy so that `restore_` gives it back bit for bit."""
    return dict(base.named_buffers()) if is_quantized(base) else {"weight": base.weight.detach()}


@torch.no_grad()
def restore_(base: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `stored` gave, in place."""
    for name, tensor in stored(base).items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def rewrite_(
    base: nn.Module, write: Callable[[], Any], done: Callable[[bool], None], spare: list[Tensor] | None = None
) -> dict[str, Tensor]:
    """Call write(), which changes the weight of `base`, and done(True): both or, with done(False), neither, also when
    the user interrupts. Returns a copy of what was `stored` before.

    spare: tensors whose memory may be used for that copy. New memory is several times slower than memory that was used
    before, since the system zeroes it page by page.
    """
    copies = {}
    for name, tensor in stored(base).items():
        alike = [i for i, other in enumerate(spare or ()) if _alike(other, tensor)]
        copies[name] = (spare.pop(alike[0]) if alike else torch.empty_like(tensor)).copy_(tensor)
    try:
        write()
        done(True)
    except BaseException:
        restore_(base, copies)
        done(False)
        raise
    return copies


def _alike(first: Tensor, second: Tensor) -> bool:
    return all(getattr(first, key) == getattr(second, key) for key in ("shape", "dtype", "device"))


def refuse_many(model: nn.Module) -> None:
    """Raise ValueError if `model` carries adapters that `lora_lab.many` added: others would be nested inside them."""
    for name, module in model.named_modules():
        if _is_loaded_instance(module, "lora_lab.many.layer", "MultiLoRALinear"):
            raise ValueError(f"{name} carries adapters of add_adapter already: remove them first, or add this one too")


def refuse_unwritable(model: nn.Module, bases: Mapping[str, nn.Module], copied: bool = False) -> None:
    """Raise ValueError if writing to the weight of one of `bases` (by path) is lost, or would change another module.

    Lost: a weight that is computed from other tensors (weight or spectral norm). Changed: a weight that some other
    module of `model` shares. `copied`: it is a deep copy of `model` that will be written to.
    """
    for name, base in bases.items():
        if not is_quantized(base) and "weight" not in base._parameters:
            raise ValueError(f"{name}: the weight is computed (weight or spectral norm?). Remove that first")
    # By address: two parameters may be different objects over the same memory. In a deep copy they are not.
    identity = id if copied else Tensor.data_ptr
    owners = {identity(base.weight): name for name, base in bases.items() if not is_quantized(base)}
    for other, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            name = owners.get(identity(parameter))
            if name is not None and bases[name] is not module:
                raise ValueError(f"{name} shares its weight with {other}: writing would change both. Untie them first")
