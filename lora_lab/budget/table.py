"""Which layers a model has to adapt: a table read off its modules, nothing typed in for any family."""

from collections import Counter
from typing import Any, NamedTuple

from torch import nn

from lora_lab.base import weight_shape
from lora_lab.budget.architectures import decoder_layers, skeleton
from lora_lab.budget.blocks import heads_of
from lora_lab.budget.plan import inside_layers, output_head

ROLES = ("attention", "mlp", "router", "experts", "head")


class Target(NamedTuple):
    """Layers of one name, role and shape W (out, in_).

    name: what to give as a target (or, for routers and experts, as a target parameter). fused: several matrices in one
    (query, key and value; gate and up). experts: matrices in each (1 but for experts). per_layer, total: how many.
    """

    name: str
    role: str
    fused: bool
    out: int
    in_: int
    experts: int
    per_layer: int
    total: int


class TargetTable(tuple[Target, ...]):
    """The rows, in the model's order; `print` it for a table. GPT-2's "c_proj" has two roles: the name adapts both."""

    def names(self, *roles: str) -> list[str]:
        """The names in these roles (none given: in all), each once. Raises ValueError for an unknown role."""
        unknown = [role for role in roles if role not in ROLES]
        if unknown:
            raise ValueError(f"roles are {', '.join(ROLES)}, got {unknown[0]!r}")
        return list(dict.fromkeys(row.name for row in self if not roles or row.role in roles))

    def __str__(self) -> str:
        head = ("name", "role", "out", "in", "per layer", "in all")
        rows = [
            (
                row.name,
                row.role + (", fused" if row.fused else ""),
                f"{row.out:,}",
                f"{row.in_:,}" + (f" × {row.experts} experts" if row.experts > 1 else ""),
                str(row.per_layer),
                str(row.total),
            )
            for row in self
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows])


def target_table(model: Any) -> TargetTable:
    """Every matrix of `model` (as in `config_of`) that an adapter could go to, but for embeddings."""
    model = skeleton(model)
    count: Counter[tuple] = Counter()
    for layer in inside_layers(model):
        for (path, _), (out, in_, _, experts, module) in layer.items():
            parent, _, name = path.rpartition(".")
            role = ("experts" if experts else "router") if not module else _role(parent)
            name = f"{name}.weight" if role == "router" else name
            count[name, role, _is_fused(model, layer, path, role, out), out, in_, max(experts, 1)] += 1
    layers = len(decoder_layers(model))
    rows = [Target(*row, total // layers, total) for row, total in count.items()]
    path, head = output_head(model)
    return TargetTable([*rows, Target(path, "head", False, *weight_shape(head), 1, 0, 1)])


def _role(parent: str) -> str:
    return "attention" if "attn" in parent or "attention" in parent else "mlp"


def _is_fused(model: nn.Module, layer: dict, path: str, role: str, out: int) -> bool:
    """Attention: as wide as query, key and value together. Else: twice as wide as what the layer behind it reads."""
    if role == "attention":
        heads = heads_of(model.config)
        return out == (heads.query + 2 * heads.kv) * heads.width
    if role == "router":
        return False
    parent = path.rpartition(".")[0]
    siblings = [shape for (other, _), shape in layer.items() if other.rpartition(".")[0] == parent and other != path]
    return any(out == 2 * in_ for _, in_, *_ in siblings)
