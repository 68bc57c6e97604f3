"""Put LoRA on the experts of a model and take it off again. All or nothing, as `lora_lab.inject`, after which it may
be called: `inject(model, ["q_proj"], ...)`, then `inject_experts(model, ["experts.down_proj"], ...)`.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from lora_lab.base import refuse_many
from lora_lab.inject import _WAS_TRAINABLE, lora_layers, replace_modules, set_trainable, unwrap
from lora_lab.targets import matches
from lora_lab.variants.experts.layer import ExpertUpdate, LoRAExperts, check_expert_settings
from lora_lab.variants.experts.products import refuse_other_experts


def expert_layers(model: nn.Module) -> dict[str, LoRAExperts]:
    """Every adapted module of experts in `model`, by its path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRAExperts)}


def find_experts(model: nn.Module, targets: str | Iterable[str]) -> dict[str, dict[str, nn.Parameter]]:
    """The tensors of experts to adapt: by the path of their module, then by name, in the model's own order.

    `targets`: a list of names, each the whole path of a tensor or its end after a dot ("experts.down_proj"), or a
    regular expression that must match the whole path.
    Raises ValueError if anything named matches nothing, or a tensor that is not (experts, out, in).
    """
    targets = targets if isinstance(targets, str) else list(targets)
    modules = {
        name: module._parameters for name, module in model.named_modules() if not isinstance(module, LoRAExperts)
    }
    paths = {
        f"{name}.{tensor}" if name else tensor: (name, tensor, parameter)
        for name, parameters in modules.items()
        for tensor, parameter in parameters.items()
        if parameter is not None
    }
    for pattern in [targets] if isinstance(targets, str) else [[one] for one in targets] or [[]]:
        if not any(matches(path, pattern) for path in paths):
            stacks = sorted({".".join(path.split(".")[-2:]) for path, (*_, p) in paths.items() if p.ndim == 3})
            raise ValueError(f"target {pattern!r} matches no tensor; tensors of experts here end in {stacks}")
    found: dict[str, dict[str, nn.Parameter]] = {}
    for path, (name, tensor, parameter) in paths.items():
        if matches(path, targets):
            if parameter.ndim != 3:
                raise ValueError(f"{path} has the shape {tuple(parameter.shape)}, experts are (experts, out, in)")
            if not name:
                raise ValueError(f"{path} belongs to the model itself: its experts must be a module below it")
            found.setdefault(name, {})[tensor] = parameter
    return found


def inject_experts(
    model: nn.Module,
    targets: str | Iterable[str],
    rank: int,
    alpha: float,
    rslora: bool = False,
    init: bool | str = True,
    *,
    fused: bool = False,
) -> nn.Module:
    """Freeze `model` and adapt its experts, in place; adapters that `inject` put in train on. Returns the same model.

    `targets` as in `find_experts`, the settings as in `ExpertUpdate`. `fused`: compute by low-rank products, see
    `lora_lab.variants.experts.products`.

    Raises ValueError or TypeError with the model untouched: experts that are adapted already, a target that matches
    nothing or no tensor of experts, a setting outside its limits, layers with dropout, DoRA or another rule for the
    scale (PEFT's file has one for all, and experts have none), or `fused` with experts of an unknown kind.
    """
    if expert_layers(model):
        raise ValueError("the experts are adapted already: eject_experts first, or two updates would be nested")
    refuse_many(model)
    for name, layer in lora_layers(model).items():
        odd = {"dropout": isinstance(layer.dropout, nn.Dropout), "DoRA": hasattr(layer, "magnitude")}
        odd[f"rslora={layer.rslora}"] = layer.rslora != rslora
        if any(odd.values()):
            what = next(key for key, value in odd.items() if value)
            raise ValueError(f"{name} has {what}, the experts have not: PEFT's file can only say one thing for all")
    found = find_experts(model, targets)
    modules = dict(model.named_modules())
    for name, tensors in found.items():
        if fused:
            refuse_other_experts(modules[name], tensors)
        for tensor, weight in tensors.items():
            try:
                check_expert_settings(weight, rank, alpha, init)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}.{tensor}: {error}") from None

    def build() -> dict[nn.Module, LoRAExperts]:
        layers = {}
        for name, tensors in found.items():
            turned = bool(getattr(modules[name], "is_transposed", False))
            updates = {t: ExpertUpdate(weight, rank, alpha, rslora, init, turned) for t, weight in tensors.items()}
            layers[modules[name]] = LoRAExperts(modules[name], updates, fused)
        return layers

    return install_experts(model, build)


def install_experts(model: nn.Module, build: Callable[[], dict[nn.Module, LoRAExperts]]) -> nn.Module:
    """Freeze `model`, unless `inject` has, and put what `build()` returns in the place of the modules it names.

    Remembers what trained before. If `build` fails or is interrupted, the model is as it was, and the global random
    state too.
    """
    was_trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    injected, random_state = bool(lora_layers(model)), torch.get_rng_state()
    new: dict[nn.Module, LoRAExperts] = {}
    try:
        new = build()
        if not injected:
            model.requires_grad_(False)
        replace_modules(model, new)
    except BaseException:
        replace_modules(model, {layer: base for base, layer in new.items()})
        set_trainable(model, was_trainable)
        torch.set_rng_state(random_state)
        raise
    if not injected:
        model.__dict__[_WAS_TRAINABLE] = was_trainable
    return model


def eject_experts(model: nn.Module) -> nn.Module:
    """Take the updates off, in place: every module of experts returns to its place, the very same object. If no other
    adapter is left, what trained before trains again. A and B are dropped: save them first. Returns the model.

    Raises ValueError if no experts are adapted, or if they are merged.
    """
    layers = expert_layers(model)
    if not layers:
        raise ValueError("nothing to eject: no experts of the model are adapted")
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(f"{len(merged)} modules of experts are merged ({merged[0]}, ...): unmerge_experts_ first")
    return unwrap_experts(model)


def unwrap_experts(model: nn.Module) -> nn.Module:
    """Replace each adapted module of experts by its base as it is now, merged or not, in place."""
    replace_modules(model, {layer: layer.base for layer in expert_layers(model).values()})
    return model if lora_layers(model) else unwrap(model)
