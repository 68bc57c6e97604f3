"""Checks of notebook 01, in the order of its exercises."""

from .nb01_matrix import random_low_rank, truncate
from .nb01_subspace import subspace_similarity
from .nb01_values import effective_rank, energy_rank, truncation_error

__all__ = [
    "effective_rank",
    "energy_rank",
    "random_low_rank",
    "subspace_similarity",
    "truncate",
    "truncation_error",
]
