"""Put LoRA into a model and take it out again: find the target layers, freeze the rest, wrap, count, eject.

`inject` is all or nothing. Everything that can be refused is refused before the first layer is touched.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_lab.base import is_quantized, refuse_many, refuse_unwritable
from lora_lab.init import Init, NamedInit, resolve
from lora_lab.layer import LoRALinear, check_settings
from lora_lab.origin import is_rounded, mark_rounded, mark_shifted_back, remember
from lora_lab.targets import find_targets

_WAS_TRAINABLE = "_trainable_before_inject"


class Count(NamedTuple):
    """Numbers of parameters (elements, each shared tensor once). `percent` is trainable / total · 100."""

    trainable: int
    total: int
    percent: float

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.percent:.4f} %)"


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every adapted layer of `model` by its path (a layer reachable by two paths: by the first)."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def inject(
    model: nn.Module,
    targets: str | Iterable[str],
    rank: int | Mapping[str, int],
    alpha: float | Mapping[str, float],
    dropout: float = 0.0,
    rslora: bool = False,
    init: Init | str | bool | Mapping[str, Init] = True,
    *,
    quantize: str | Mapping[str, Any] | None = None,
    layer: type[LoRALinear] = LoRALinear,
    fused: bool = False,
) -> nn.Module:
    """Freeze `model` and wrap its target layers in `LoRALinear`, in place. Returns the same model.

    A layer that the model reaches by several paths is wrapped once and replaced at all of them. Only A and B train
    afterwards. `targets` as in `find_targets`; the other arguments as in `LoRALinear`, and:

    rank, alpha, init: one for all, or one for each target by its path (which then names them all).
    quantize: "nf4", "int8" or the keyword arguments of `QuantizedLinear.from_linear`: each base is replaced by its
        codes, after the shift of its init (QLoRA, QPiSSA, LoftQ in one step). LoftQ without it means "nf4".
    layer: the class of the wrapper, `LoRALinear` or one that extends it (`DoRALinear`).

    Raises ValueError or TypeError with the model untouched: already injected, a target that matches nothing or no
    linear layer, a setting outside its limits, a base that an init would have to change and that another module shares.
    """
    from lora_lab.variants.experts import expert_layers

    if lora_layers(model):
        raise ValueError("the model is already injected: eject it first, or two adapters would be nested")
    if expert_layers(model):
        raise ValueError("the experts are adapted already: inject comes before inject_experts")
    refuse_many(model)
    found = find_targets(model, targets)
    ranks, alphas, inits = (
        _by_path(name, value, found) for name, value in (("rank", rank), ("alpha", alpha), ("init", init))
    )
    quantize = {"kind": quantize} if isinstance(quantize, str) else quantize
    for name, base in found.items():
        try:
            check_settings(base, ranks[name], alphas[name], dropout)
            inits[name] = resolve(inits[name])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    inits, quantize = _agree(inits, quantize)

    def build() -> dict[str, LoRALinear]:
        wrappers = {}
        for name, base in found.items():
            try:
                wrapper = layer(base, ranks[name], alphas[name], dropout, rslora, inits[name], fused)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from None
            wrappers[name] = quantize_base_(wrapper, quantize) if quantize else wrapper
        return wrappers

    return install(model, found, build)


def quantize_base_(wrapper: LoRALinear, quantize: Mapping[str, Any]) -> LoRALinear:
    """Give `wrapper` the quantized form of its base, after its shift. The base itself is left as it is."""
    from lora_lab.quantized_linear import QuantizedLinear
    from lora_lab.shift import shifted_weight

    base = QuantizedLinear.from_linear(wrapper.base, **quantize)
    remember(wrapper)
    if is_rounded(wrapper.base):
        mark_rounded(base)
    if wrapper.A0 is not None:
        base.requantize_(shifted_weight(wrapper))
        wrapper.shifted = True
    wrapper.base = base.requires_grad_(False).train(wrapper.base.training)
    wrapper.base_changed()
    return wrapper


def install(model: nn.Module, found: Mapping[str, nn.Module], build: Callable[[], dict[str, LoRALinear]]) -> nn.Module:
    """Freeze `model`, put the wrappers that `build()` returns in the place of the layers `found`, wherever those
    stand, and shift the bases of those whose init asks for it.

    Remembers what trained before, for `eject`. If `build` fails or is interrupted, the model is as it was, and the
    global random state too.
    """
    from lora_lab.shift import shift_

    was_trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    random_state = torch.get_rng_state()
    wrappers: dict[str, LoRALinear] = {}
    try:
        wrappers = build()
        pending = {name: w for name, w in wrappers.items() if w.A0 is not None and not w.shifted}
        for name, wrapper in pending.items():
            if is_quantized(wrapper.base):
                raise ValueError(
                    f"{name} is quantized already: shift the original base, with quantize= in the same call"
                )
        refuse_unwritable(model, {name: w.base for name, w in pending.items()})
        model.requires_grad_(False)
        replace_modules(model, {found[name]: wrapper for name, wrapper in wrappers.items()})
        shift_(pending)
    except BaseException:
        mark_shifted_back(wrappers.values(), look=True)
        replace_modules(model, {wrapper: found[name] for name, wrapper in wrappers.items()})
        set_trainable(model, was_trainable)
        torch.set_rng_state(random_state)
        raise
    model.__dict__[_WAS_TRAINABLE] = was_trainable
    return model


def _agree(inits: dict[str, Init], quantize: Mapping[str, Any] | None) -> tuple[dict[str, Init], Any]:
    """LoftQ fits its factors to the codes that the base will hold: both get the same settings."""
    loftq = {n: one for n, one in inits.items() if isinstance(one, NamedInit) and one.recipe.base == "quantized"}
    for name, one in loftq.items():
        own = {key: value for key, value in one.options.items() if key in ("kind", "block_size", "double")}
        quantize = {"kind": "nf4", **own} if quantize is None else quantize
        if any(key not in quantize or quantize[key] != value for key, value in own.items()):
            raise ValueError(f"{name}: {one.name} has {own}, but the bases are to be quantized with {dict(quantize)}")
    return inits | {n: replace(one, options={**(quantize or {}), **one.options}) for n, one in loftq.items()}, quantize


def _by_path(name: str, value: Any, found: Mapping[str, nn.Module]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(found, value)
    if set(value) != set(found):
        odd = sorted(set(value) ^ set(found))
        raise ValueError(f"{name} by path must name every target and nothing else; {odd[0]!r} is in one of them only")
    return dict(value)


def eject(model: nn.Module) -> nn.Module:
    """Take the adapters out, in place: every base layer returns to its place, the very same object, and every
    parameter trains again that trained before `inject`. A and B are dropped: save them first. Returns the model (for
    a bare `LoRALinear` its base). A base that was quantized by `inject` stays quantized; a shifted one gets back W, to
    the rounding of W - s·B0 A0.

    Raises ValueError if nothing is injected, if a layer is merged (its base would not be the base), or if W is gone
    (quantized after a shift).
    """
    from lora_lab.shift import unshift_
    from lora_lab.variants.experts import expert_layers

    layers, experts = lora_layers(model), expert_layers(model)
    if not layers and not experts:
        raise ValueError("nothing to eject: the model has no LoRA layer")
    merged = [name for name, layer in (layers | experts).items() if layer.merged]
    if merged:
        raise ValueError(f"{len(merged)} layers are merged ({merged[0]}, ...): unmerge_ first, or take merged(model)")
    unshift_(layers)
    mark_shifted_back(layers.values())
    return unwrap(model)


def unwrap(model: nn.Module) -> nn.Module:
    """Replace each LoRA layer by its base as it is now, merged or not, in place; restore what trained before."""
    from lora_lab.variants.experts import expert_layers

    layers = [*lora_layers(model).values(), *expert_layers(model).values()]
    replace_modules(model, {layer: layer.base for layer in layers})
    # The record stands where `inject` was called, which may be a part of `model`.
    for module in list(model.modules()):
        if _WAS_TRAINABLE in module.__dict__:
            set_trainable(module, module.__dict__.pop(_WAS_TRAINABLE))
    return model.base if isinstance(model, LoRALinear) else model


def count(model: nn.Module) -> Count:
    """Count trainable and all parameters: elements, not tensors, shared ones once (the same numbers as PEFT's).

    A quantized weight counts as the numbers that it stands for.
    """
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    total += sum(m.in_features * m.out_features for m in model.modules() if is_quantized(m))
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return Count(trainable, total, 100 * trainable / total if total else 0.0)


def set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Let the parameters of these names train, and no others."""
    names = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def replace_modules(model: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put `new[child]` wherever `child` stands below `model`, at every path that leads to it."""
    for parent in list(model.modules()):
        for attribute, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, attribute, new[child])
