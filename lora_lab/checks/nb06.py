"""Checks of notebook 06, in the order of its exercises."""

from .nb06_config import make_config
from .nb06_health import freeze_check, gradient_norms
from .nb06_labels import mask_prompt
from .nb06_log import read_log
from .nb06_repair import repair
from .nb06_targets import pick_targets

__all__ = ["freeze_check", "gradient_norms", "make_config", "mask_prompt", "pick_targets", "read_log", "repair"]
