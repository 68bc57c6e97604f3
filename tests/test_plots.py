"""Figures show the numbers they are given, nothing in them is cut or covered, and `show` carries their alt text."""

import base64
import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lora_lab import plots
from lora_lab.plots.style import COLOURS, LINES, MARKERS

RANKS = [0, 1, 2, 4, 8, 16, 32, 64]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def curve(seed: int, n: int = 300) -> list[float]:
    return (4 * torch.exp(-torch.arange(n) / 60) + 0.3 * noise(n, seed=seed).abs() + 0.1).tolist()


LONG = "a label that is much longer than one would like it to be"
FIGURES = {
    "singular_values": lambda: plots.singular_values(
        {f"{LONG} {i}": torch.linalg.svdvals(noise(96, 64, seed=i)) for i in range(3)}, mark_rank=8
    ),
    "singular_values_linear": lambda: plots.singular_values({"one": torch.tensor([3.0, 2.0, 0.0])}, log=False),
    "loss_by_rank": lambda: plots.loss_by_rank(
        RANKS, {"top": curve(0, 8), "random": [curve(i, 8) for i in range(3)]}, {"base": 4.5, LONG: 0.1}
    ),
    "similarity_flat": lambda: plots.similarity_heatmap(noise(8, 64).sigmoid(), title=f"{LONG}, and then {LONG}"),
    "similarity_square": lambda: plots.similarity_heatmap(noise(8, 8).sigmoid()),
    "training_curves": lambda: plots.training_curves({f"run {i}": curve(i) for i in range(7)}, log=True, smooth=20),
    "bars": lambda: plots.bars(
        {"base": 0.0, "LoRA": (0.973, 0.012), LONG: 1.0}, "answers that are right", percent=True
    ),
    "bars_signed": lambda: plots.bars({"up": 12.5, "down": (-3.0, 1.0)}, "change of the norm"),
    "matrices": lambda: plots.matrices(
        [("W", noise(64, 48)), ("+", None), ("B", noise(64, 4)), ("·", None), ("A", noise(4, 48))]
    ),
    "data_flow": lambda: plots.data_flow(16, 4096, 11008, 64, 0.5, {"W": None, "A": 0.0, "B": 12.3456}),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[Figure, bytes]]:
    """Every figure with its PNG, so that it has been laid out."""
    figures = {name: make() for name, make in FIGURES.items()}
    return {name: (fig, plots.png(fig)) for name, fig in figures.items()}


def texts(fig: Figure) -> str:
    return "\n".join(text.get_text() for text in fig.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_and_no_legend_covers_data(drawn, name):
    fig, _ = drawn[name]
    renderer = FigureCanvasAgg(fig).get_renderer()
    needed, (width, height) = fig.get_tightbbox(renderer), fig.get_size_inches()  # of all that is drawn; inches
    assert min(needed.x0, needed.y0) > -0.02
    assert needed.x1 < width + 0.02
    assert needed.y1 < height + 0.02
    for legend in fig.legends:
        for ax in fig.axes:
            assert not legend.get_window_extent(renderer).overlaps(ax.get_window_extent(renderer))


@pytest.mark.parametrize("name", FIGURES)
def test_says_what_to_see_and_labels_its_axes(drawn, name):
    fig, _ = drawn[name]
    titles = [ax.get_title(loc="left") for ax in fig.axes] + [t.get_text() for t in fig.texts]
    assert any(titles) or name == "data_flow"
    if name not in ("matrices", "data_flow"):
        ax = fig.axes[0]
        assert ax.get_xlabel()
        assert ax.get_ylabel() or name.startswith("bars")  # the bars' own labels stand there


@pytest.mark.parametrize("name", FIGURES)
def test_png_is_small_and_the_same_each_time(drawn, name):
    _, first = drawn[name]
    picture = Image.open(io.BytesIO(first))
    assert first == plots.png(FIGURES[name]())
    assert len(first) < 80_000
    assert not picture.text  # no date, no version of a program
    assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


def test_no_figure_is_left_with_pyplot(drawn):
    assert matplotlib._pylab_helpers.Gcf.get_all_fig_managers() == []


def test_curves_differ_without_colour():
    marks = list(zip(LINES, MARKERS, strict=True))
    assert len(set(map(str, marks))) == len(COLOURS) == 7


def test_style_ignores_the_readers_settings_and_puts_them_back():
    expected = plots.png(FIGURES["bars"]())
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "black"}):
        assert plots.png(FIGURES["bars"]()) == expected
        with plots.style(), plots.style():
            pass
        assert matplotlib.rcParams["font.size"] == 25


def test_import_of_the_package_needs_no_notebook_packages():
    code = "import sys, lora_lab; print({'matplotlib', 'IPython', 'ipywidgets', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_singular_values_are_drawn_as_given_and_zeros_left_out():
    values = torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=torch.bfloat16, requires_grad=True)
    ax = plots.singular_values({"W": values}, mark_rank=2).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4, 2, 1, np.nan])
    assert ax.lines[1].get_xdata()[0] == 2.5
    assert ax.get_yscale() == "log"


def test_loss_by_rank_draws_mean_band_and_references():
    repeats = np.array([[3.0, 2.0, 1.0], [5.0, 2.5, 2.0]])
    fig = plots.loss_by_rank([1, 2, 8], {"random": repeats}, {"base": 6.0})
    ax = fig.axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), repeats.mean(0))
    band = ax.collections[0].get_paths()[0].vertices
    assert {tuple(p) for p in band} >= {(1, 3), (1, 5), (8, 1), (8, 2)}
    assert ax.lines[1].get_ydata()[0] == 6
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "8"]


