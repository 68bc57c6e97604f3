"""A training run as a list of pieces: embedding, decoder layers, head and loss, each on a tape of its own.

Decoder layers that are alike are traced once: the first, whose input may need no gradient, and the rest.
"""

import functools
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from lora_lab.base import is_linear, weight_shape
from lora_lab.budget.architectures import decoder_layers
from lora_lab.budget.blocks import Layer
from lora_lab.budget.families import FAMILIES, llama
from lora_lab.budget.linear import Linear, linear
from lora_lab.budget.rules import How, Rules
from lora_lab.budget.sites import Site, tensors
from lora_lab.budget.tape import LOGITS, Buffer, Value

NOWHERE = Site(0, 0, 0, 0, "")


@dataclass(frozen=True, eq=False)
class Plan:
    """What is trained and how. `model`: a skeleton. `sites`: from `adapter_sites`, empty for full fine-tuning.

    quantized: all linear layers but the head are stored in codes, as bitsandbytes and TRL do it.
    """

    model: nn.Module
    method: str
    sites: dict[str, Site]
    how: How
    checkpointing: bool = False

    @property
    def full(self) -> bool:
        return self.method == "full"

    @property
    def quantized(self) -> bool:
        return self.method.startswith("q")

    @functools.cached_property
    def pieces(self) -> "list[Piece]":
        """The model, in the order in which it runs."""
        return pieces(self)


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the model that stands `times` times in a row. checkpointed: it keeps only its input."""

    name: str
    tape: Rules
    times: int = 1
    checkpointed: bool = False


def pieces(plan: Plan) -> list[Piece]:
    """The model, in the order in which it runs. Raises ValueError for a family whose layers are not written down."""
    config = plan.model.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f"what a layer of {config.model_type!r} saves is not written down, only of {sorted(FAMILIES)}")
    tape = Rules(plan.how)
    x = _embed(tape, plan, config)
    found = [Piece("embedding", tape)]
    for layer, times in _layers(plan):
        while times:
            x = Value(x.size, x.dtype, x.grad)
            tape = Rules(plan.how, x)
            y = family(tape, x, layer, config)
            run = times if y.grad == x.grad else 1  # the next one sees another input
            found.append(Piece("layers", tape, run, plan.checkpointing))
            times, x = times - run, y
    x = Value(x.size, x.dtype, x.grad)
    tape = Rules(plan.how, x)
    _head(tape, x, plan, config)
    return [*found, Piece("head", tape)]


def _embed(t: Rules, plan: Plan, c: Any) -> Value:
    table, head = plan.model.get_input_embeddings(), plan.model.get_output_embeddings()
    rows, width = table.weight.shape
    ids = Value(t.how.tokens, torch.int64, buffer=Buffer(0))  # the caller's own
    x = t.embedding(ids, rows, width, plan.full, tied=head.weight is table.weight)
    if c.model_type.startswith("gemma"):
        x = t.scale(x)
    x.grad = plan.full or plan.checkpointing  # transformers asks for it when checkpointing is switched on
    leaf = x
    if c.model_type == "gpt2":
        x = t.add(x, t.embedding(Value(t.how.length, torch.int64), c.n_positions, width, plan.full))
    if c.model_type == "bloom":
        x = t.layer_norm(x, width, plan.full)
    dropout = {"gpt2": "embd_pdrop", "phi": "embd_pdrop", "gpt_neox": "hidden_dropout"}.get(c.model_type)
    x = t.dropout(x, getattr(c, dropout)) if dropout else x
    if x is not leaf and leaf.grad and not plan.full:
        t.ops[0].saves.append(leaf.buffer)  # as the place of a gradient that nobody asked for
    return x


def _head(t: Rules, x: Value, plan: Plan, c: Any) -> None:
    t.holds_x = False
    if FAMILIES[c.model_type] is llama:
        x = t.rms_norm(x, c.hidden_size, plan.full, plus_one=c.model_type.startswith("gemma"))
    else:
        x = t.layer_norm(x, c.hidden_size, plan.full)
    path, head = output_head(plan.model)
    logits = linear(t, x, _linear(plan, path, *weight_shape(head), head.bias is not None, codes=False))
    if getattr(c, "final_logit_softcapping", None):
        logits = t.scale(t.of_output("tanh", t.scale(logits), kind=LOGITS))
    logits.buffer.kind = LOGITS
    t.held += [x.buffer, logits.buffer]
    t.cross_entropy(logits)


def _layers(plan: Plan) -> list[tuple[Layer, int]]:
    """The decoder layers, runs of equal ones as one with their number."""

    def alike(inside: dict[tuple[str, str], tuple]) -> list:
        return [(name, shape, plan.sites.get(path, NOWHERE).rank) for (name, path), shape in inside.items()]

    found = []
    for _, run in groupby(inside_layers(plan.model), alike):
        inside, *others = run
        linears = {
            name: _linear(plan, path, *shape, codes=plan.quantized and plain)
            for (name, path), (*shape, plain) in inside.items()
        }
        found.append((Layer(linears, plan.full), 1 + len(others)))
    return found


def _linear(plan: Plan, path: str, out: int, in_: int, bias: bool, experts: int = 0, *, codes: bool) -> Linear:
    rank = plan.sites.get(path, NOWHERE).rank
    return Linear(out, in_, bias, plan.full, plan.how.dtype, rank, codes, plan.method.endswith("dora"), experts)


@functools.lru_cache(maxsize=32)
def output_head(model: nn.Module) -> tuple[str, nn.Module]:
    """Path and module of the layer that makes the logits."""
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head), head


@functools.lru_cache(maxsize=32)
def inside_layers(model: nn.Module) -> list[dict[tuple[str, str], tuple]]:
    """For each decoder layer: (path in the layer, path in the model) -> (out, in, has a bias, experts, is a module)."""
    found = []
    for path, layer in decoder_layers(model).items():
        linears = {name: m for name, m in layer.named_modules() if is_linear(m)}
        inside = {(n, f"{path}.{n}"): (*weight_shape(m), m.bias is not None, 0, True) for n, m in linears.items()}
        for tensor, shape in tensors(model).items():
            if tensor.startswith(f"{path}."):
                experts, out, in_ = (0, *shape) if len(shape) == 2 else shape
                name = tensor.removeprefix(f"{path}.").removesuffix(".weight")
                inside[name, tensor] = (out, in_, False, experts, False)
        found.append(inside)
    return found


def trained_shapes(plan: Plan) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every parameter that trains, which is what the optimizer keeps states for."""
    if plan.full:
        return [(tuple(p.shape), plan.how.dtype) for p in plan.model.parameters()]
    shapes = []
    for site in plan.sites.values():
        many = site.experts * site.rank
        shapes += [(many, site.in_), (site.out, many)]
        if plan.method.endswith("dora"):
            shapes.append((site.out,))
    return [(shape, plan.how.adapter_dtype) for shape in shapes]
