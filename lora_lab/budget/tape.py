"""A forward pass without numbers: which tensors autograd keeps, and what each pass costs in FLOPs.

    saved = Σ bytes of the buffers that some operation saves, each buffer once (views share their buffer)

A `Value` stands for a tensor: number of elements, dtype, whether it needs a gradient, and the `Buffer` under it. An
`Op` is one node of autograd's graph. `rules` and `linear` say what torch's operations save, `walk` finds the peak.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

ACTIVATIONS, LOGITS, GRADIENTS, WORKSPACE = "activations", "logits", "gradients", "workspace"


class Buffer:
    """The memory under one tensor and its views."""

    __slots__ = ("kind", "nbytes")

    def __init__(self, nbytes: int, kind: str = ACTIVATIONS):
        self.nbytes, self.kind = nbytes, kind


class Value:
    """A tensor without its numbers. `grad`: does it require a gradient?"""

    __slots__ = ("buffer", "dtype", "grad", "size")

    def __init__(self, size: int, dtype: torch.dtype, grad: bool = False, buffer: Buffer | None = None):
        self.size, self.dtype, self.grad = size, dtype, grad
        self.buffer = Buffer(size * dtype.itemsize) if buffer is None else buffer

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclass(slots=True)
class Op:
    """One node of the graph.

    passes: the gradient of the output is, unchanged and uncopied, the gradient of every input (a sum, a view).
    weight_bytes: gradients of parameters that its backward pass leaves behind.
    scratch, backward_scratch: bytes that exist only while it runs forward, or backward.
    holds: values that some variable of the caller still names until it has run.
    """

    name: str
    inputs: list[Value]
    output: Value
    saves: list[Buffer] = field(default_factory=list)
    passes: bool = False
    weight_bytes: int = 0
    flops: int = 0
    backward_flops: int = 0
    scratch: int = 0
    backward_scratch: int = 0
    holds: list[Value] = field(default_factory=list)
    where: str = ""  # the layer that it belongs to


class Tape:
    """The operations of one piece of a model (embedding, a decoder layer, head and loss) on its input `x`."""

    def __init__(self, x: Value | None = None):
        self.x = x
        self.ops: list[Op] = []
        self.held: list[Buffer] = []  # by a variable, until the whole piece returns
        self.cached: list[Buffer] = []  # by autocast, until the whole forward pass returns
        self.holds_x = True
        self.where = ""

    def record(
        self,
        name: str,
        inputs: Iterable[Value],
        size: int,
        dtype: torch.dtype,
        *,
        saves: Iterable[Value] = (),
        trains: bool = False,
        view: bool = False,
        kind: str = ACTIVATIONS,
        **costs,
    ) -> Value:
        """Add an operation and return its output. It saves `saves` only if its output needs a gradient.

        trains: one of its parameters needs a gradient. view: the output lies in the buffer of the first input.
        """
        inputs = list(inputs)
        grad = trains or any(value.grad for value in inputs)
        output = Value(size, dtype, grad, inputs[0].buffer if view else Buffer(size * dtype.itemsize, kind))
        saved = [value.buffer for value in saves] if grad else []
        self.ops.append(Op(name, inputs, output, saved, where=self.where, **costs))
        return output

    def hold(self, *values: Value) -> None:
        """Keep `values` until the last operation so far has run."""
        self.ops[-1].holds.extend(values)

    @property
    def output(self) -> Value:
        return self.ops[-1].output

    def saved(self) -> dict[Buffer, str]:
        """Every saved buffer once, with the operation that saves it first: "q_proj: cast", "flash"."""
        found: dict[Buffer, str] = {}
        for op in self.ops:
            for buffer in op.saves:
                found.setdefault(buffer, f"{op.where}: {op.name}" if op.where else op.name)
        return found

    def saved_bytes(self) -> Counter[str]:
        """Saved bytes by kind."""
        total: Counter[str] = Counter()
        for buffer in self.saved():
            total[buffer.kind] += buffer.nbytes
        return total

    def repeated(self) -> list[Op]:
        """What checkpointing runs again: everything before the last operation that saves something.

        torch stops there, as soon as the last saved tensor is back, before that operation itself.
        """
        last = max((i for i, op in enumerate(self.ops) if op.saves), default=0)
        return self.ops[:last]

    def weight_bytes(self) -> int:
        return sum(op.weight_bytes for op in self.ops)
