"""Checks of notebook 04, in the order of its exercises."""

from .nb04_budget import choose_rank, rank_for_budget
from .nb04_diagnose import diagnose
from .nb04_groups import lora_plus_groups
from .nb04_scale import effective_scale, matching_rate
from .nb04_step import first_update, growth

__all__ = [
    "choose_rank",
    "diagnose",
    "effective_scale",
    "first_update",
    "growth",
    "lora_plus_groups",
    "matching_rate",
    "rank_for_budget",
]
