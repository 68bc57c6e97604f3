"""LoRA on the experts of a mixture, which transformers 5 stores as 3-D tensors (PEFT: `target_parameters`).

`layer` is the equation, `inject`, `merge` and `files` are its counterparts to the modules of those names one level up,
`products` the same without the memory.
"""

from lora_lab.variants.experts.inject import eject_experts, expert_layers, find_experts, inject_experts
from lora_lab.variants.experts.layer import ExpertUpdate, LoRAExperts
from lora_lab.variants.experts.merge import merge_experts_, unmerge_experts_

__all__ = [
    "ExpertUpdate",
    "LoRAExperts",
    "eject_experts",
    "expert_layers",
    "find_experts",
    "inject_experts",
    "merge_experts_",
    "unmerge_experts_",
]
