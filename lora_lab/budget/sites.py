"""Where adapters go in a model, and how many numbers that makes: Σ r (in + out) over the adapted matrices.

Plain linear layers as `find_targets` finds them. In a mixture of experts PEFT 0.21 reads "all-linear" as it was before
transformers 5 put all experts into two tensors: the router and both tensors too, the first with twice the rank, since
it holds two old layers (gate and up).
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from lora_lab.base import is_linear, weight_shape
from lora_lab.budget.architectures import skeleton
from lora_lab.init.check import check_rank
from lora_lab.inject import Count
from lora_lab.targets import ALL_LINEAR, find_targets, matches

METHODS = ("full", "lora", "dora", "qlora", "qdora")
EXPERTS_FOLLOW = ("mixtral", "qwen3_moe")  # the families whose experts "all-linear" means, as far as tested here


class Site(NamedTuple):
    """An adapted matrix W (out, in_) or, with `experts` > 1, a tensor of so many. `key`: its name in the file."""

    out: int
    in_: int
    rank: int
    experts: int
    key: str

    @property
    def parameters(self) -> int:
        """Of A (experts · rank, in) and B (out, experts · rank)."""
        return self.experts * self.rank * (self.out + self.in_)


def adapter_sites(
    model: Any, rank: int, targets: str | Iterable[str] = ALL_LINEAR, target_parameters: Iterable[str] = ()
) -> dict[str, Site]:
    """The adapted matrices of `model` (as in `config_of`) by path, in the model's order.

    targets: as in `find_targets`, or () for none. target_parameters: names of tensors outside linear layers, as in
    PEFT's config ("mlp.experts.down_proj").
    Raises ValueError for a rank that a linear layer cannot have, or a target that matches nothing.
    """
    model, names = skeleton(model), tuple(target_parameters)
    targets = targets if isinstance(targets, str) else tuple(targets)
    if not targets and not names:
        raise ValueError("targets and target_parameters are both empty: name at least one layer, or use 'all-linear'")
    found = _linears(model, targets) if targets else {}
    for path, (out, in_) in found.items():
        check_rank(rank, min(out, in_), f"{path}: rank")
    check_rank(rank, 2**31)
    sites = {path: Site(out, in_, int(rank), 1, path) for path, (out, in_) in found.items()}
    everything = isinstance(targets, str) and targets.lower() == ALL_LINEAR
    return sites | _tensor_sites(model, int(rank), names, everything)


@functools.lru_cache(maxsize=256)
def _linears(model: nn.Module, targets: str | tuple[str, ...]) -> dict[str, tuple[int, int]]:
    return {path: weight_shape(layer) for path, layer in find_targets(model, targets).items()}


@functools.lru_cache(maxsize=32)
def tensors(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices that lie in decoder layers but not in linear layers: routers and experts."""
    inside = {id(p) for m in model.modules() if is_linear(m) or isinstance(m, nn.Embedding) for p in m.parameters()}
    return {name: tuple(p.shape) for name, p in model.named_parameters() if id(p) not in inside and p.ndim >= 2}


def _tensor_sites(model: nn.Module, rank: int, names: tuple[str, ...], everything: bool) -> dict[str, Site]:
    present = tensors(model)
    for name in names:
        if not any(matches(path, [name]) for path in present):
            ends = sorted({path.partition(".mlp.")[2] or path for path in present})
            raise ValueError(f"target parameter {name!r} matches nothing; tensors outside linear layers here: {ends}")
    ranks = {path: rank for path in present if matches(path, names)}
    kind = model.config.model_type
    if everything and present:
        if kind not in EXPERTS_FOLLOW:
            raise ValueError(f"what 'all-linear' means for the experts of {kind} is not known here: name the targets")
        ranks |= {path: 2 * rank if path.endswith("gate_up_proj") else rank for path in present}
    sites = {}
    for path in ranks:
        module = path.rpartition(".")[0]
        siblings = [other for other in ranks if other.rpartition(".")[0] == module]
        # PEFT wraps a module once for each of its tensors, the first innermost.
        key = module + ".base_layer" * (len(siblings) - 1 - siblings.index(path))
        experts, out, in_ = (1, *present[path]) if len(present[path]) == 2 else present[path]
        sites[path] = Site(out, in_, ranks[path], experts, key)
    return sites


def count_parameters(
    model: Any,
    rank: int = 16,
    targets: str | Iterable[str] = ALL_LINEAR,
    method: str = "lora",
    target_parameters: Iterable[str] = (),
) -> Count:
    """Trainable parameters, all parameters and their ratio in percent: what PEFT's `get_nb_trainable_parameters` says.

    model: as in `config_of`. method: "full", "lora", "dora", "qlora" or "qdora" (4-bit weights are counted as numbers,
    not as bytes). DoRA adds a magnitude for each output. Other arguments as in `adapter_sites`.
    Raises ValueError or TypeError for anything unknown, and for DoRA on experts, which PEFT does not have.
    """
    check_method(method)
    sites = {} if method == "full" else adapter_sites(model, rank, targets, target_parameters)
    return count_sites(skeleton(model), sites, method)


def count_sites(model: nn.Module, sites: dict[str, Site], method: str) -> Count:
    """The count of a skeleton with adapters at `sites`."""
    total = trainable = _parameters(model)
    if method != "full":
        trainable = sum(site.parameters for site in sites.values())
        if method.endswith("dora"):
            if any(site.experts > 1 or path.endswith(".weight") for path, site in sites.items()):
                raise ValueError("DoRA is for linear layers, not for routers and experts: name the targets")
            trainable += sum(site.out for site in sites.values())
        total += trainable
    return Count(trainable, total, 100 * trainable / total)


@functools.lru_cache(maxsize=32)
def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
