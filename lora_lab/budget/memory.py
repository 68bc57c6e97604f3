"""Memory of a training run by kind, and its peak: what `torch.cuda.max_memory_allocated` would say.

    always      weights (or codes), adapter, master copies, optimizer states
    forward     + what the pieces before this one saved + this one's worst moment
    backward    + what the pieces before saved + this one's worst moment + gradients of the pieces behind it
    step        + all gradients + what the optimizer needs for a moment

The peak is the largest of these, over all pieces, in the second step, when the optimizer has its states. It assumes
what the usual loops do: the outputs of the model are dropped before backward, gradients are set to None after each
step, no key-value cache is kept (use_cache=False), no padding mask is given, and the length is within the model's
sliding window. Not in it: memory that torch holds but does not use, the CUDA context, cuBLAS's workspace.
"""

import functools
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from lora_lab.base import is_linear, weight_shape
from lora_lab.budget import optimizers, storage
from lora_lab.budget.blocks import heads_of
from lora_lab.budget.families import STEPWISE
from lora_lab.budget.plan import Piece, Plan, trained_shapes
from lora_lab.budget.tape import ACTIVATIONS, GRADIENTS, LOGITS, WORKSPACE
from lora_lab.budget.walk import backward_peak, forward_peak

STANDING = ("weights", "adapter", "master copies", "optimizer")
KINDS = (*STANDING, GRADIENTS, ACTIVATIONS, LOGITS, WORKSPACE)


@dataclass(frozen=True)
class Memory:
    """Bytes. `kinds`: each kind in full. `moments`: all kinds at the worst moment of each phase.

    kinds: "activations" is what the decoder layers and the embedding keep from the forward to the backward pass,
        "logits" what the loss keeps, "workspace" the most that comes and goes.
    """

    kinds: dict[str, int]
    moments: dict[str, dict[str, int]]

    @property
    def worst(self) -> str:
        """The phase of the peak: "forward", "backward" or "step"."""
        return max(self.moments, key=lambda phase: sum(self.moments[phase].values()))

    @property
    def at_peak(self) -> dict[str, int]:
        """Every kind at the worst moment of all."""
        return self.moments[self.worst]

    @property
    def peak(self) -> int:
        return sum(self.at_peak.values())


def training_memory(
    plan: Plan, optimizer: str = "adamw", master: bool = False, codes: tuple[str, int | None, bool | None] = ("nf4",)
) -> Memory:
    """`codes`: how quantized weights are stored, as in `storage.code_bytes`."""
    shapes = trained_shapes(plan)
    standing = Counter(
        {
            "weights": _weight_bytes(plan, codes),
            "adapter": 0 if plan.full else _size(shapes),
            "master copies": optimizers.master_bytes(shapes) if master else 0,
            "optimizer": optimizers.state_bytes(optimizer, shapes, master),
        }
    )
    run, gradients = plan.pieces, _size(shapes)
    shared = Counter({ACTIVATIONS: _shared(plan)})
    masks = Counter({ACTIVATIONS: _masks(plan)})
    shared += masks if plan.checkpointing else Counter()
    forward, backward = _passes(run, standing + shared)
    forward += Counter() if plan.checkpointing else masks
    scratch = optimizers.step_bytes(optimizer, shapes, master, plan.how.device)
    step = standing + Counter({GRADIENTS: gradients, WORKSPACE: scratch})
    moments = {"forward": forward, "backward": backward, "step": step}
    saved = sum((_times(piece.times, _kept(piece)) for piece in run), shared)
    workspace = max(moment[WORKSPACE] for moment in moments.values())
    kinds = standing + Counter({GRADIENTS: gradients, **saved, WORKSPACE: workspace})
    return Memory(
        {kind: kinds[kind] for kind in KINDS},
        {phase: {kind: moment[kind] for kind in KINDS} for phase, moment in moments.items()},
    )


def _passes(run: list[Piece], always: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """The worst moment of the forward and of the backward pass."""
    forward, backward, cached = [], [], 0
    before = Counter(always)
    behind = sum(piece.times * piece.tape.weight_bytes() for piece in run)
    for piece in run:
        kept, gradients = _kept(piece), piece.tape.weight_bytes()
        there, back = forward_peak(piece.tape, not piece.checkpointed), backward_peak(piece.tape, piece.checkpointed)
        lost = set(piece.tape.cached) - (set() if piece.checkpointed else set(piece.tape.saved()))
        copies = sum(buffer.nbytes for buffer in lost)
        for index in {0, piece.times - 1}:  # what is kept grows, what has a gradient shrinks: an end is the worst
            base = before + _times(index, kept)
            after = Counter({GRADIENTS: behind - (index + 1) * gradients})
            forward.append(base + Counter(there) + Counter({WORKSPACE: cached + index * copies}))
            backward.append(base + after + Counter(back))
        before += _times(piece.times, kept)
        cached += piece.times * copies
        behind -= piece.times * gradients
    return max(forward, key=Counter.total), max(backward, key=Counter.total)


def _kept(piece: Piece) -> Counter[str]:
    """What a piece keeps from its forward to its backward pass."""
    if not piece.checkpointed:
        return piece.tape.saved_bytes()
    return Counter({ACTIVATIONS: piece.tape.x.buffer.nbytes})


def _shared(plan: Plan) -> int:
    """Token ids, labels, and cos and sin of the rotary embedding, one pair for each kind of layer (Gemma 3 has two)."""
    how, config = plan.how, plan.model.config
    kinds = len(set(config.layer_types)) if config.model_type == "gemma3_text" else 1
    tables = 2 * kinds * how.length * heads_of(config).rotated
    return 2 * how.tokens * torch.int64.itemsize + tables * how.dtype.itemsize


def _masks(plan: Plan) -> int:
    """The masks of an attention step by step: gone after the forward pass, unless layers are computed again."""
    how, config = plan.how, plan.model.config
    kinds = len(set(config.layer_types)) if config.model_type in ("gemma2", "gemma3_text") else 1
    stepwise = how.attention == "eager" or config.model_type in STEPWISE
    return kinds * how.batch * how.length**2 * how.dtype.itemsize if stepwise else 0


def _weight_bytes(plan: Plan, codes: tuple) -> int:
    total, shapes = _weights(plan.model)
    if not plan.quantized:
        return total * plan.how.dtype.itemsize
    packed = sum(times * storage.code_bytes(out, in_, *codes) for (out, in_), times in shapes.items())
    plain = total - sum(times * out * in_ for (out, in_), times in shapes.items())
    return packed + plain * plan.how.dtype.itemsize


@functools.lru_cache(maxsize=32)
def _weights(model: nn.Module) -> tuple[int, Counter[tuple[int, int]]]:
    """All parameters, and the shapes of all linear layers but the head, with how many there are of each."""
    head = model.get_output_embeddings()
    shapes = Counter(weight_shape(m) for m in model.modules() if is_linear(m) and m is not head)
    return sum(p.numel() for p in model.parameters()), shapes


def _times(n: int, sizes: Counter[str]) -> Counter[str]:
    return Counter({kind: n * size for kind, size in sizes.items()})


def _size(shapes: list[tuple[tuple[int, ...], torch.dtype]]) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes)
