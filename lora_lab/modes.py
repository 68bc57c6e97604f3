"""Look at a model in evaluation mode, and leave every module in the mode that it was found in."""

from collections.abc import Iterator
from contextlib import contextmanager

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
