"""From a figure to the notebook: a small PNG with the same bytes every time, and its text alternative.

Where the text alternative goes, and who reads it there:

    metadata["image/png"]["alt"]  nbconvert's classic template writes it as the <img>'s alt attribute
    text/plain                    every front end that shows no picture (terminals, diffs, nbconvert to text)
    a folded line "In words"      everyone else: JupyterLab 4.6 and nbconvert's default template (7.17) write no alt
                                  attribute for an output image, whatever its metadata say, and GitHub promises none

A text/html bundle with <img alt="..."> would be read everywhere, but JupyterLab strips embedded pictures from HTML
in a notebook that the reader has not run yet.
"""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from matplotlib.figure import Figure

from lora_lab.plots.style import styled

DPI = 180  # twice the 90 CSS pixels per inch at which it is shown: sharp on a high-density screen
CSS_PER_INCH = 100


@styled
def png(fig: Figure, dpi: float = DPI) -> bytes:
    """The figure as PNG bytes: at most 256 colours, no date, no software name, so equal figures give equal bytes."""
    from PIL import Image

    raw = io.BytesIO()
    fig.savefig(raw, format="png", dpi=dpi, metadata={"Software": None})
    small = io.BytesIO()
    # A palette halves the file. Dithering would only add noise for the compressor.
    Image.open(raw).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def bundle(picture: bytes, alt: str, width: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Jupyter mime bundle (data, metadata) of a PNG with alt text.

    width: CSS pixels. The height is left out, so that a narrow window shrinks the picture without distorting it."""
    data = {"image/png": base64.b64encode(picture).decode("ascii"), "text/plain": alt}
    return data, {"image/png": {"alt": alt, "width": round(width)}}


def in_words(alt: str) -> dict[str, str]:
    """Mime bundle of the folded line under a picture that holds its text alternative."""
    folded = f"<details><summary><small>In words</small></summary><p>{html.escape(alt)}</p></details>"
    return {"text/html": folded, "text/plain": f"In words: {alt}"}


def checked_alt(alt: str) -> str:
    """The alt text with its white space tidied. Raises ValueError when nothing is left."""
    tidy = " ".join(alt.split()) if isinstance(alt, str) else ""
    if not tidy:
        raise ValueError(f"alt is {alt!r}: say in a sentence or two what the picture shows")
    return tidy


def show(fig: Figure, alt: str) -> None:
    """Display a figure as PNG with its text alternative, then drop what it holds.

    alt: one or two sentences that stand in for the picture: what is drawn, and what one should see in it.
    Raises ValueError when alt is empty."""
    from IPython.display import display

    alt = checked_alt(alt)
    data, metadata = bundle(png(fig), alt, fig.get_size_inches()[0] * CSS_PER_INCH)
    display(data, raw=True, metadata=metadata)
    display(in_words(alt), raw=True)
    fig.clear()
