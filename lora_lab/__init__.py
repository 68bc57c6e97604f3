"""LoRA Lab: low-rank adaptation from scratch, equal to PEFT. The public names, in the order in which data flows.

More stands in the modules: `init` (all ways to start), `variants`, `quantize`, `combine`, `many` (adapters on one
model), `spectrum`, `budget`. README.md beside this file lists everything.
"""

from lora_lab.adapter import Adapter, Factors, scale_of
from lora_lab.adapter_file import adapter_of, adapter_state, load_adapter, read_adapter, save_adapter, write_adapter
from lora_lab.init import INITS, named
from lora_lab.init.prepare import prepare
from lora_lab.inject import Count, count, eject, inject, lora_layers
from lora_lab.layer import LoRALinear
from lora_lab.merge import merge_, merged, merged_weight, unmerge_
from lora_lab.merge_check import MergeReport, validate_merge
from lora_lab.provenance import fingerprint
from lora_lab.targets import find_targets
from lora_lab.train import History, train

__all__ = [
    "INITS",
    "Adapter",
    "Count",
    "Factors",
    "History",
    "LoRALinear",
    "MergeReport",
    "adapter_of",
    "adapter_state",
    "count",
    "eject",
    "find_targets",
    "fingerprint",
    "inject",
    "load_adapter",
    "lora_layers",
    "merge_",
    "merged",
    "merged_weight",
    "named",
    "prepare",
    "read_adapter",
    "save_adapter",
    "scale_of",
    "train",
    "unmerge_",
    "validate_merge",
    "write_adapter",
]
