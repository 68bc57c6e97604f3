"""What every explorer shares: controls above a picture, numbers below it, and a static form for where no kernel runs.

How events cannot pile up: the browser sends a control's next value only after the kernel has finished with the last
one, and keeps nothing but the latest in between. A slow machine shows fewer steps of a drag, never late ones.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from lora_lab.plots.output import CSS_PER_INCH, bundle, in_words
from lora_lab.widgets.canvas import BlitCanvas

LABELLED = {"description_width": "initial"}  # the default cuts a description after about twelve letters


def check_start(**starts: tuple[Any, Iterable]) -> None:
    """name=(value, allowed). Raises ValueError for a value that the control of that name cannot be set to."""
    for name, (value, allowed) in starts.items():
        if value not in (allowed := tuple(allowed)):
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def dropdown(name: str, options: Iterable, value: Any, width: int) -> ipywidgets.Dropdown:
    """width: in CSS pixels."""
    look = {"style": LABELLED, "layout": {"width": f"{width}px"}}
    return ipywidgets.Dropdown(options=list(options), value=value, description=name, **look)


def slider(name: str, options: Iterable, value: Any, width: int = 300) -> ipywidgets.SelectionSlider:
    """Over options, each a value or a pair (text, value)."""
    look = {"style": LABELLED, "layout": {"width": f"{width}px"}}
    return ipywidgets.SelectionSlider(options=list(options), value=value, description=name, **look)


class Explorer:
    """Base of the explorers. A subclass builds its figure, calls `_assemble`, and says what changes and in what words.

    _move()       set the moving artists to the controls' values; True if what stands still, like an axis, changed too
    readout()     the numbers, as HTML for the line below the picture
    alt()         one or two sentences that stand in for the picture as it is now"""

    canvas: BlitCanvas

    def _assemble(self, fig: Figure, moving: Sequence[Artist], controls: Sequence[ipywidgets.DOMWidget]) -> None:
        # Widget messages may arrive in another thread than the one that runs the cells.
        self._lock = threading.RLock()
        self.canvas = BlitCanvas(fig, moving)
        self._readout = ipywidgets.HTML(layout={"margin": "0 0 6px 8px"})
        row = ipywidgets.HBox(controls, layout={"flex_flow": "row wrap", "align_items": "center"})
        self.box = ipywidgets.VBox([row, self.canvas.image, self._readout])
        self._refresh(whole=True)
        for control in controls:
            control.observe(self._changed, names="value")

    def _move(self) -> bool | None:
        raise NotImplementedError

    def readout(self) -> str:
        """The numbers for the present values, as HTML."""
        raise NotImplementedError

    def alt(self) -> str:
        """The text alternative for the present values."""
        raise NotImplementedError

    def _changed(self, change: Any) -> None:
        self._refresh()

    def _refresh(self, whole: bool = False) -> None:
        with self._lock:
            whole = self._move() or whole
            self.canvas.redraw() if whole else self.canvas.update()
            self._readout.value = self.readout()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live view for JupyterLab, and a PNG with alt text for GitHub, print and a notebook without a kernel."""
        with self._lock:
            width = self.canvas.fig.get_size_inches()[0] * CSS_PER_INCH
            data, metadata = bundle(self.canvas.png(), self.alt(), width)
        return {**self.box._repr_mimebundle_(), **data}, metadata

    def _ipython_display_(self) -> None:
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        display(data, raw=True, metadata=metadata)
        display(in_words(self.alt()), raw=True)
