"""A quiz question: live, an answer gets its explanation at once; static, the answers wait in a folded block.

Nothing is recorded: a quiz is there to find out, and a graded exercise is something else.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

import ipywidgets

Option = tuple[str, bool, str]  # the answer, whether it is right, why


def quiz(question: str, options: Sequence[Option]) -> Quiz:
    """A question with its options (text, is_right, why). Display the result, or leave it as a cell's last value.

    `code` in backticks is set as code. Raises ValueError for fewer than two options, none that is right, two with
    the same text, or one without an explanation."""
    return Quiz(question, options)


class Quiz:
    """See `quiz`. `choice` holds the live radio buttons, `feedback(text)` what an answer is told."""

    def __init__(self, question: str, options: Sequence[Option]) -> None:
        _check(question, options)
        self.question, self.options = question, list(options)
        self.choice = ipywidgets.RadioButtons(
            # The browser shows these labels as they are, without the marks for code.
            options=[(text.replace("`", ""), i) for i, (text, _, _) in enumerate(self.options)],
            value=None,
            layout={"width": "auto"},
        ).add_class("lora-lab-quiz")
        self._answer = ipywidgets.HTML(layout={"margin": "0 0 0 4px"})
        asked = ipywidgets.HTML(f"{_STYLE}<b>{_marked(question)}</b>")
        self.box = ipywidgets.VBox([asked, self.choice, self._answer], layout={"margin": "4px 0"})
        self.choice.observe(self._chosen, names="value")

    def feedback(self, index: int | None) -> str:
        """What the option at `index` is told, as HTML; nothing for None."""
        if index is None:
            return ""
        _, right, why = self.options[index]
        verdict, colour = ("Right.", "#009E73") if right else ("Not quite.", "#D55E00")
        return (
            f'<div style="border-left: 4px solid {colour}; padding-left: 10px; line-height: 1.5">'
            f"<b>{verdict}</b> {_marked(why)}</div>"
        )

    def static_html(self) -> str:
        """The question, its options as a list, and a folded block with the answers. Needs no style sheet."""
        listed = "".join(f"<li>{_marked(text)}</li>" for text, _, _ in self.options)
        answers = "".join(
            f"<li><b>{'Right' if right else 'Not quite'}:</b> {_marked(text)}<br>{_marked(why)}</li>"
            for text, right, why in self.options
        )
        return (
            f"<div><p><b>{_marked(self.question)}</b></p><ol>{listed}</ol>"
            f"<details><summary>Answers</summary><ol>{answers}</ol></details></div>"
        )

    def text(self) -> str:
        """The question and its options without their answers, for a front end that shows only text."""
        numbered = (f"  {i}. {text}" for i, (text, _, _) in enumerate(self.options, start=1))
        return "\n".join([f"Quiz: {self.question}", *numbered])

    def _chosen(self, change: Any) -> None:
        self._answer.value = self.feedback(change["new"])

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return {**self.box._repr_mimebundle_(), "text/html": self.static_html(), "text/plain": self.text()}

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self._repr_mimebundle_(), raw=True)


# By default a radio label is one line high, its button behind the text and floated: a long answer would break.
_STYLE = (
    "<style>.lora-lab-quiz .widget-radio-box label {display: flex; flex-direction: row-reverse; "
    "justify-content: flex-end; align-items: flex-start; height: auto; line-height: 1.5; max-width: 46em; "
    "padding: 2px 0} .lora-lab-quiz .widget-radio-box input {flex: none; height: 1.5em}</style>"
)


def _marked(text: str) -> str:
    """Plain text as HTML, with `code` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _check(question: str, options: Sequence[Option]) -> None:
    if not question.strip():
        raise ValueError("the question is empty")
    if len(options) < 2:
        raise ValueError(f"{len(options)} option(s) given; a question needs at least 2")
    texts = [text for text, _, _ in options]
    if len(set(texts)) < len(texts):
        raise ValueError(f"two options have the same text: {texts}")
    if not any(right for _, right, _ in options):
        raise ValueError("no option is right")
    for text, _, why in options:
        if not text.strip() or not why.strip():
            raise ValueError(f"option {text!r} needs a text and an explanation; its explanation is {why!r}")
