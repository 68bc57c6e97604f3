"""Is the merged model right? A check that can fail: every weight against the sum it should hold.

`merge_bound` has the sum and how far from it a right merge may be. Logits have no such bound: they are reported, not
judged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.base import is_linear, oriented_weight, weight_shape
from lora_lab.inject import lora_layers
from lora_lab.layer import LoRALinear
from lora_lab.merge_bound import exact_expert_merge, exact_merge
from lora_lab.modes import evaluating
from lora_lab.variants.experts import expert_layers


@dataclass(frozen=True)
class LayerError:
    """Of one merged weight: the largest |W' - W*|, and how many times its bound the worst entry is (1 is allowed)."""

    error: float
    times_bound: float


@dataclass(frozen=True)
class MergeReport:
    """What `validate_merge` found. Logits: (…, vocabulary) of the model before against the model after.

    max_error, mean_error: of |logit - logit|.  relative_error: ‖difference‖ / ‖logits before‖.
    argmax_agreement: share of positions with the same most likely token.  kl: mean KL(before ‖ after), nats.
    layers: each merged weight.  faults: in words, empty if the merge is right.
    """

    max_error: float
    mean_error: float
    relative_error: float
    argmax_agreement: float
    kl: float
    layers: dict[str, LayerError]
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        lines = [f"merge {'right' if self.passed else 'WRONG'}: {len(self.layers)} weights checked"]
        if self.layers:
            name, worst = max(self.layers.items(), key=lambda item: item[1].times_bound)
            lines += [f"  weights   worst {worst.times_bound:.2g} times its bound, off by {worst.error:.2g} ({name})"]
        lines += [
            f"  logits    off by {self.max_error:.2g} at most, {self.mean_error:.2g} on average, relative "
            f"{self.relative_error:.2g}",
            f"  answers   same most likely token at {self.argmax_agreement:.2%} of positions, KL {self.kl:.2g} nats",
        ]
        return "\n".join(lines + [f"  fault     {fault}" for fault in self.faults[:10]])


def validate_merge(before: nn.Module, after: nn.Module, inputs: Mapping[str, Any] | Tensor | Sequence) -> MergeReport:
    """Compare a merged model with the adapted model that it was made from.

    before: the model with its adapters, unmerged.  after: `merged(before)`, or any plain model that claims to be it
    (loaded from a file, say), or a second copy that went through `merge_`.
    inputs: one batch, what the model is called with: keyword arguments, or one tensor; or a list of batches. Where they
    hold an attention_mask, padding is left out. Both models are in evaluation mode meanwhile, and left as found.

    Faults: a weight further from W + s·BA than its bound, a merged layer that is missing or adapted still, any other
    parameter or buffer that differs at all, logits that are not finite.
    Raises ValueError if there is nothing to compare: `before` has no unmerged LoRA layer, or shares weights with
    `after` (to merge in place is to lose the reference: deep-copy first), or there are no inputs.
    """
    layers = lora_layers(before) | expert_layers(before)
    merged = [name for name, layer in layers.items() if layer.merged]
    if not layers or merged:
        found = f"{len(merged)} merged layers ({merged[0]}, ...)" if merged else "no LoRA layer"
        raise ValueError(f"before must carry its adapters unmerged, got {found}: take the reference before merging")
    batches = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    if not batches:
        raise ValueError("inputs is empty: there is nothing to compare the answers on")
    shared = {p.data_ptr() for p in before.parameters()} & {p.data_ptr() for p in after.parameters()}
    for name, parameter in before.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{name} of the model before holds NaN or infinity: nothing to hold a merge against")
    if after is before or shared - {0}:
        raise ValueError("before and after share weights: the check would compare a model with itself")
    errors, faults = _weights(before, after)
    faults += _others(before, after, layers)
    numbers = dict.fromkeys(("max_error", "mean_error", "relative_error", "argmax_agreement", "kl"), math.nan)
    # With a layer missing or of another shape, the model cannot be asked.
    if not any(" is missing" in fault or " has the shape " in fault for fault in faults):
        logits = [_logits((before, after), batch) for batch in batches]
        numbers = _compare(*(torch.cat(side) for side in zip(*logits, strict=True)))
        if math.isnan(numbers["max_error"]):
            faults.append("the merged model's logits hold NaN or infinity")
    return MergeReport(**numbers, layers=errors, faults=faults)


