"""The form says what the advisor says, in words and marks, for every question it asks."""

import html
import re

import pytest
from models_for_tests import llama

from lora_lab.init import INITS
from lora_lab.init.advisor import advise
from lora_lab.widgets.advisor_form import MARKS, QUESTIONS, advisor_form

SHAPES = {"a.q_proj": (64, 48), "a.k_proj": (32, 48), "m.gate_proj": (96, 48)}
CASE = {"rank": 4, "examples": 200_000, "tokens_per_example": 256}


def names(answer: str) -> list[str]:
    return re.findall(r"<code>(\w+)</code>", answer)


@pytest.mark.parametrize("more", [{}, {"quantized": True, "short_run": True}, {"keep_knowledge": True, "rank": 3}])
def test_it_recommends_and_orders_as_the_advisor_does(more):
    form = advisor_form(SHAPES, **CASE | more)
    ranking = advise(SHAPES, **{"quantized": False, **CASE, **more})
    answer = form.html()
    assert f"Take <b>{ranking[0].name}</b>" in answer
    assert names(answer) == [advice.name for advice in ranking]
    assert set(names(answer)) == set(INITS)
    above, below = answer.split("Cannot be used here")
    assert set(names(below)) == {advice.name for advice in ranking if not advice.possible}
    for advice in ranking:
        for reason in advice.reasons:
            if advice.possible or not reason.sign:
                assert html.escape(reason.text) in answer
                assert f"[{reason.evidence}</b>" in answer
    assert all(mark in above + below for mark in MARKS)


def test_every_question_reaches_the_advisor():
    form = advisor_form(SHAPES, **CASE, quantized=True, short_run=True)
    seen = [form._answer.value]
    changes = dict.fromkeys(["quantized", "short_run"], False) | {"original_weights": False, "several_adapters": True}
    changes |= {"rank": 32, "examples": 20, "tokens_per_example": 64, "memory_bytes": 0, "flops": 1e9}
    changes |= {"layer_kinds": ("linear", "embedding"), "keep_knowledge": True}
    for name, value in changes.items():
        form.controls[name].value = value
        expected = {key: control.value for key, control in form.controls.items()}
        assert str(form.ranking()) == str(advise(SHAPES, expected.pop("rank"), **expected))
        assert form._answer.value == form.html()
        seen.append(form._answer.value)
    assert set(QUESTIONS) <= set(form.controls)
    assert len(set(seen)) > 6


def test_an_unusual_case_is_refused_in_words():
    form = advisor_form(SHAPES, **CASE)
    form.controls["rank"].value = 64
    assert "This case is refused" in form._answer.value
    assert "min(out, in) = 32, got 64" in form._answer.value
    assert "refused" in form.text()
    form.controls["rank"].value = 8
    assert "Take <b>" in form._answer.value


def test_it_reads_without_a_kernel():
    form = advisor_form({"small": SHAPES}, **CASE, keep_knowledge=True)
    bundle = form._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "<table>" in bundle["text/html"]
    assert "model: small" in bundle["text/html"]
    assert "what the base knows must survive: yes" in bundle["text/html"]
    assert "memory for the set-up: no limit" in bundle["text/plain"]
    assert all(f"\n{name}" in bundle["text/plain"] for name in INITS)


def test_models_are_made_when_they_are_chosen_and_once():
    made = []

    def build():
        made.append(1)
        return llama()

    form = advisor_form({"shapes": SHAPES, "llama": build}, **CASE)
    assert not made
    form.model.value = "llama"
    form.controls["rank"].value = 2
    assert made == [1]
    assert str(form.ranking()) == str(advise(llama(), 2, **{k: v for k, v in CASE.items() if k != "rank"}))


WRONG = {
    "question": ({"examples_at_hand": 3}, "does not ask for examples_at_hand"),
    "value": ({"rank": 5}, "rank must be one of .* got 5"),
    "yes or no": ({"quantized": "nf4"}, "quantized must be one of True, False"),
}


@pytest.mark.parametrize(("start", "words"), WRONG.values(), ids=WRONG)
def test_wrong_beginnings_are_refused(start, words):
    with pytest.raises(ValueError, match=words):
        advisor_form(SHAPES, **start)
