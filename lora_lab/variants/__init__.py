"""What came after LoRA, one idea a file: DoRA (`dora`), LoRA+ (`lora_plus`), LoRA on experts (`experts`)."""

from lora_lab.variants.dora import DoRALinear
from lora_lab.variants.experts import eject_experts, inject_experts, merge_experts_, unmerge_experts_
from lora_lab.variants.lora_plus import parameter_groups

__all__ = [
    "DoRALinear",
    "eject_experts",
    "inject_experts",
    "merge_experts_",
    "parameter_groups",
    "unmerge_experts_",
]
