"""A quiz explains every answer, live at once and static behind a fold, and refuses to be one without explanations."""

import pytest

from lora_lab.widgets import quiz

VIEW = "application/vnd.jupyter.widget-view+json"
OPTIONS = [
    ("`A`, at random", False, "Then the output changes at once."),
    ("B & only B", True, "Because `B = 0` makes BA zero."),
    ("both", False, "Then neither factor ever moves."),
]


def test_an_answer_gets_its_verdict_and_its_explanation():
    asked = quiz("Which factor starts at zero?", OPTIONS)
    feedback = asked.box.children[-1]
    assert (asked.choice.value, feedback.value) == (None, "")
    for index, (_, right, _) in enumerate(OPTIONS):
        asked.choice.value = index
        assert feedback.value == asked.feedback(index)
        assert ("Right." in feedback.value) is right
        assert ("Not quite." in feedback.value) is not right
    assert "Because <code>B = 0</code> makes BA zero." in asked.feedback(1)
    assert [label for label, _ in asked.choice.options] == ["A, at random", "B & only B", "both"]


def test_the_static_quiz_folds_the_answers_away(monkeypatch):
    shown: list[dict] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    asked = quiz("Is 1 < 2?", OPTIONS)
    asked._ipython_display_()
    (data,) = shown
    assert data[VIEW]["model_id"] == asked.box.model_id
    open_part, folded = data["text/html"].split("<details>")
    for text, why in (("<code>A</code>, at random", "changes at once"), ("B &amp; only B", "makes BA zero")):
        assert text in open_part
        assert why in folded
        assert why not in open_part
    assert "Right" not in open_part
    assert "1 &lt; 2" in open_part
    assert "1. `A`, at random" in data["text/plain"]
    assert not any(why in data["text/plain"] for _, _, why in OPTIONS)


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [
        (" ", OPTIONS, "question is empty"),
        ("?", OPTIONS[1:2], "needs at least 2"),
        ("?", [OPTIONS[0], OPTIONS[2]], "no option is right"),
        ("?", [*OPTIONS, OPTIONS[1]], "same text"),
        ("?", [*OPTIONS, ("none", False, " ")], "explanation"),
    ],
)
def test_a_quiz_that_teaches_nothing_is_refused(question, options, message):
    with pytest.raises(ValueError, match=message):
        quiz(question, options)
