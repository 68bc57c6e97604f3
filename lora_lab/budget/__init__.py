"""What a training run costs before it is started: parameters, memory, storage, FLOPs, time, for any architecture.

    print(budget("Llama-3-8B", "qlora", rank=16, batch=4, length=2048, checkpointing=True))

Everything is derived from the model's own modules (on the meta device, without weights) and from what autograd keeps
for each operation. The order in which to read: architectures, sites, tape, rules, linear, blocks, families, plan, walk,
memory; then flops, storage, optimizers, devices, summary. `measure` is what all of it is held against.
"""

from lora_lab.budget.architectures import MODELS, config_of, skeleton
from lora_lab.budget.devices import GPUS, fits
from lora_lab.budget.flops import Flops
from lora_lab.budget.memory import KINDS, Memory
from lora_lab.budget.optimizers import OPTIMIZERS
from lora_lab.budget.sites import METHODS, adapter_sites, count_parameters
from lora_lab.budget.storage import adapter_file_bytes, code_bytes
from lora_lab.budget.summary import Budget, budget
from lora_lab.budget.table import TargetTable, target_table

__all__ = [
    "GPUS",
    "KINDS",
    "METHODS",
    "MODELS",
    "OPTIMIZERS",
    "Budget",
    "Flops",
    "Memory",
    "TargetTable",
    "adapter_file_bytes",
    "adapter_sites",
    "budget",
    "code_bytes",
    "config_of",
    "count_parameters",
    "fits",
    "skeleton",
    "target_table",
]
