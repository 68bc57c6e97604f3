"""The advisor as a form: a case above, and below it which init to take, with the reasons and how good each one is.

All judgement is `lora_lab.init.advisor`'s; the form asks and shows. Static, it is a table of the case as it is set.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets
from torch import nn

from lora_lab.init.advisor import KINDS, WEIGHT, Advice, Ranking, advise
from lora_lab.init.costs import Shapes
from lora_lab.init.evidence import Reason
from lora_lab.models import load_base
from lora_lab.widgets.explorer import LABELLED, check_start, dropdown

COURSE = "the course's base model"
RANKS = (1, 2, 3, 4, 8, 16, 32, 64, 128)
EXAMPLES = (0, 20, 200, 2_000, 20_000, 200_000)
LENGTHS = (16, 64, 256, 1024)
UNLIMITED = "no limit"
MEMORY = {UNLIMITED: math.inf, "nothing": 0, "1 MB": 1e6, "100 MB": 1e8, "1 GB": 1e9, "10 GB": 1e10, "100 GB": 1e11}
FLOPS = {UNLIMITED: math.inf, "1 GFLOP": 1e9, "1 TFLOP": 1e12, "1 PFLOP": 1e15}
LAYERS = {kind if kind == "linear" else f"linear and {kind}": ("linear", kind) for kind in KINDS}
LAYERS["linear"] = ("linear",)
QUESTIONS = {  # argument of `advise`: what the form asks
    "quantized": "base held in 4 or 8 bits",
    "original_weights": "its full-precision weights are at hand",
    "keep_knowledge": "what the base knows must survive",
    "short_run": "only some dozens of steps",
    "several_adapters": "other adapters live on the same base",
}
MARKS = {  # evidence: what it means, in order of weight
    "fact": "follows from how the init works",
    "measured": "in this course, on its small base",
    "published": "a paper's or PEFT's claim, not measured here",
    "folklore": "often said, no measurement known to us",
}
SIGNS = {1: "+", -1: "−", 0: "✕"}
Model = nn.Module | Shapes


def advisor_form(models: Mapping[str, Model | Callable[[], Model]] | Model | None = None, **start: Any) -> AdvisorForm:
    """A form over `advise`. Display the result, or leave it as a cell's last value.

    models: name -> a model, its shapes by path, or a function that makes one of them when it is first chosen; or one
    model alone; None is the course's base. start: the values that the form begins with, named as the arguments of
    `advise`: rank, examples, tokens_per_example, memory_bytes, flops, layer_kinds, and the five questions.
    Raises ValueError for a name that the form does not have, or a value that its control cannot be set to.
    """
    if models is None:
        models = {COURSE: lambda: load_base(device="cpu")[0]}
    elif isinstance(models, nn.Module) or not models or isinstance(next(iter(models.values())), tuple | list):
        models = {"this model": models}
    return AdvisorForm(models, start)


class AdvisorForm:
    """See `advisor_form`. `controls` holds its widgets by argument; `ranking()` is what `advise` says to them."""

    def __init__(self, models: Mapping[str, Any], start: Mapping[str, Any]) -> None:
        self._models, self._made = dict(models), {}
        options: dict[str, Any] = {
            "rank": (RANKS, 8, "rank r", 140),
            "examples": ([(f"{n:,}", n) for n in EXAMPLES], 2_000, "training examples at hand", 270),
            "tokens_per_example": ([(f"{n:,}", n) for n in LENGTHS], 64, "tokens in each", 190),
            "memory_bytes": (list(MEMORY.items()), math.inf, "memory for the set-up", 260),
            "flops": (list(FLOPS.items()), math.inf, "arithmetic for the set-up", 270),
            "layer_kinds": (list(LAYERS.items()), ("linear",), "layers to adapt", 260),
        }
        asked = dict.fromkeys(QUESTIONS, False) | {"original_weights": True}
        if unknown := [name for name in start if name not in options and name not in asked]:
            raise ValueError(f"the form does not ask for {', '.join(unknown)}: {', '.join([*options, *asked])}")
        self.model = dropdown("model", self._models, next(iter(self._models)), 330)
        self.controls: dict[str, Any] = {}
        for name, (choices, value, words, width) in options.items():
            allowed = [each[1] if isinstance(each, tuple) else each for each in choices]
            check_start(**{name: (start.get(name, value), allowed)})
            self.controls[name] = dropdown(words, choices, start.get(name, value), width)
        for name, words in QUESTIONS.items():
            check_start(**{name: (start.get(name, asked[name]), (True, False))})
            look = {"indent": False, "style": LABELLED, "layout": {"width": "290px"}}
            self.controls[name] = ipywidgets.Checkbox(value=start.get(name, asked[name]), description=words, **look)
        self._answer = ipywidgets.HTML(layout={"margin": "4px 0 0 8px"})
        row = ipywidgets.HBox([self.model, *self.controls.values()], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([row, self._answer])
        self._changed()
        for control in (self.model, *self.controls.values()):
            control.observe(self._changed, names="value")

    def ranking(self) -> Ranking:
        """What `advise` says. Raises ValueError as it does, such as for a rank above the smallest weight's."""
        name = self.model.value
        if name not in self._made:
            model = self._models[name]
            self._made[name] = model() if callable(model) and not isinstance(model, nn.Module) else model
        settings = {name: control.value for name, control in self.controls.items()}
        return advise(self._made[name], settings.pop("rank"), **settings)

    def html(self) -> str:
        """The answer: what to take, the order of the rest, what cannot be used; or why the case is refused."""
        try:
            ranking = self.ranking()
        except ValueError as error:
            return f"<p><b>This case is refused:</b> {html.escape(str(error))}</p>"
        usable, ruled_out = ([each for each in ranking if each.possible is kind] for kind in (True, False))
        best = usable[0]
        level = [each.name for each in usable[1:] if each.score == best.score]
        ties = f" As much speaks for {', '.join(level)}, which cost more to set up." if level else ""
        marks = "; ".join(f"<b>{mark}</b> ({WEIGHT[mark]:g}): {words}" for mark, words in MARKS.items())
        head = f"<tr>{_cell('th', 'init')}<th>score</th>{_cell('th', 'reasons')}{_cell('th', 'set-up')}</tr>"
        rows = "".join(_row(each, f"{each.score:+.2f}".replace("-", "−")) for each in usable)
        rest = "".join(_row(each, "✕") for each in ruled_out)
        out = f"<tr>{_cell('td colspan=4', '<b>Cannot be used here</b>')}</tr>{rest}" if rest else ""
        return (
            f"<p>Take <b>{best.name}</b>.{ties}</p><table>{head}{rows}{out}</table>"
            f"<p><small>Marks and their weights in the score: {marks}.</small></p>"
        )

    def static_html(self) -> str:
        """The case in words, and the answer. Needs no style sheet."""
        return f"<div><p>{html.escape(self.case())}</p>{self.html()}</div>"

    def text(self) -> str:
        """The same for a front end that shows only text."""
        try:
            return f"{self.case()}\n{self.ranking()}"
        except ValueError as error:
            return f"{self.case()}\nThis case is refused: {error}"

    def case(self) -> str:
        """The settings in a sentence."""
        said = [f"{c.description}: {c.label}" for c in self.controls.values() if isinstance(c, ipywidgets.Dropdown)]
        yes = [f"{words}: {'yes' if self.controls[name].value else 'no'}" for name, words in QUESTIONS.items()]
        return f"The case. {'; '.join([f'model: {self.model.value}', *said, *yes])}."

    def _changed(self, change: Any = None) -> None:
        self._answer.value = self.html()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return {**self.box._repr_mimebundle_(), "text/html": self.static_html(), "text/plain": self.text()}

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)


def _row(advice: Advice, score: str) -> str:
    reasons = sorted(advice.reasons, key=lambda reason: (reason.sign != 0, -WEIGHT[reason.evidence]))
    if not advice.possible:
        reasons = [reason for reason in reasons if not reason.sign]
    flops, size, tokens = advice.cost
    cost = f"{_short(flops)}FLOP, {_short(size)}B" + (f", {tokens:,} tokens" if tokens else "")
    listed = "<br>".join(map(_line, reasons))
    name = _cell("td", f"<code>{advice.name}</code>")
    return f"<tr>{name}<td>{score}</td>{_cell('td', listed)}{_cell('td', cost)}</tr>"


def _cell(tag: str, words: str) -> str:
    """A cell of words: notebooks set all cells flush right, as for numbers."""
    return f"<{tag} style='text-align: left'>{words}</{tag.split()[0]}>"


def _line(reason: Reason) -> str:
    source = f", {html.escape(reason.source)}" if reason.source else ""
    return f"{SIGNS[reason.sign]} {html.escape(reason.text)} <b>[{reason.evidence}</b>{source}<b>]</b>"


def _short(value: float) -> str:
    """'1.2 G'."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
