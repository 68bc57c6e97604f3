"""Which adapters a model uses: one, a mix, none; or another for every row of a batch.

Nothing is copied and no weight is touched: choosing costs nothing, and can be undone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real

from torch import nn

from lora_lab.many.batch import Rows
from lora_lab.many.install import adapters, refuse_folded, refuse_unknown, selection_of
from lora_lab.many.layer import Selection, multi_layers

Mix = str | Mapping[str, float] | None


def use(model: nn.Module, mix: Mix, train: bool = False) -> nn.Module:
    """From now on `model` answers with this adapter, this mix {name: weight}, or with none (None). Returns the model.

    W x + b + Σ wᵢ ΔWᵢ x: the updates are added up with their weights, which may be negative. To train, name one
    adapter: its A and B, and nothing else in the model, then require gradients.

    Raises TypeError or ValueError with nothing changed: an unknown name, a weight that is no finite number, a mix to
    train, or inside `with rows(...)`, whose rows say what is used.
    """
    selection = selection_of(model)
    refuse_folded(selection)
    weights = _weights(mix, adapters(model))
    if selection.rows is not None:
        raise ValueError("inside `with rows(...)` the rows say what is used: leave it first")
    if train and not isinstance(mix, str):
        raise ValueError(f"one adapter can be trained, by its name, got {mix!r}")
    _select(model, selection, weights, mix if train else None)
    return model


def active(model: nn.Module) -> dict[str, float]:
    """The mix in use, weight by name; empty if none is. Raises ValueError if `model` carries no adapters."""
    return dict(selection_of(model).mix)


@contextmanager
def using(model: nn.Module, mix: Mix) -> Iterator[nn.Module]:
    """`with using(model, "a"):` is `use` for the block; afterwards the model uses, and trains, what it did before."""
    selection = selection_of(model)
    before = selection.mix, selection.trained
    use(model, mix)
    try:
        yield model
    finally:
        mix, trained = before
        known = adapters(model)  # one of them may have been removed meanwhile
        mix = {name: weight for name, weight in mix.items() if name in known}
        _select(model, selection, mix, trained if trained in known else None)


@contextmanager
def rows(model: nn.Module, mixes: Sequence[Mix], copies: int = 1) -> Iterator[nn.Module]:
    """`with rows(model, ["a", None, {"a": 0.7, "b": 0.3}]):` row i of every batch uses mix i, in calls and `generate`.

    copies: of each row in a row, as `generate` makes them for `num_beams` or `num_return_sequences`; batches of
    len(mixes) rows are understood as well, as an encoder gets them.

    For inference: A and B get no gradient. The first batch stacks the factors that are asked for, in every layer,
    filled up to the largest rank: at most two copies of each, on average, are held until the block ends. Changing A or
    B in place inside goes unnoticed; `load_state_dict` and moves do not.

    Raises TypeError or ValueError with nothing changed: no rows, an unknown name, a weight that is no finite number, an
    adapter in training. A batch of another size is refused by the first layer that sees it, as are tokens that have
    been flattened into the first axis.
    """
    selection = selection_of(model)
    refuse_folded(selection)
    if isinstance(mixes, str | Mapping) or not isinstance(mixes, Sequence):
        raise TypeError(f"rows takes a list with a name, mix or None for each row, got {type(mixes).__name__}")
    if not mixes:
        raise ValueError("rows got an empty list: it takes a name, mix or None for each row")
    if isinstance(copies, bool) or not isinstance(copies, Integral) or copies < 1:
        raise ValueError(f"copies must be a whole number of at least 1, got {copies!r}")
    known = adapters(model)
    groups: dict[frozenset, tuple[dict[str, float], list[int]]] = {}
    for number, mix in enumerate(mixes):
        try:
            weights = _weights(mix, known)
        except (TypeError, ValueError) as error:
            raise type(error)(f"row {number}: {error}") from None
        groups.setdefault(frozenset(weights.items()), (weights, []))[1].append(number)
    if selection.trained is not None:
        raise ValueError(f"adapter {selection.trained!r} is in training: use(model, ...) without train first")
    before = selection.rows
    selection.rows = Rows(list(groups.values()), int(copies))
    try:
        yield model
    finally:
        selection.rows = before
        for layer in multi_layers(model).values():
            layer.plan = None


def _select(model: nn.Module, selection: Selection, mix: dict[str, float], trained: str | None) -> None:
    selection.mix, selection.trained = mix, trained
    for layer in multi_layers(model).values():
        for name, slot in layer.adapters.items():
            slot.requires_grad_(name == trained)


def _weights(mix: Mix, known: list[str]) -> dict[str, float]:
    """The mix as finite floats by known names, without those of weight 0."""
    if mix is None:
        return {}
    mix = {mix: 1.0} if isinstance(mix, str) else mix
    if not isinstance(mix, Mapping):
        raise TypeError(f"a mix is a name, a mapping of names to weights, or None, got {type(mix).__name__}")
    refuse_unknown(list(mix), known)
    for name, weight in mix.items():
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise ValueError(f"the weight of {name!r} must be a finite number, got {weight!r}")
    return {name: float(weight) for name, weight in mix.items() if weight}
