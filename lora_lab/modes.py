"""Look at a model in evaluation mode, leaving every module in the mode that it was found in. Is autocast on?"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Whatever happens inside, each module of `models` trains or evaluates afterwards as it did before."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """`models` in evaluation mode inside; afterwards each module in its own mode again."""
    with modes_kept(*models):
        for model in models:
            model.eval()
        yield


def autocasts(device_type: str) -> bool:
    """Is autocast on for "cpu", "cuda", ...? Never for a device that has none, like "meta", where torch raises."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