def _compare(reference: Tensor, given: Tensor) -> dict[str, float]:
    """The figures of a `MergeReport` from logits (positions, vocabulary); NaN where `given` is not finite."""
    difference = (given - reference).abs()
    difference[~given.isfinite()] = math.nan
    kl = F.kl_div(given.log_softmax(-1), reference.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    return {
        "max_error": difference.max().item(),
        "mean_error": difference.mean().item(),
        "relative_error": (difference.norm() / reference.norm()).item(),
        "argmax_agreement": (given.argmax(-1) == reference.argmax(-1)).double().mean().item(),
        "kl": kl.mean().item(),
    }


@torch.no_grad()
def _weights(before: nn.Module, after: nn.Module) -> tuple[dict[str, LayerError], list[str]]:
    """Every merged weight, and every merged tensor of experts, against its W*."""
    errors, faults, modules = {}, [], dict(after.named_modules(remove_duplicate=False))

    def compare(name: str, given: Tensor, exact: Tensor, bound: Tensor) -> None:
        error = (given.double() - exact).abs()
        times = (error / bound).nan_to_num(nan=math.inf).max().item()
        errors[name] = LayerError(error.max().item(), times)
        if not times <= 1:
            faults.append(f"{name} is off by {error.max().item():.3g}, {times:.3g} times what its dtype allows")

    for name, layer in (lora_layers(before) | expert_layers(before)).items():
        base = modules.get(name)
        if isinstance(base, type(layer)):
            if not base.merged:
                faults.append(f"{name} still carries its adapter unmerged")
            base = base.base
        if base is None or not (is_linear(base) if isinstance(layer, LoRALinear) else type(base) is type(layer.base)):
            faults.append(f"{name} is missing")
        elif isinstance(layer, LoRALinear) and weight_shape(base) != weight_shape(layer.base):
            faults.append(f"{name} has the shape {weight_shape(base)}, not {weight_shape(layer.base)}")
        elif isinstance(layer, LoRALinear):
            compare(name, oriented_weight(base, wide=True), *exact_merge(layer, base))
        else:
            for tensor, update in layer.updates.items():
                old, new = getattr(layer.base, tensor), getattr(base, tensor)
                if old.shape != new.shape:
                    faults.append(f"{name}.{tensor} has the shape {tuple(new.shape)}, not {tuple(old.shape)}")
                else:
                    compare(f"{name}.{tensor}", new, *exact_expert_merge(update, old, new.dtype))
    return errors, faults


def _others(before: nn.Module, after: nn.Module, layers: Mapping[str, nn.Module]) -> list[str]:
    """Everything but the merged weights must be the same to the bit."""

    def rest(model: nn.Module) -> dict[str, Tensor]:
        tensors = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            path, _, leaf = f".{name}".rpartition(".")
            path = path.removeprefix(".")
            layer = path.removesuffix(".base") if path not in layers else path
            layer = "" if path == "base" and "" in layers else layer
            if not _is_merged(layers, path, layer, leaf):
                tensors[f"{layer}.{leaf}"] = tensor
        return tensors

    old, new = rest(before), rest(after)
    faults = [f"{name} is in one of the models only" for name in sorted(set(old) ^ set(new))]
    both = [name for name in old if name in new]
    faults += [f"{n} is {new[n].dtype}, not {old[n].dtype}" for n in both if old[n].dtype != new[n].dtype]
    faults += [f"{n} differs" for n in both if not torch.equal(old[n].cpu(), new[n].cpu())]
    return faults


def _is_merged(layers: Mapping[str, nn.Module], path: str, layer: str, leaf: str) -> bool:
    """Is this tensor a merged weight, or part of an adapter? They are compared elsewhere."""
    for owner in (path, layer):
        if owner in layers:
            updates = getattr(layers[owner], "updates", None)
            return leaf != "bias" if updates is None else leaf in updates
    return any(".updates." in f"{path}." and path.startswith(name) for name in layers)


@torch.no_grad()
def _logits(models: tuple[nn.Module, nn.Module], batch: Mapping[str, Any] | Tensor) -> tuple[Tensor, ...]:
    """The logits (positions, vocabulary) of both models, in fp32, without padding."""
    with evaluating(*models):
        outputs = [model(**batch) if isinstance(batch, Mapping) else model(batch) for model in models]
    logits = [getattr(output, "logits", output).float() for output in outputs]
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return tuple(x[mask.bool().to(x.device)] if mask is not None else x.flatten(0, -2) for x in logits)
