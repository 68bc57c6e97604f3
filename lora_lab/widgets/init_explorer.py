"""The init explorer: where an adapter starts in W, what becomes of the base, and how far the sum is from W.

    share of A in the direction v:  ‖A v‖² / ‖A‖²        v the right singular vectors of W, from the largest value down
    share of B in the direction u:  ‖Bᵀ u‖² / ‖B‖²       u the left ones
    step 0:  ‖W - (base + s·BA)‖ / ‖W‖                   0: the first step begins from the function that W computes

Singular vectors of every layer are found once, when it is first chosen; after that a control costs the init itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from lora_lab import plots
from lora_lab.base import is_quantized, oriented_weight, weight_shape
from lora_lab.init.costs import Cost, setup_cost
from lora_lab.init.prepare import STATISTICS
from lora_lab.init.start import Start
from lora_lab.init.table import DATA_DRIVEN, INITS, NamedInit, named
from lora_lab.plots.inits import BASES as BECOMES
from lora_lab.plots.inits import OUTSIDE, directions, share_axes, shares
from lora_lab.plots.style import COLOURS, GREY, WIDTH
from lora_lab.quantize import quantize
from lora_lab.spectrum import factor_singular_values
from lora_lab.targets import find_targets
from lora_lab.widgets.explorer import Explorer, dropdown, slider

HEIGHT = 3.15  # inches
GROUPS = 16
RANKS, ALPHAS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32, 64, 128)
BASES = {"fp32": None, "NF4": "nf4"}
MOST = "loftq 5"  # LoftQ with more than its one iteration
LOWEST = 1e-3  # end of the axis of singular values; what is smaller stands there


class Numbers(NamedTuple):
    """What the explorer says about one start. Norms are Frobenius, over that of W."""

    scale: float  # s = alpha / r
    removed: float  # ‖W - base‖ / ‖W‖
    update: float  # ‖s·BA‖ / ‖W‖
    distance: float  # ‖W - (base + s·BA)‖ / ‖W‖
    moves: str  # the factors that the first step changes: "A", "B" or "A and B"
    cost: Cost  # of setting this one layer up


class _Layer(NamedTuple):
    weight: Tensor  # (out, in), fp32
    U: Tensor
    s: Tensor
    Vh: Tensor


class _Shown(NamedTuple):
    """A: shares (groups + 1,) or None, B alike; values of base and of s·BA, from large to small; refused: why not."""

    numbers: Numbers | None
    A: np.ndarray | None
    B: np.ndarray | None
    base: np.ndarray
    update: np.ndarray
    refused: str = ""


def init_explorer(
    model: nn.Module, batches: Iterable[dict] | None = None, statistics: Mapping[str, Mapping[str, Any]] | None = None
) -> InitExplorer:
    """Explore how each init starts, for each linear layer of `model`, which is left as it is.

    batches: on which the data-driven inits (CorDA, EVA, LoRA-GA) look at the model, some seconds for 256 examples.
    statistics: what they need, already gathered, in place of batches: {"corda": {layer: covariance}, "eva": {layer:
    components}, "lora_ga": {layer: gradient}}, some or all. With neither these inits are not offered.
    Raises ValueError where there is no linear layer or one is quantized (its W is gone), both are given, or a statistic
    is of no init or of too few layers.
    """
    if batches is not None and statistics is not None:
        raise ValueError("batches and statistics are both given: one of them, please")
    layers = find_targets(model, "all-linear")
    _refuse_quantized(layers)
    if batches is not None:
        rows, rank = list(batches), 8  # EVA gathers twice as many components, and more of them take long to settle
        more = {"eva": {"rank": min(rank, *_sides(layers))}}
        statistics = {
            name: collect(model, "all-linear", rows, progress=False, **more.get(name, {}))
            for name, (collect, _) in STATISTICS.items()
        }
    return InitExplorer(layers, statistics or {})


class InitExplorer(Explorer):
    """See `init_explorer`. Controls: `init`, `layer`, `base` (Dropdowns), `rank` and `alpha` (SelectionSliders)."""

    def __init__(self, layers: Mapping[str, nn.Module], statistics: Mapping[str, Mapping[str, Any]]) -> None:
        if unknown := [name for name in statistics if name not in DATA_DRIVEN]:
            raise ValueError(f"statistics for {', '.join(unknown)}: they are of {', '.join(DATA_DRIVEN)}")
        for name, found in statistics.items():
            if missing := [path for path in layers if path not in found]:
                raise ValueError(f"the statistic of {name} lacks {len(missing)} layers, the first is {missing[0]}")
        _refuse_quantized(layers)
        self._modules, self._statistics = dict(layers), statistics
        self._layers: dict[str, _Layer] = {}
        smallest = min(_sides(layers))
        ranks = [rank for rank in RANKS if rank <= smallest]
        self._groups = min(GROUPS, smallest)
        names = [name for name in INITS if name not in DATA_DRIVEN or name in statistics]
        names += [MOST] + (["corda kpm"] if "corda" in statistics else [])
        first = next((path for path in layers if path.endswith("1.mlp.down_proj")), next(iter(layers)))
        self.init = dropdown("init", sorted(names, key=_order), "pissa", 190)
        self.layer = dropdown("layer", layers, first, 330)
        self.base = dropdown("base", BASES, "fp32", 130)
        self.rank = slider("rank r", ranks, ranks[min(3, len(ranks) - 1)], 300)
        self.alpha = slider("alpha", ALPHAS, 16, 300)
        with plots.style():
            fig = self._figure(max(_sides(layers)))
        moving = [*self._bars["A"], *self._bars["B"], *self._chance.values(), *self._zero.values()]
        self._assemble(
            fig, [*moving, *self._values, self._title], [self.init, self.layer, self.base, self.rank, self.alpha]
        )

    @property
    def numbers(self) -> Numbers | None:
        """For the settings as they are; None where this init is refused."""
        return self._computed().numbers

    def readout(self) -> str:
        shown = self._computed()
        if shown.refused:
            return f"<b>{self.init.value} cannot start here</b>: {shown.refused}"
        n = shown.numbers
        trains = "" if self._recipe.trains == "AB" else f" (only {self._recipe.trains} is ever trained)"
        tokens = f", data: {n.cost.tokens:,} tokens or more" if n.cost.tokens else ""
        return (
            f"s = {n.scale:g}. The base becomes <b>{self._base_words()}</b>. Of ‖W‖: ‖W − base‖ is "
            f"<b>{_percent(n.removed)}</b>, ‖s·BA‖ is {_percent(n.update)}.<br>At step 0 the sum base + s·BA is "
            f"<b>{_percent(n.distance)}</b> of ‖W‖ away from W. The first step changes "
            f"<b>{n.moves}</b>{trains}.<br>Set-up of this layer: {n.cost.flops / 1e6:,.3g} MFLOP, "
            f"{n.cost.bytes / 1e6:.3g} MB beside the model{tokens}."
        )

    def alt(self) -> str:
        shown, where = self._computed(), f"{self.layer.value} at rank {self.rank.value} and alpha {self.alpha.value}"
        if shown.refused:
            return f"Three empty panels: {self.init.value} cannot start {where}, since {shown.refused}."
        n = shown.numbers
        parts = [f"{name} {_where(share)}" for name, share in (("A", shown.A), ("B", shown.B))]
        return (
            f"Three panels: the init {self.init.value} on {where}, base in {self.base.value}. Bars: over W's singular "
            f"directions, {parts[0]} and {parts[1]}. Lines: singular values of W, of the base after the init, and of "
            f"s·BA; the base becomes {self._base_words()} and differs from W by {n.removed:.1%}. Before the first step "
            f"the sum is {_percent(n.distance)} of the norm away from W."
        )

    @property
    def _recipe(self) -> Any:
        return INITS[self.init.value.partition(" ")[0]]

    def _base_words(self) -> str:
        what = BECOMES[self._recipe.base].partition(",")[0].removeprefix("codes of\n")
        return f"the NF4 codes of {what}" if self.base.value == "NF4" else what

    def _layer(self, path: str) -> _Layer:
        if path not in self._layers:
            weight = oriented_weight(self._modules[path]).detach().float().contiguous()
            self._layers[path] = _Layer(weight, *(part.float() for part in directions(weight)))
        return self._layers[path]

    def _start(self, path: str, weight: Tensor, rank: int, scale: float) -> Start:
        kind, _, option = self.init.value.partition(" ")
        options: dict[str, Any] = {}
        if kind in DATA_DRIVEN:
            options[STATISTICS[kind][1]] = self._statistics[kind][path]
        if option:
            options |= {"method": option} if kind == "corda" else {"iterations": int(option)}
        init: Callable[..., Start] = NamedInit(kind, options) if options else named(kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return init(weight, rank, scale)

    @torch.no_grad()
    def _computed(self) -> _Shown:
        """Kept until a control moves."""
        key = self.init.value, self.layer.value, self.base.value, self.rank.value, self.alpha.value
        if getattr(self, "_key", None) != key:
            self._known, self._key = self._compute(), key
        return self._known

    def _compute(self) -> _Shown:
        path, rank = self.layer.value, self.rank.value
        scale = self.alpha.value / rank
        W, U, s, Vh = self._layer(path)
        nothing = np.array([])
        if self._recipe.base == "quantized" and self.base.value == "fp32":
            return _Shown(None, None, None, nothing, nothing, "it is about the error of 4 bits; choose the base NF4")
        try:
            start = self._start(path, W, rank, scale)
        except ValueError as error:
            return _Shown(None, None, None, nothing, nothing, str(error))
        base = W if start.shift is None else W - scale * (start.shift[1] @ start.shift[0])
        if self.base.value == "NF4":
            base = quantize(base, "nf4").dequantize().float()
        update, norm = scale * (start.B @ start.A), W.norm()
        sizes = [float(part.norm() / norm) for part in (W - base, update, W - base - update)]
        found = shares(U, Vh, start.A, start.B, self._groups)
        moves = "A and B" if found.A is not None and found.B is not None else "A" if found.A is None else "B"
        numbers = Numbers(
            scale, *sizes, moves, setup_cost(self.init.value.partition(" ")[0], {path: tuple(W.shape)}, rank)
        )
        values = s if base is W else torch.linalg.svdvals(base)
        of_update = factor_singular_values(start.A, start.B, scale)
        return _Shown(numbers, found.A, found.B, values.numpy(), of_update.numpy() if update.any() else nothing)

    def _figure(self, largest: int) -> Figure:
        fig = Figure(figsize=(WIDTH, HEIGHT))
        bottom, high = 0.62 / HEIGHT, 1.95 / HEIGHT
        axes = [
            fig.add_axes((left / WIDTH, bottom, wide / WIDTH, high))
            for left, wide in ((0.5, 1.95), (2.65, 1.95), (5.3, 2.2))
        ]
        self._bars, self._chance, self._zero = {}, {}, {}
        x = np.append(np.arange(self._groups), self._groups + OUTSIDE)
        for ax, name, words in zip(
            axes, "AB", ("A: right singular directions", "B: left singular directions"), strict=False
        ):
            share_axes(ax, self._groups, outside=True)
            self._bars[name] = ax.bar(x, 0 * x, width=0.9, color=COLOURS[0 if name == "A" else 3]).patches
            (self._chance[name],) = ax.plot([], [], color="black", ls=":", lw=1.2, marker="")
            self._zero[name] = ax.text(0.5, 0.5, "", transform=ax.transAxes, ha="center", color=GREY)
            ax.set_title(words, size=9.5)
        axes[1].set_yticklabels([])
        axes[0].annotate(
            "bars: share of the factor's squared norm (square-root scale)\ndotted: a random direction",
            (0, 0),
            (0, -17),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            size=8.5,
            color=GREY,
        )
        self._values = self._spectra(axes[2], largest)
        self._title = fig.text(0.012, 0.975, "", weight="bold", size=11, va="top")
        return fig

    def _spectra(self, ax: Axes, largest: int) -> list[Any]:
        styles = [("W", GREY, ":", 2.2), ("base", COLOURS[0], "-", 1.5), ("s·BA", COLOURS[3], "--", 1.8)]
        lines = [ax.plot([], [], label=label, color=c, ls=ls, lw=lw, marker="")[0] for label, c, ls, lw in styles]
        lines[2].set(marker="o", markersize=3)  # a line of one value would not be seen
        ax.set(yscale="log", xscale="log", xlim=(0.9, 1.1 * largest), ylim=(LOWEST * 0.8, 1e2))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.set_xlabel("number of the singular value\n(zero stands at the bottom)", size=9)
        ax.set_title("Singular values", size=9.5)
        ax.legend(loc="lower left", fontsize=8.5, handlelength=2)
        return lines

    def _move(self) -> None:
        shown, (W, _, s, _) = self._computed(), self._layer(self.layer.value)
        k = min(W.shape)
        for name, share, width in (("A", shown.A, W.shape[1]), ("B", shown.B, W.shape[0])):
            for bar, height in zip(
                self._bars[name], np.zeros(self._groups + 1) if share is None else share, strict=True
            ):
                bar.set_height(height)
            level = [] if share is None else [k / self._groups / width] * 2
            self._chance[name].set_data([-0.5, self._groups - 0.5] if level else [], level)
            self._zero[name].set_text("refused" if shown.refused else f"{name} = 0" if share is None else "")
        for line, values in zip(self._values, (s.numpy(), shown.base, shown.update), strict=True):
            line.set_data(np.arange(1, len(values) + 1), np.maximum(values, LOWEST))
        end = "cannot start here" if shown.refused else f"{_percent(shown.numbers.distance)} away from W at step 0"
        where = self.layer.value.removeprefix("model.")
        self._title.set_text(f"{self.init.value} on {where}, rank {self.rank.value}: {end}")


def _sides(layers: Mapping[str, nn.Module]) -> list[int]:
    """min(out, in) of each layer."""
    return [min(weight_shape(layer)) for layer in layers.values()]


def _refuse_quantized(layers: Mapping[str, nn.Module]) -> None:
    if codes := [path for path, layer in layers.items() if is_quantized(layer)]:
        raise ValueError(
            f"{codes[0]} is quantized, {len(codes)} of {len(layers)} layers are: W is gone. Give the model as it was "
            "before; the control 'base' shows it in NF4"
        )


def _order(name: str) -> float:
    """As in the table of inits, a variant behind its own."""
    kind, _, option = name.partition(" ")
    return list(INITS).index(kind) + (0.5 if option else 0)


def _percent(share: float) -> str:
    """'0 %' for what is rounding alone."""
    return "0 %" if share < 1e-5 else f"{100 * share:.2g} %"


def _where(share: np.ndarray | None) -> str:
    if share is None:
        return "is zero"
    most = int(share[:-1].argmax())
    return f"has {share[0]:.0%} in the largest group, {share[-2]:.0%} in the smallest, {share[-1]:.0%} outside" + (
        "" if most in (0, len(share) - 2) else f", and most, {share[most]:.0%}, in group {most + 1}"
    )
