"""What a training step really takes: what `training_memory` and `training_flops` are held against.

On a GPU torch counts. Elsewhere `Accountant` does: it sees every tensor that an operation makes, in the forward pass,
in autograd and in the optimizer, and when its memory is let go. What it cannot see is memory that a kernel takes and
returns inside; there is little of that. Tensors on the meta device have no memory but are counted all the same, so that
a run of any size can be accounted for without a GPU.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Accountant(TorchDispatchMode):
    """Inside `with Accountant(existing)`: `now` and `peak`, bytes of all live tensors, `existing` ones included."""

    def __init__(self, existing: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()
        for tensor in existing:
            self._enter(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._enter(value)
        return result

    def reset(self) -> None:
        self.peak = self.now

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._seen or tensor.ndim == 0:  # single numbers do not count
            return
        self._seen.add(key)
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, key, nbytes)

    def _leave(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.now -= nbytes


class CudaAccountant(contextlib.AbstractContextManager):
    """The same numbers from torch's own allocator, on top of what is allocated when it is made."""

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.before = torch.cuda.memory_allocated(self.device)

    def __exit__(self, *_) -> None:
        pass

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated(self.device) - self.before

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self.before

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


def measured_step(
    accountant: Accountant | CudaAccountant,
    loss_of: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int = 2,
) -> dict[str, int]:
    """Bytes alive at the worst moment of each phase of the last of `steps` steps, and at quiet moments:

    standing    before the step: weights, adapters, optimizer states
    saved       what the forward pass left behind, beyond that
    gradients   what the backward pass left behind
    forward, backward, step, peak    the worst moments, everything included
    """
    found: dict[str, int] = {}
    with accountant:
        for _ in range(steps):
            accountant.reset()
            found["standing"] = accountant.now
            loss = loss_of()
            found["saved"] = accountant.now - found["standing"]
            found["forward"] = accountant.peak
            accountant.reset()
            loss.backward()
            del loss
            found["gradients"] = accountant.now - found["standing"]
            found["backward"] = accountant.peak
            accountant.reset()
            optimizer.step()
            found["step"] = accountant.peak
            optimizer.zero_grad(set_to_none=True)
    return found | {"peak": max(found[phase] for phase in ("forward", "backward", "step"))}


def saved_bytes(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that autograd saves while `run()` computes, each piece of memory once, `model`'s own tensors left out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}  # holds on to them: memory that is let go would be used again

    def pack(tensor: Tensor) -> Tensor:
        if tensor.ndim and tensor.untyped_storage()._cdata not in own:
            found[tensor.untyped_storage()._cdata] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())