def test_smoothing_is_a_mean_of_the_last_steps_and_says_so():
    values = noise(30).tolist()
    ax = plots.training_curves({"run": values}, smooth=4).axes[0]
    expected = [np.mean(values[max(0, i - 3) : i + 1]) for i in range(30)]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    assert "mean of the last 4 steps" in ax.get_ylabel().replace("\n", " ")


def test_training_curves_take_lists_mappings_and_histories():
    class History:
        steps, loss = (10, 20), (3.0, 2.0)

    ax = plots.training_curves({"a": [3.0, 2.0], "b": {"steps": [10, 20], "loss": [3.0, 2.0]}, "c": History()}).axes[0]
    assert [list(line.get_xdata()) for line in ax.lines] == [[1, 2], [10, 20], [10, 20]]
    assert all(list(line.get_ydata()) == [3, 2] for line in ax.lines)


def test_bars_have_their_lengths_and_write_them_out():
    fig = plots.bars({"base": 0.25, "LoRA": (0.9, 0.05)}, "right answers", percent=True)
    assert [patch.get_width() for patch in fig.axes[0].patches] == [0.25, 0.9]
    assert "25.0 %" in texts(fig)
    assert "90.0 % ± 5.0" in texts(fig)


def test_matrices_are_in_proportion_on_one_symmetric_scale():
    tall, wide = noise(60, 20), 3 * noise(10, 40)
    fig = plots.matrices([("tall", tall), ("wide", wide)])
    images = [ax.images[0] for ax in fig.axes if ax.images]
    sizes = [image.axes.get_window_extent().size / fig.dpi for image in images]
    units = [
        (size[0] / cols, size[1] / rows) for size, (rows, cols) in zip(sizes, (tall.shape, wide.shape), strict=True)
    ]
    np.testing.assert_allclose(units, units[0][0], rtol=1e-6)
    (low, high), other = (image.get_clim() for image in images)
    assert low == -high
    assert other == (low, high)
    np.testing.assert_allclose(images[1].get_array(), wide.double())
    assert "60 × 20" in texts(fig)


def test_data_flow_writes_shapes_scale_and_gradients():
    fig = plots.data_flow(5, 12, 7, 3, 1.5, {"W": None, "A": 0.0, "B": 0.125})
    written = texts(fig)
    for expected in ("(5, 12)", "(7, 12)", "(3, 12)", "(7, 3)", "(5, 3)", "(5, 7)", "s = 1.5", "keeps no gradient"):
        assert expected in written
    assert "‖∂L/∂A‖ = 0\n" in written + "\n"
    assert "‖∂L/∂B‖ = 0.125" in written


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plots.singular_values({}), "empty"),
        (lambda: plots.singular_values({"W": noise(3, 2)}), r"\(3, 2\)"),
        (lambda: plots.loss_by_rank([1, 2], {"a": [1.0, 2.0, 3.0]}), "3 values for 2 ranks"),
        (lambda: plots.similarity_heatmap(noise(4)), r"\(4,\)"),
        (lambda: plots.similarity_heatmap(torch.full((2, 3), 1.5)), "1.5"),
        (lambda: plots.training_curves({"a": [1.0]}, smooth=0), "smooth = 0"),
        (lambda: plots.training_curves({"a": {"steps": [1], "loss": [1.0, 2.0]}}), "2 values for 1 steps"),
        (lambda: plots.bars({}, "x"), "empty"),
        (lambda: plots.matrices([("+", None)]), "two axes"),
        (lambda: plots.matrices([("W", noise(3))]), r"\(3,\)"),
        (lambda: plots.data_flow(1, 2, 3, 1, 1.0, {"C": 0.0}), r"\['C'\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("alt", ["", "  \n", None])
def test_show_insists_on_alt_text(alt):
    with pytest.raises(ValueError, match="say in a sentence"):
        plots.show(plots.bars({"a": 1.0}, "x"), alt)


@pytest.fixture
def outputs(monkeypatch) -> list[dict]:
    """What `display` is given, in the form of a notebook's outputs."""
    shown: list[dict] = []

    def display(data, raw, metadata=None):
        shown.append({"output_type": "display_data", "data": data, "metadata": metadata or {}})

    monkeypatch.setattr("IPython.display.display", display)
    return shown


def test_show_displays_png_alt_text_and_words(outputs):
    plots.show(plots.bars({"a": 1.0}, "x"), "One bar:\n  a < b.")
    picture, words = outputs
    assert base64.b64decode(picture["data"]["image/png"]).startswith(b"\x89PNG")
    assert picture["data"]["text/plain"] == "One bar: a < b."
    assert picture["metadata"]["image/png"] == {"alt": "One bar: a < b.", "width": 760}
    assert "a &lt; b" in words["data"]["text/html"]


@pytest.mark.parametrize(("template", "expected"), [("classic", 'alt="A bar."'), ("lab", "<p>A bar.</p></details>")])
def test_the_words_survive_nbconvert(outputs, template, expected):
    import nbformat
    from nbconvert import HTMLExporter

    plots.show(plots.bars({"a": 1.0}, "x"), "A bar.")
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.from_dict(output) for output in outputs])
    page, _ = HTMLExporter(template_name=template).from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert expected in page
