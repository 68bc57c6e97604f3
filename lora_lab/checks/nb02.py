"""Checks of notebook 02, in the order of its exercises."""

from .nb02_counts import attention_shapes, lora_parameters
from .nb02_memory import bytes_per_parameter
from .nb02_overtakes import mlp_overtakes_at
from .nb02_plan import largest_rank, training_hours
from .nb02_report import mended_report
from .nb02_saved import best_segment, saved_bytes

__all__ = [
    "attention_shapes",
    "best_segment",
    "bytes_per_parameter",
    "largest_rank",
    "lora_parameters",
    "mended_report",
    "mlp_overtakes_at",
    "saved_bytes",
    "training_hours",
]
