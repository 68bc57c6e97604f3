"""Checks of notebook 07, in the order of its exercises."""

from .nb07_bound import error_bound
from .nb07_folder import verify_release
from .nb07_pair import merge_two
from .nb07_release import release_check
from .nb07_sabotage import wrong_layers
from .nb07_weights import merge, unmerge_weight

__all__ = ["error_bound", "merge", "merge_two", "release_check", "unmerge_weight", "verify_release", "wrong_layers"]
