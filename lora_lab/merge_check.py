"""Is the merged model right? A check that can fail: every weight against the sum it should hold.

For each entry, with W* = W + s·BA computed in fp64 and W' the merged weight:

    |W' - W*| <= u·|W*| + (r + 3)·2⁻²⁴·(|W| + s·|B_i|·|A_j|) + tiny     u = half the spacing of numbers in W's dtype

The first term is the one rounding that no merge can avoid; the second is the product and the sum in fp32 (Higham 2002,
"Accuracy and Stability of Numerical Algorithms", section 3.1; |B_i|·|A_j| by Cauchy-Schwarz). Into 4 or 8 bits the
first term is what the codes can miss. Logits have no such bound: their differences are reported, not judged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.base import is_linear, is_quantized, oriented_weight
from lora_lab.inject import lora_layers
from lora_lab.layer import LoRALinear
from lora_lab.modes import evaluating


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
    layers = lora_layers(before)
    merged = [name for name, layer in layers.items() if layer.merged]
    if not layers or merged:
        found = f"{len(merged)} merged layers ({merged[0]}, ...)" if merged else "no LoRA layer"
        raise ValueError(f"before must carry its adapters unmerged, got {found}: take the reference before merging")
    batches = list(inputs) if isinstance(inputs, Sequence) else [inputs]
    if not batches:
        raise ValueError("inputs is empty: there is nothing to compare the answers on")
    shared = {p.data_ptr() for p in before.parameters()} & {p.data_ptr() for p in after.parameters()}
    if after is before or shared - {0}:
        raise ValueError("before and after share weights: the check would compare a model with itself")
    errors, faults = _weights(layers, after)
    faults += _others(before, after, layers)
    numbers = dict.fromkeys(("max_error", "mean_error", "relative_error", "argmax_agreement", "kl"), math.nan)
    if len(errors) == len(layers):  # with a layer missing or of another shape, the model cannot be asked
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
def merge_bound(layer: LoRALinear, merged_base: nn.Module) -> Tensor:
    """The largest |W' - W*| (out, in), fp64, that a right merge of `layer` into `merged_base` can show."""
    weight = oriented_weight(layer.base, wide=True).double()
    A, B = (factor.double() for factor in layer.factors())
    terms = weight.abs() + layer.scale * torch.outer(B.norm(dim=1), A.norm(dim=0))
    unit = torch.finfo(layer.A.dtype).eps / 2
    bound = (A.shape[0] + 3) * unit * terms
    if is_quantized(merged_base):
        from lora_lab.quantize import error_bound

        return bound + error_bound(merged_base.quantized, torch.float32).double()
    stored = torch.finfo(oriented_weight(merged_base).dtype)
    exact = layer.fold(weight, out=torch.empty_like(weight))
    return bound + (exact.abs() + bound) * stored.eps / 2 + stored.tiny * stored.eps / 2


@torch.no_grad()
def _weights(layers: dict[str, LoRALinear], after: nn.Module) -> tuple[dict[str, LayerError], list[str]]:
    errors, faults, modules = {}, [], dict(after.named_modules(remove_duplicate=False))
    for name, layer in layers.items():
        base = modules.get(name)
        if isinstance(base, LoRALinear):
            if not base.merged:
                faults.append(f"{name} still carries its adapter unmerged")
            base = base.base
        if base is None or not is_linear(base):
            faults.append(f"{name} is missing")
            continue
        weight, given = oriented_weight(layer.base, wide=True).double(), oriented_weight(base, wide=True).double()
        if given.shape != weight.shape:
            faults.append(f"{name} has the shape {tuple(given.shape)}, not {tuple(weight.shape)}")
            continue
        error = (given - layer.fold(weight, out=torch.empty_like(weight))).abs()
        times = (error / merge_bound(layer, base)).nan_to_num(nan=float("inf")).max().item()
        errors[name] = LayerError(error.max().item(), times)
        if not times <= 1:
            faults.append(f"{name} is off by {error.max().item():.3g}, {times:.3g} times what its dtype allows")
    return errors, faults


def _others(before: nn.Module, after: nn.Module, layers: dict[str, LoRALinear]) -> list[str]:
    """Everything but the merged weights must be the same to the bit."""

    def rest(model: nn.Module) -> dict[str, Tensor]:
        tensors = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            owner, _, leaf = name.rpartition(".")
            inside = owner.removesuffix(".base") if owner.endswith(".base") or owner == "base" else owner
            inside = "" if inside == "base" else inside
            if inside not in layers or leaf == "bias":
                tensors[f"{inside}.{leaf}"] = tensor
        return tensors

    old, new = rest(before), rest(after)
    faults = [f"{name} is in one of the models only" for name in sorted(set(old) ^ set(new))]
    faults += [f"{n} differs" for n in old if n in new and not torch.equal(old[n].cpu(), new[n].cpu())]
    return faults


@torch.no_grad()
def _logits(models: tuple[nn.Module, nn.Module], batch: Mapping[str, Any] | Tensor) -> tuple[Tensor, ...]:
    """The logits (positions, vocabulary) of both models, in fp32, without padding."""
    with evaluating(*models):
        outputs = [model(**batch) if isinstance(batch, Mapping) else model(batch) for model in models]
    logits = [getattr(output, "logits", output).float() for output in outputs]
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return tuple(x[mask.bool().to(x.device)] if mask is not None else x.flatten(0, -2) for x in logits)
