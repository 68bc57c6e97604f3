"""See what goes into the layers of a model while it runs, each distinct input once, and leave no trace.

q, k and v read the very same tensor, and so do gate and up: what is collected about it is collected once.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.batches import IGNORE


class LayerInputs:
    """Calls `take(path, x)` with every distinct input x of `layers` (by path), in the block of `watched()`.

    Two layers share an input if the first that each of them reads is the same tensor object, unchanged in between. One
    is the `head` of both; `take` is called for heads only. That they go on doing so is checked. With share=False each
    layer is its own head.
    """

    def __init__(self, layers: Mapping[str, nn.Module], take: Callable[[str, Tensor], None], share: bool = True):
        self.layers, self.take, self.share = layers, take, share
        self.head: dict[str, str] = {}
        self._calls: Counter[str] = Counter()
        self._latest: dict[str, tuple[weakref.ref, int]] = {}  # weak: a layer's input is freed as early as ever

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        handles = []
        try:
            for path, layer in self.layers.items():
                handles.append(layer.register_forward_pre_hook(self._hook(path), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def end_batch(self) -> None:
        """Call after each batch. Raises ValueError if a layer was called more or less often than its head."""
        for path, head in self.head.items():
            if self._calls[path] != self._calls[head]:
                self._diverged(path, head)

    def groups(self) -> dict[str, list[str]]:
        """The layers of each head, itself first."""
        grouped: dict[str, list[str]] = {}
        for path, head in self.head.items():
            grouped.setdefault(head, []).append(path)
        return grouped

    def _hook(self, path: str) -> Callable:
        def see(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._see(path, args[0] if args else next(iter(kwargs.values())))

        return see

    def _see(self, path: str, x: Tensor) -> None:
        self._calls[path] += 1
        if path not in self.head:
            self.head[path] = self._who_read(x) or path
        head = self.head[path]
        if head == path:
            self._latest[path] = weakref.ref(x), _version(x)
            try:
                # Whatever mode the model is run in, what is made here must stay writable.
                with torch.inference_mode(False), torch.no_grad():
                    self.take(path, x.detach())
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        elif not self._read(head, x):
            self._diverged(path, head)

    def _read(self, head: str, x: Tensor) -> bool:
        reference, version = self._latest[head]
        return reference() is x and version == _version(x)

    def _who_read(self, x: Tensor) -> str | None:
        # Only if it was the first for both, so that none is missing from the shared statistic.
        heads = self._latest if self.share else ()
        return next((head for head in heads if self._calls[head] == 1 and self._read(head, x)), None)

    def _diverged(self, path: str, head: str) -> None:
        raise ValueError(f"{path} and {head} read the same input at first, but not later: pass share=False")


def _version(x: Tensor) -> int:
    return -1 if x.is_inference() else x._version  # tensors of inference mode count no versions


def token_mask(batch: Any, labelled: bool = False) -> Tensor | None:
    """Which tokens count, (samples, length): those that the attention mask keeps, and with `labelled` have a label.

    None (every token counts) if the batch is no dict, or has neither attention_mask nor input_ids.
    Raises ValueError for an attention mask that is not (samples, length).
    """
    if not isinstance(batch, Mapping):
        return None
    mask = batch.get("attention_mask")
    if mask is None:
        ids = batch.get("input_ids")
        if ids is None:
            return None
        mask = torch.ones_like(ids)
    if mask.ndim != 2:
        raise ValueError(f"attention_mask must be (samples, length), got {tuple(mask.shape)}")
    mask = mask.bool()
    labels = batch.get("labels")
    # Labels of another shape are those of whole samples.
    return mask & (labels != IGNORE) if labelled and labels is not None and labels.shape == mask.shape else mask


def tokens_of(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The inputs x of a layer as (samples, length, in), and which tokens count (samples, length).

    x (samples, length, in), or flattened to (samples·length, in) as routers do. Without a mask, x (tokens, in) is one
    sample. Raises ValueError if x and mask hold different numbers of tokens.
    """
    if mask is None:
        x = x.reshape(1, -1, x.shape[-1]) if x.ndim < 3 else x.flatten(1, -2)
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if x.shape[:-1].numel() != mask.numel():
        raise ValueError(
            f"inputs {tuple(x.shape)} do not match the attention mask {tuple(mask.shape)}: run batches without one"
        )
    return x.reshape(*mask.shape, x.shape[-1]), mask.to(x.device)
