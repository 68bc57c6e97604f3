"""Run a model on batches to read something off it, and give it back as it was."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lora_lab.modes import modes_kept
from lora_lab.targets import find_targets

Targets = str | Iterable[str] | Mapping[str, nn.Module]
Run = Callable[[nn.Module, Any], Any]


class Collected(dict):
    """A statistic by the path of its layer, and what it took.

    batches: how many were run. tokens: how many counted, for the layer that saw the fewest. peak_bytes: the most that
    was held at one time, sums and copies of inputs, beside the model, what it computes and the workspace of an SVD.
    Layers that read the same input share one tensor.
    """

    def __init__(self, values: Mapping[str, Any], batches: int, tokens: int, peak_bytes: int):
        super().__init__(values)
        self.batches, self.tokens, self.peak_bytes = batches, tokens, peak_bytes


def layers_of(model: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """The target layers by path: found as by `find_targets`, or given as a dict.

    Raises TypeError for a model that is none, ValueError for a layer without numbers (meta), and as `find_targets`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch module, got {type(model).__name__}")
    layers = dict(targets) if isinstance(targets, Mapping) else find_targets(model, targets)
    if not layers:
        raise ValueError("targets is empty: name at least one layer, or use 'all-linear'")
    for path, layer in layers.items():
        if any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers())):
            raise ValueError(f"{path} is on the meta device: load the model's weights first")
    return layers


@contextlib.contextmanager
def lent(model: nn.Module, training: bool) -> Iterator[None]:
    """`model` in that mode inside; afterwards each module in its own mode again."""
    with modes_kept(model):
        model.train(training)
        yield


class Runner:
    """Runs `model` on each of `batches`, with a bar that shows how far it is, and counts them.

    run: called as run(model, batch); None calls model(**batch), whose tensors are first moved to the model's device.
    Raises TypeError for batches or a function that cannot be used, ValueError if there is not one batch.
    """

    def __init__(self, model: nn.Module, batches: Iterable, run: Run | None, progress: bool):
        if not isinstance(batches, Iterable) or isinstance(batches, str | Mapping | Tensor):
            raise TypeError(f"batches must be a list (or iterable) of batches, got {type(batches).__name__}")
        if run is not None and not callable(run):
            raise TypeError(f"run must be a function (model, batch), got {run!r}")
        self.model, self.batches, self.run, self.count = model, batches, run, 0
        self.silent = not progress or bool(os.environ.get("TQDM_DISABLE"))  # tqdm's notebook bar does not look at it
        self.device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))

    @property
    def once(self) -> bool:
        """True if the batches are an iterator, which cannot be read again."""
        return iter(self.batches) is self.batches

    def __iter__(self) -> Iterator[tuple[Any, Callable[[], Any]]]:
        """Each batch, and the call that runs the model on it."""
        total = len(self.batches) if hasattr(self.batches, "__len__") else None
        with tqdm(self.batches, total=total, disable=self.silent, leave=False, unit="batch") as self.bar:
            for batch in self.bar:
                if self.run is None:
                    if not isinstance(batch, Mapping):
                        raise TypeError(
                            f"batch {self.count} must be a dict for model(**batch), got {type(batch).__name__}"
                        )
                    batch = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
                self.count += 1
                yield batch, lambda batch=batch: self.run(self.model, batch) if self.run else self.model(**batch)
        if not self.count:
            raise ValueError("batches is empty: 0 batches given, at least 1 needed")


def refuse_too_few(path: str, tokens: int, needed: int, batches: int) -> None:
    """Raise ValueError if a layer saw fewer tokens than are needed."""
    if tokens < needed:
        reached = "" if tokens else " (is it used at all?)"
        raise ValueError(f"{path}: {batches} batches gave {tokens} tokens{reached}, {needed} are needed")


def check_count(value: int | None, name: str) -> None:
    """Raise ValueError unless `value` is None or a whole number from 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
        raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
