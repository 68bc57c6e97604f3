"""y = W_e x + s·B_e(A_e x): the experts of a mixture by low-rank products, without W + s·BA.

The tokens are sorted by expert, and each expert sees its own at once:

    h = act(U_e x),  y = D_e h,  each of U (experts, 2·inner, hidden) and D (experts, hidden, inner) with its update

Nothing of W's size is formed, kept or differentiated, and in half precision no small update is lost: A and B act in
fp32. The price is that the experts' own code is not run, but replaced by the computation that transformers 5 gives to
all mixtures (`transformers.integrations.moe`). Experts that do not follow it are refused.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from lora_lab.variants.experts.layer import ExpertUpdate

# What transformers 5 sets on a class of experts that follows the common computation.
KNOWN = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "num_experts")


def tensor_names(base: nn.Module) -> tuple[str, str]:
    """The names of U and D."""
    return "gate_up_proj" if base.has_gate else "up_proj", "down_proj"


def refuse_other_experts(base: nn.Module, tensors: Iterable[str]) -> None:
    """Raise ValueError if `base` does not follow the common computation, or has no part in it for one of `tensors`."""
    used = "_apply_gate" if getattr(base, "has_gate", True) else "act_fn"
    missing = [name for name in (*KNOWN, used) if not hasattr(base, name)]
    if missing or getattr(base, "_is_expert_parallel", False):
        why = f"has no {missing[0]}" if missing else "is spread over several devices"
        raise ValueError(f"fused=True needs experts as transformers 5 computes them; {type(base).__name__} {why}")
    other = sorted(set(tensors) - set(tensor_names(base)))
    if other:
        raise ValueError(f"fused=True knows {' and '.join(tensor_names(base))}, not {other[0]}")


def experts_by_products(
    base: nn.Module,
    updates: Mapping[str, "ExpertUpdate"],
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """hidden_states (tokens, hidden), and the experts of each token with their weights (tokens, k) -> (tokens, hidden).

    The same as the base's own forward with W + s·BA, to rounding.
    """
    top_k = top_k_index.shape[-1]
    expert, order = top_k_index.flatten().sort(stable=True)
    sizes = torch.bincount(expert).tolist()
    up, down = (Stack(base, name, updates) for name in tensor_names(base))
    outputs = []
    for e, x in enumerate(hidden_states[order // top_k].split(sizes)):
        if len(x):
            h = up(e, x)
            y = down(e, base._apply_gate(h) if base.has_gate else base.act_fn(h))
            outputs.append(base.post_expert_norm(y) if base.has_post_expert_norm else y)
    weighted = torch.cat(outputs) * top_k_weights.flatten()[order, None]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return weighted[place].unflatten(0, (-1, top_k)).sum(1).to(hidden_states.dtype)


class Stack:
    """One tensor of experts with its bias and its update, taken apart once: call it with an expert and its tokens."""

    def __init__(self, base: nn.Module, name: str, updates: Mapping[str, "ExpertUpdate"]):
        weight = getattr(base, name)
        self.weights = weight.mT if base.is_transposed else weight
        self.bias = getattr(base, f"{name}_bias") if base.has_bias else None
        self.update = dict(updates.items()).get(name)
        # unbind, since the gradient of A[e] for each e would fill a tensor of A's size for each e.
        self.factors = [factor.unbind() for factor in self.update.factors()] if self.update is not None else None

    def __call__(self, e: int, x: Tensor) -> Tensor:
        """x (tokens, in) -> (tokens, out)."""
        y = F.linear(x, self.weights[e], None if self.bias is None else self.bias[e])
        if self.update is None:
            return y
        A, B = self.factors[0][e], self.factors[1][e]
        return (y + self.update.scale * F.linear(F.linear(x.to(A.dtype), A), B)).to(y.dtype)
