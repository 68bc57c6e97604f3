"""The rank explorer: W = U diag(s) Vᵀ (rows, cols), cut to its r leading terms, W_r = U[:, :r] diag(s[:r]) V[:, :r]ᵀ.

The relative error ‖W − W_r‖ / ‖W‖ is what remains of s: sqrt(Σ_{i>r} sᵢ² / Σ sᵢ²), and no matrix of rank r does
better (Eckart and Young, 1936). W_r is held in r (rows + cols) numbers instead of rows · cols.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lora_lab import plots
from lora_lab.plots.style import DIVERGING, WIDTH
from lora_lab.widgets.explorer import LABELLED, Explorer

HEIGHT, SIDE = 4.35, 1.8  # inches: the figure, and the tallest picture in it
KEPT, LEFT = plots.COLOURS[0], plots.COLOURS[3]


class Numbers(NamedTuple):
    """What the explorer says about one truncation."""

    error: float  # ‖W − W_r‖ / ‖W‖, Frobenius
    energy: float  # share of Σ s² that is kept
    parameters: int  # r (rows + cols)
    full: int  # rows · cols


class _Decomposed(NamedTuple):
    matrix: np.ndarray
    left: np.ndarray  # U diag(s), (rows, k)
    values: np.ndarray  # (k,)
    right: np.ndarray  # Vᵀ, (k, cols)
    tail: np.ndarray  # tail[r] = Σ_{i>r} sᵢ² / Σ sᵢ², (k + 1,)


def rank_explorer(matrices: Mapping[str, Tensor], rank: int = 4) -> RankExplorer:
    """Explore how well matrices are copied at each rank. Display the result, or leave it as a cell's last value.

    matrices: label -> (rows, cols), such as a real ΔW, `sample_matrices()`, or both. rank: where the slider starts.
    Raises ValueError when there is no matrix, or one has not two axes, is all zero or holds NaN or infinity."""
    return RankExplorer(matrices, rank)


class RankExplorer(Explorer):
    """See `rank_explorer`. `matrix` (Dropdown) and `rank` (IntSlider) are its controls, `numbers` what it computed."""

    def __init__(self, matrices: Mapping[str, Tensor], rank: int = 4) -> None:
        if not matrices:
            raise ValueError("matrices is empty: nothing to explore")
        self._matrices = {label: _checked(label, matrix) for label, matrix in matrices.items()}
        self._known: dict[str, _Decomposed] = {}
        first = next(iter(self._matrices))
        self._now = self._decomposed(first)
        if not 1 <= rank <= len(self._now.values):
            raise ValueError(f"rank {rank} is outside 1 to {len(self._now.values)}, the range of {first!r}")
        self.matrix = ipywidgets.Dropdown(
            options=list(self._matrices), description="matrix", style=LABELLED, layout={"width": "320px"}
        )
        self.rank = ipywidgets.IntSlider(
            rank, 1, len(self._now.values), description="rank r", style=LABELLED, layout={"width": "400px"}
        )
        with plots.style():
            fig = self._figure()
            self._fill()
        moving = [self._copy, self._rest, self._kept, self._left, self._copy_says, self._rest_says]
        self._assemble(fig, moving, [self.matrix, self.rank])

    @property
    def numbers(self) -> Numbers:
        """For the matrix and the rank that are set."""
        rows, cols = self._now.matrix.shape
        tail = float(self._now.tail[self.rank.value])
        return Numbers(tail**0.5, 1 - tail, self.rank.value * (rows + cols), rows * cols)

    def truncated(self) -> np.ndarray:
        """The copy that is shown, (rows, cols)."""
        r = self.rank.value
        return self._now.left[:, :r] @ self._now.right[:r]

    def readout(self) -> str:
        """The numbers for the present matrix and rank, as HTML."""
        n, (rows, cols) = self.numbers, self._now.matrix.shape
        return (
            f"<b>rank {self.rank.value}</b> of {len(self._now.values)}: relative error <b>{n.error:.1%}</b>, "
            f"energy kept <b>{n.energy:.1%}</b>.<br>Numbers to store: r (out + in) = {self.rank.value} × "
            f"({rows} + {cols}) = <b>{n.parameters:,}</b> instead of {rows} × {cols} = {n.full:,} "
            f"({n.parameters / n.full:.1%})"
        )

    def alt(self) -> str:
        """The text alternative for the present matrix and rank."""
        n, (rows, cols) = self.numbers, self._now.matrix.shape
        return (
            f"Three pictures of one scale: {self.matrix.value}, a matrix of {rows} × {cols}; its best copy of rank "
            f"{self.rank.value}, which keeps {n.energy:.1%} of the energy in {n.parameters:,} instead of {n.full:,} "
            f"numbers; and what is left over, {n.error:.1%} of the norm. Below them all {len(self._now.values)} "
            f"singular values, the first {self.rank.value} marked as kept."
        )

    def _changed(self, change: Any) -> None:
        with self._lock:
            if change["owner"] is self.rank:
                self._refresh()
                return
            self._now = self._decomposed(self.matrix.value)
            self._fill()
            self.rank.max = len(self._now.values)  # lowers the rank where the new matrix has fewer values
            self._refresh(whole=True)

    def _decomposed(self, label: str) -> _Decomposed:
        if label not in self._known:  # one decomposition per matrix; every truncation after that is a product
            self._known[label] = _decompose(self._matrices[label])
        return self._known[label]

    def _figure(self) -> Figure:
        fig = Figure(figsize=(WIDTH, HEIGHT))
        images, heads = [], []
        for i in range(3):
            left = 0.12 + 2.53 * i
            ax = fig.add_axes((left / WIDTH, 2.05 / HEIGHT, 2.3 / WIDTH, SIDE / HEIGHT), anchor="N")
            ax.axis("off")
            images.append(ax.imshow([[0.0]], cmap=DIVERGING, interpolation="nearest"))
            heads.append(fig.text((left + 1.15) / WIDTH, (2.1 + SIDE) / HEIGHT, "", ha="center", va="bottom"))
        self._whole, self._copy, self._rest = images
        self._whole_says, self._copy_says, self._rest_says = heads
        self._spectrum = fig.add_axes((0.62 / WIDTH, 0.5 / HEIGHT, 6.8 / WIDTH, 1.15 / HEIGHT))
        look = {"linestyle": "", "markersize": 4.5, "clip_on": False}
        (self._kept,) = self._spectrum.plot([], [], marker="o", color=KEPT, label="kept", **look)
        (self._left,) = self._spectrum.plot([], [], marker="o", color=LEFT, mfc="white", label="left over", **look)
        self._spectrum.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, handlelength=1)
        self._spectrum.set_title("singular values, largest first", size=10, weight="normal")
        self._spectrum.set(xlabel="index", ylabel="singular value")
        self._spectrum.xaxis.set_major_locator(MaxNLocator(integer=True))
        return fig

    def _fill(self) -> None:
        """Everything that changes with the matrix but not with the rank."""
        matrix, values = self._now.matrix, self._now.values
        rows, cols = matrix.shape
        limit = float(np.quantile(np.abs(matrix), 0.99)) or float(np.abs(matrix).max())
        for image in (self._whole, self._copy, self._rest):
            image.set(data=matrix, clim=(-limit, limit), extent=(0, cols, rows, 0))
            # A matrix more than twice as high as wide is squeezed: its shape is written above it.
            image.axes.set(xlim=(0, cols), ylim=(rows, 0), aspect="auto" if rows > 2 * cols else "equal")
        self._whole_says.set_text(f"{self.matrix.value}\n{rows} × {cols} numbers")
        self._spectrum.set(xlim=(0, len(values) + 1), ylim=(0, 1.05 * values[0]))

    def _move(self) -> None:
        r, n = self.rank.value, self.numbers
        copy, index = self.truncated(), np.arange(1, len(self._now.values) + 1)
        self._copy.set_data(copy)
        self._rest.set_data(self._now.matrix - copy)
        self._copy_says.set_text(f"its copy of rank {r}\n{n.energy:.1%} of the energy")
        self._rest_says.set_text(f"left over\n{n.error:.1%} of the norm")
        self._kept.set_data(index[:r], self._now.values[:r])
        self._left.set_data(index[r:], self._now.values[r:])


def _decompose(matrix: Tensor) -> _Decomposed:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    squares = values.square()
    tail = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)]) / squares.sum()
    return _Decomposed(*(t.numpy() for t in (matrix, left * values, values, right, tail)))


def sample_matrices(rows: int = 64, cols: int = 96, seed: int = 0) -> dict[str, Tensor]:
    """Two matrices at the ends of the range, (rows, cols): a picture of a word, and independent normal noise."""
    noise = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return {"a picture of a word": _word(rows, cols), "pure noise": noise}


def _word(rows: int, cols: int) -> Tensor:
    """The word LoRA as bright letters (1) on a dark ground (−1)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    fig = Figure(figsize=(cols / 100, rows / 100), dpi=100)
    canvas = FigureCanvasAgg(fig)
    size = 0.9 * min(cols / 2.9, rows)  # the word is about 2.9 letters' heights wide
    fig.text(0.5, 0.47, "LoRA", ha="center", va="center", weight="bold", family="DejaVu Sans", size=0.72 * size)
    canvas.draw()
    ink = 1 - torch.from_numpy(np.array(canvas.buffer_rgba())[..., 0]).float() / 255
    return 2 * ink - 1


def _checked(label: str, matrix: Tensor) -> Tensor:
    matrix = torch.as_tensor(matrix).detach().to("cpu", torch.float64)
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ValueError(f"{label!r} has shape {tuple(matrix.shape)}; two axes that are not empty are needed")
    if not matrix.isfinite().all():
        raise ValueError(f"{label!r} holds NaN or infinity, and has no singular values")
    if not matrix.any():
        raise ValueError(f"{label!r} is all zero, and its relative error is not defined")
    return matrix
