"""A figure whose moving parts alone are redrawn: background copied once, then restore, draw, encode.

redraw()   everything, and a new copy of the background        (about 80 ms of processor time)
update()   the background back, the moving artists on top of it (10 to 30 ms)
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from lora_lab import plots
from lora_lab.plots.output import CSS_PER_INCH
from lora_lab.plots.style import DIVERGING

LIVE_DPI = 150  # one and a half picture elements per CSS pixel: sharp enough, and quick to encode


class BlitCanvas:
    """Draws `fig` into an `ipywidgets.Image` (`.image`), quickly when only `moving` artists have changed.

    fig: laid out by fixed positions, because a layout engine would move the axes under the copied background.
    moving: the artists that change from one `update` to the next; everything else belongs to the background."""

    def __init__(self, fig: Figure, moving: Sequence[Artist]) -> None:
        self.fig = fig
        self.moving = sorted(moving, key=lambda artist: artist.get_zorder())
        for artist in self.moving:
            artist.set_animated(True)  # matplotlib then leaves it out of a full draw
        fig.set_dpi(LIVE_DPI)
        self._canvas = FigureCanvasAgg(fig)
        self._background = None
        width = round(fig.get_size_inches()[0] * CSS_PER_INCH)
        # An Image widget takes no alt text (and its tooltip breaks the view): the words stand in the line below it.
        self.image = ipywidgets.Image(
            format="png", layout={"width": f"{width}px", "max_width": "100%", "height": "auto"}
        )

    def redraw(self) -> None:
        """Draw the whole figure: at first, and whenever something has changed that does not move."""
        with plots.style():
            self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self.fig.bbox)
        self.update()

    def update(self) -> None:
        """Put the background back, draw the moving artists, and hand the picture to the browser."""
        if self._background is None:
            self.redraw()
            return
        self._canvas.restore_region(self._background)
        renderer = self._canvas.get_renderer()
        with plots.style():
            for artist in self.moving:
                artist.draw(renderer)
        self.image.value = self._encode()

    def png(self) -> bytes:
        """The figure as it stands now, as a picture to commit."""
        # A figure leaves animated artists out even when it is saved.
        for artist in self.moving:
            artist.set_animated(False)
        try:
            return plots.png(self.fig, dpi=LIVE_DPI)
        finally:
            for artist in self.moving:
                artist.set_animated(True)

    def _encode(self) -> bytes:
        buffer = io.BytesIO()
        frame = Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB")
        # With a palette known beforehand this takes a quarter of the time of the same picture in full colour, and
        # half of its bytes; at the lowest effort of compression, because the picture is looked at once.
        frame.quantize(palette=_palette(), dither=Image.Dither.NONE).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


@functools.cache
def _palette() -> Image.Image:
    """Every colour the house style can produce: the map of matrices, and each ink on its way to white."""
    inks = np.array([to_rgb(colour) for colour in plots.COLOURS if to_rgb(colour) != (0, 0, 0)])
    # All but white itself stop well short of it: the search for the nearest colour is coarse, and would take a pale
    # tint for white.
    tints = (inks + (1 - inks) * np.linspace(0, 0.92, 34)[:, None, None]).reshape(-1, 3)
    greys = np.append(np.linspace(0, 0.94, 16), 1)[:, None].repeat(3, axis=1)
    colours = np.concatenate([DIVERGING(np.arange(DIVERGING.N))[:, :3], tints, greys])
    palette = Image.new("P", (1, 1))
    palette.putpalette((255 * colours).round().astype(np.uint8).tobytes())
    return palette


def still(line: Line2D) -> Line2D:
    """A copy of a moving line that stands still: for a legend, which an animated line would be missing from."""
    copy = Line2D([], [])
    copy.update_from(line)
    copy.set_animated(False)
    return copy
