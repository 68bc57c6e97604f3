"""Checks of notebook 05, in the order of its exercises."""

from .nb05_back import convert_back
from .nb05_choose import choose
from .nb05_data import corda_covariance, eva_directions
from .nb05_draw import gaussian_start, orthogonal_start
from .nb05_weights import olora_start, pissa_start

__all__ = [
    "choose",
    "convert_back",
    "corda_covariance",
    "eva_directions",
    "gaussian_start",
    "olora_start",
    "orthogonal_start",
    "pissa_start",
]
