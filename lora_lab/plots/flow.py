"""A LoRA layer drawn as a data flow: y = W x + s·B(A x), with shapes on the arrows and gradients at the boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch

from lora_lab.plots.style import COLOURS, GREY, WIDTH, styled

# The drawing is laid out in inches: height of the figure, then where things stand.
HEIGHT, TOP, MIDDLE, BOTTOM = 3.85, 2.8, 1.95, 1.1
X, A, W, B, S, PLUS, Y = 0.55, 1.85, 3.1, 3.85, 5.5, 6.15, 7.05
BOX, END, SIGN = (1.15, 0.84), (0.88, 0.56), (0.46, 0.46)  # width, height of a matrix, of x and y, of an operation
BESIDE = 0.12  # the gradient runs back this far outside the forward line
BACKWARD = COLOURS[3]

Point = tuple[float, float]


@styled
def data_flow(
    batch: int,
    in_features: int,
    out_features: int,
    rank: int,
    scale: float,
    grads: Mapping[str, float | None] | None = None,
    title: str = "One LoRA layer: what flows forward, and which matrices receive a gradient",
) -> Figure:
    """The diagram of one LoRA layer.

    Shapes: x (batch, in), W (out, in) frozen, A (rank, in), B (out, rank), y (batch, out).
    grads: "W", "A", "B" -> norm of that matrix's gradient, written at its box; None says that it has none.
    Without grads the boxes say only whether they receive one. Raises ValueError for an unknown key."""
    unknown = set(grads or {}) - {"W", "A", "B"}
    if unknown:
        raise ValueError(f"grads has {sorted(unknown)}; only W, A and B are drawn")
    fig = Figure(figsize=(WIDTH, HEIGHT))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.axis("off")
    ax.text(0.1, HEIGHT - 0.12, title, weight="bold", size=11, va="top")
    for name, place, shape in (
        ("W", (W, TOP), (out_features, in_features)),
        ("A", (A, BOTTOM), (rank, in_features)),
        ("B", (B, BOTTOM), (out_features, rank)),
    ):
        _matrix(ax, name, place, shape, grads)
    _ends_and_signs(ax, (batch, in_features), (batch, out_features), scale)
    _forward(ax, (batch, rank), (batch, out_features))
    _backward(ax)
    return fig


def _matrix(
    ax: Axes, name: str, place: Point, shape: tuple[int, int], grads: Mapping[str, float | None] | None
) -> None:
    frozen = name == "W"
    look = {"facecolor": "#EEEEEE", "edgecolor": GREY, "linestyle": "--", "linewidth": 1.2}
    if not frozen:  # told apart by the border as well, for eyes and printers without colour
        look = {"facecolor": "#D8EAF6", "edgecolor": COLOURS[0], "linestyle": "-", "linewidth": 2.4}
    _box(ax, place, BOX, **look)
    x, y = place
    ax.text(x, y + 0.24, name, ha="center", va="center", weight="bold", zorder=4)
    ax.text(x, y, str(shape), ha="center", va="center", size=9, zorder=4)
    ax.text(x, y - 0.24, "frozen" if frozen else "trained", ha="center", va="center", size=9, zorder=4)
    if grads is None or name not in grads:
        says = "keeps no gradient" if frozen else f"receives ∂L/∂{name}"
    else:
        says = "keeps no gradient" if grads[name] is None else f"‖∂L/∂{name}‖ = {grads[name]:.3g}"
    ax.text(x, y - BOX[1] / 2 - 0.06, says, ha="center", va="top", size=9.5, color="#A04A00")


def _ends_and_signs(ax: Axes, x_shape: tuple[int, int], y_shape: tuple[int, int], scale: float) -> None:
    for name, x, shape in (("x", X, x_shape), ("y", Y, y_shape)):
        _box(ax, (x, MIDDLE), END, facecolor="white", edgecolor="#222222", linewidth=1.0)
        ax.text(x, MIDDLE + 0.12, name, ha="center", va="center", weight="bold", zorder=4)
        ax.text(x, MIDDLE - 0.12, str(shape), ha="center", va="center", size=9, zorder=4)
    for sign, place in (("× s", (S, BOTTOM)), ("+", (PLUS, MIDDLE))):
        ax.add_patch(Circle(place, SIGN[0] / 2, facecolor="white", edgecolor="#222222", linewidth=1.2, zorder=3))
        ax.text(*place, sign, ha="center", va="center", zorder=4)
    ax.text(S, BOTTOM - BOX[1] / 2 - 0.06, f"s = {scale:g}", ha="center", va="top", size=9.5)


def _box(ax: Axes, place: Point, size: Point, **look: object) -> None:
    corner = (place[0] - size[0] / 2, place[1] - size[1] / 2)
    ax.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.08", zorder=3, **look))


def _forward(ax: Axes, low: tuple[int, int], out: tuple[int, int]) -> None:
    _arrow(ax, [(X, MIDDLE + END[1] / 2), (X, TOP), (W - BOX[0] / 2, TOP)])
    _arrow(ax, [(X, MIDDLE - END[1] / 2), (X, BOTTOM), (A - BOX[0] / 2, BOTTOM)])
    _arrow(ax, [(W + BOX[0] / 2, TOP), (PLUS, TOP), (PLUS, MIDDLE + SIGN[1] / 2)])
    _arrow(ax, [(A + BOX[0] / 2, BOTTOM), (B - BOX[0] / 2, BOTTOM)])
    _arrow(ax, [(B + BOX[0] / 2, BOTTOM), (S - SIGN[0] / 2, BOTTOM)])
    _arrow(ax, [(S + SIGN[0] / 2, BOTTOM), (PLUS, BOTTOM), (PLUS, MIDDLE - SIGN[1] / 2)])
    _arrow(ax, [(PLUS + SIGN[0] / 2, MIDDLE), (Y - END[0] / 2, MIDDLE)])
    for text, x, y in (
        (f"W x  {out}", (W + BOX[0] / 2 + PLUS) / 2, TOP - 0.16),
        (f"A x\n{low}", (A + B) / 2, BOTTOM + 0.2),
        (f"B A x\n{out}", (B + BOX[0] / 2 + S - SIGN[0] / 2) / 2, BOTTOM + 0.2),
    ):
        ax.text(x, y, text, ha="center", va="center", size=9, zorder=5)


def _backward(ax: Axes) -> None:
    """From y back to x on both paths: the gradient passes through the frozen W too, it only is not kept there."""
    up, down = TOP + BESIDE, BOTTOM - BESIDE
    right, left = PLUS + BESIDE, X - BESIDE
    for path in (
        [(Y - END[0] / 2, MIDDLE - BESIDE), (PLUS + 0.2, MIDDLE - BESIDE)],
        [(right, MIDDLE + 0.2), (right, up), (W + BOX[0] / 2, up)],
        [(W - BOX[0] / 2, up), (left, up), (left, MIDDLE + END[1] / 2)],
        [(right, MIDDLE - 0.2), (right, down), (S + 0.2, down)],
        [(S - 0.2, down), (B + BOX[0] / 2, down)],
        [(B - BOX[0] / 2, down), (A + BOX[0] / 2, down)],
        [(A - BOX[0] / 2, down), (left, down), (left, MIDDLE - END[1] / 2)],
    ):
        _arrow(ax, path, color=BACKWARD, linestyle=(0, (3, 2)))
    key = [Line2D([], [], color="#222222", marker=""), Line2D([], [], color=BACKWARD, ls=(0, (3, 2)), marker="")]
    ax.legend(key, ["forward", "gradient on its way back"], loc="lower center", ncols=2, borderaxespad=0.3)


def _arrow(ax: Axes, path: Sequence[Point], color: str = "#222222", linestyle: object = "-") -> None:
    ax.plot(*zip(*path, strict=True), color=color, linestyle=linestyle, marker="", linewidth=1.3, zorder=2)
    look = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11, "linewidth": 0}
    (x, y), end = path[-2], path[-1]
    near = (end[0] - 0.02 * _sign(end[0] - x), end[1] - 0.02 * _sign(end[1] - y))
    ax.annotate("", xy=end, xytext=near, arrowprops=look, zorder=4)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
