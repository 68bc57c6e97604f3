"""Checks of notebook 03, in the order of its exercises."""

from .nb03_init import init_factors
from .nb03_layer import MyLoRALinear
from .nb03_maths import factor_gradients, lora_forward
from .nb03_model import adapt
from .nb03_names import matches
from .nb03_save import adapter_state, merge_weight

__all__ = [
    "MyLoRALinear",
    "adapt",
    "adapter_state",
    "factor_gradients",
    "init_factors",
    "lora_forward",
    "matches",
    "merge_weight",
]
