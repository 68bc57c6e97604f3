"""LoRA Lab: low-rank adaptation from scratch, equal to PEFT. The public names, in the order in which data flows."""

from lora_lab.adapter import Adapter, Factors, scale_of
from lora_lab.adapter_file import adapter_state, load_adapter, save_adapter
from lora_lab.inject import Count, count, eject, inject, lora_layers
from lora_lab.layer import LoRALinear
from lora_lab.merge import merge_, merged, merged_weight, unmerge_
from lora_lab.targets import find_targets
from lora_lab.train import History, train

__all__ = [
    "Adapter",
    "Count",
    "Factors",
    "History",
    "LoRALinear",
    "adapter_state",
    "count",
    "eject",
    "find_targets",
    "inject",
    "load_adapter",
    "lora_layers",
    "merge_",
    "merged",
    "merged_weight",
    "save_adapter",
    "scale_of",
    "train",
    "unmerge_",
]
