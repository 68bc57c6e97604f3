"""rate of B = ratio · rate of A.

LoRA+: with one rate for both, a wide model learns too slowly, since B starts at zero and feeds `out` outputs, while A
reads `in` inputs. The paper's ratio is about 16, with the rate of A at or below the rate for plain LoRA.
Source: Hayou et al. 2024 (arXiv:2402.12354), section 4; the grouping of everything else is PEFT's.
"""

import math
from numbers import Real
from typing import Any

from torch import nn

from lora_lab.layer import LoRALinear
from lora_lab.variants.experts import ExpertUpdate


def parameter_groups(model: nn.Module, lr: float, ratio: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """The trainable parameters of `model` as groups for any `torch.optim` optimizer; groups without any are left out.

        A, and whatever else is a matrix (an embedding, a head)        lr           weight_decay
        B, and every vector (DoRA's magnitude)                         ratio · lr   weight_decay
        of these, what is called bias or belongs to an nn.LayerNorm    ratio · lr   0

    Each group holds its factor on the rate as "lr_ratio" (1 or `ratio`), for schedules that set "lr" anew.

    Raises ValueError if nothing is trainable, or if a number is outside its limits (lr and ratio positive,
    weight_decay not negative, all finite).
    """
    for name, value in (("lr", lr), ("ratio", ratio), ("weight_decay", weight_decay)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        if value == 0 and name != "weight_decay":
            raise ValueError(f"{name} must be positive, got {value!r}")
    factors_b = {layer.B for layer in model.modules() if isinstance(layer, LoRALinear | ExpertUpdate)}
    normed = {p for norm in model.modules() if isinstance(norm, nn.LayerNorm) for p in norm.parameters()}
    slow, fast, fast_no_decay = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter not in factors_b and parameter.ndim != 1:
            slow.append(parameter)
        elif "bias" in name or parameter in normed:
            fast_no_decay.append(parameter)
        else:
            fast.append(parameter)
    if not slow and not fast and not fast_no_decay:
        raise ValueError("nothing to train: no parameter of the model requires a gradient (inject first)")
    groups = ((slow, 1.0, weight_decay), (fast, ratio, weight_decay), (fast_no_decay, ratio, 0.0))
    return [
        {"params": params, "lr": lr * factor, "weight_decay": decay, "lr_ratio": factor}
        for params, factor, decay in groups
        if params
    ]
