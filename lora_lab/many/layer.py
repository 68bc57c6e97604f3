"""y = W x + b + Σᵢ wᵢ sᵢ Bᵢ(Aᵢ x): one frozen layer that carries many adapters, some of them in use.

W (out, in) and b (out) frozen; Aᵢ (rankᵢ, in); Bᵢ (out, rankᵢ); sᵢ the adapter's own scale; wᵢ its weight in the mix.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.adapter import Factors, scale_of
from lora_lab.base import is_quantized, stored, weight_shape
from lora_lab.many.batch import Plan, Rows, add_rows_, plan_for


@dataclass(eq=False)
class Selection:
    """Which adapters are in use. All layers of a model hold the same one, so that no model is ever half switched.

    mix: weight by name. trained: the one whose A and B learn. rows: what each row of a batch uses, in place of the
    mix. folded: the mix is in the base weights for now, and the adapter paths are skipped.
    """

    mix: dict[str, float] = field(default_factory=dict)
    trained: str | None = None
    rows: Rows | None = None
    folded: bool = False


class Slot(nn.Module):
    """One adapter's factors in one layer: copies, on the base's device, fp32 (fp64 beside an fp64 base), frozen."""

    def __init__(self, factors: Factors, base: nn.Module):
        super().__init__()
        weight = next(iter(stored(base).values()))
        wide = torch.float64 if weight.dtype == torch.float64 and not is_quantized(base) else torch.float32

        def own(factor: Tensor) -> nn.Parameter:
            copied = factor.detach().to(weight.device, wide, copy=True, memory_format=torch.contiguous_format)
            return nn.Parameter(copied, requires_grad=False)

        self.A, self.B = own(factors.A), own(factors.B)
        self.alpha, self.rslora = factors.alpha, factors.rslora
        self.scale = scale_of(factors.rank, factors.alpha, factors.rslora)
        self.train(base.training)

    def factors(self) -> Factors:
        """The adapter as data (shared tensors, detached)."""
        return Factors(self.A.detach(), self.B.detach(), self.alpha, self.rslora)

    def extra_repr(self) -> str:
        return f"rank={len(self.A)}, alpha={self.alpha:g}, scale={self.scale:g}"


class MultiLoRALinear(nn.Module):
    """A frozen linear layer with named adapters beside it, each relative to the weight of the base as it stands.

    Args:
        base: `nn.Linear`, `Conv1D` or `QuantizedLinear`. It is kept, not copied, and frozen.
        selection: which adapters are in use, shared with the other layers of the model.

    Names in the selection that this layer has no adapter for add nothing. Adapters have no dropout here, also the one
    that is trained. What they add is summed in their own dtype and rounded once into the output.
    """

    def __init__(self, base: nn.Module, selection: Selection):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.selection = selection
        self.plan: Plan | None = None
        self.register_load_state_dict_post_hook(MultiLoRALinear._forget_plan)
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> y (..., out), in the dtype that the base layer returns."""
        y, chosen = self.base(x), self.selection
        if chosen.folded:
            return y
        if chosen.rows is not None:
            return add_rows_(y, x, self._current_plan(chosen.rows))
        slots = [(self.adapters[name], weight) for name, weight in chosen.mix.items() if name in self.adapters]
        return add_mix_(y, x, slots) if slots else y

    def _current_plan(self, rows: Rows) -> Plan:
        # Made at the first batch and kept for the next: `generate` comes here once for every token.
        if self.plan is None or self.plan.rows is not rows:
            self.plan = plan_for(rows, self.adapters, weight_shape(self.base))
        return self.plan

    def _forget_plan(self, _=None) -> None:
        self.plan = None

    def _apply(self, fn, recurse=True):
        self._forget_plan()  # the factors move or change their dtype
        return super()._apply(fn, recurse)


def add_mix_(y: Tensor, x: Tensor, slots: list[tuple[Slot, float]]) -> Tensor:
    """y (..., out) + Σᵢ wᵢ sᵢ Bᵢ(Aᵢ x) for x (..., in): in place, except where autograd may have to follow."""
    x, update, shape = x.to(slots[0][0].A.dtype), None, y.shape
    for slot, weight in slots:
        h, scale, B = F.linear(x, slot.A), weight * slot.scale, slot.B
        if y.dtype == h.dtype == B.dtype:
            # One product that adds to what is there: no tensor of the size of y for the update, no pass over it.
            add = torch.addmm if torch.is_grad_enabled() else Tensor.addmm_
            y = add(y.reshape(-1, shape[-1]), h.reshape(-1, h.shape[-1]), B.T, alpha=scale)
        else:
            part = F.linear(scale * h, B)
            update = part if update is None else update + part
    y = y.view(shape)
    return y if update is None else y.add_(update)


def multi_layers(model: nn.Module) -> dict[str, MultiLoRALinear]:
    """Every layer of `model` that carries adapters, by its path (a layer reachable by two paths: by the first)."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MultiLoRALinear)}
