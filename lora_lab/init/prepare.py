"""The inits that look at data, in one call: run the model, keep the statistic, hand `inject` what it needs.

    inject(model, **prepare("corda", model, "all-linear", batches, rank=8, alpha=16))

What is kept is one statistic a layer (a covariance, a gradient, a few directions); `del` what `prepare` returned, or
never name it as above, and it is gone. Nothing stays on the model.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lora_lab.base import weight_shape
from lora_lab.init.check import check_rank
from lora_lab.init.collect import Collected, Targets, layers_of
from lora_lab.init.eva import eva_alphas, eva_ranks
from lora_lab.init.statistics import input_components, input_covariances, mean_gradients
from lora_lab.init.table import DATA_DRIVEN, INITS, NamedInit
from lora_lab.layer import check_settings

# name: (what collects its statistic, the argument of the init that takes it)
STATISTICS: dict[str, tuple[Callable[..., Collected], str]] = {
    "corda": (input_covariances, "covariance"),
    "eva": (input_components, "components"),
    "lora_ga": (mean_gradients, "gradient"),
}


class Prepared(dict):
    """Keyword arguments of `inject`: targets, rank, alpha, rslora, init.

    batches, tokens: how many the statistic took. peak_bytes: the most that it held at one time.
    """

    def __init__(self, arguments: dict[str, Any], collected: Collected):
        super().__init__(arguments)
        self.batches, self.tokens, self.peak_bytes = collected.batches, collected.tokens, collected.peak_bytes


def prepare(
    name: str,
    model: nn.Module,
    targets: Targets,
    batches: Iterable,
    rank: int,
    alpha: float,
    rslora: bool = False,
    **options: Any,
) -> Prepared:
    """Run `model` on `batches` for the init `name` ("corda", "eva" or "lora_ga"), and return the arguments of `inject`.

    targets, batches: as in `input_covariances`. options: those of the init's factors (`corda_factors`: method;
    `eva_factors`: whiten; `lora_ga_factors`: direction, stabilization, gamma, form, niter) and of what collects its
    statistic (`input_covariances`, `input_components`, `mean_gradients`).

    EVA deals out ranks: layers that get none are left out of the targets, and each alpha is such that the scale is
    that of `alpha` at `rank`.

    Raises TypeError or ValueError, before the model is run, for another name, an unknown option, or a rank, alpha or
    layer that `inject` would refuse; and while it runs as what collects does. The model is left as it was.
    """
    if name not in DATA_DRIVEN:
        raise ValueError(f"prepare is for {', '.join(DATA_DRIVEN)}; {name!r} needs no data: inject(..., init={name!r})")
    collect, argument = STATISTICS[name]
    layers = layers_of(model, targets)
    for path, layer in layers.items():
        try:
            check_settings(layer, rank, alpha, dropout=0.0)
            if name == "lora_ga":
                check_rank(2 * rank, min(weight_shape(layer)), "2·rank")
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None
    collecting, making = _split(options, argument, collect, INITS[name].factors)
    if name == "eva":
        collecting["rank"] = rank
    found = collect(model, layers, batches, **collecting)
    ranks, alphas = dict.fromkeys(found, rank), dict.fromkeys(found, alpha)
    if name == "eva":
        ranks = eva_ranks({path: c.explained for path, c in found.items()}, rank, options.get("rho", 2.0))
        alphas = eva_alphas(ranks, rank, alpha, rslora)
        ranks = {path: ranks[path] for path in alphas}
    init = {path: NamedInit(name, {argument: found[path], **making}) for path in alphas}
    arguments = {"targets": list(alphas), "rank": ranks, "alpha": alphas, "rslora": rslora, "init": init}
    return Prepared(arguments, found)


def _split(options: dict[str, Any], argument: str, *functions: Callable) -> list[dict[str, Any]]:
    """The options that each function has by name. Raises TypeError for one that none has."""
    given = {"model", "targets", "batches", "weight", "rank", "scale", argument}  # by `prepare` and `inject` themselves
    known = [set(inspect.signature(function).parameters) - given for function in functions]
    for option in options:
        if not any(option in names for names in known):
            raise TypeError(f"unknown option {option!r}: one of {', '.join(sorted(set.union(*known)))}")
    return [{key: value for key, value in options.items() if key in names} for names in known]
