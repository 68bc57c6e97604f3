"""The advisor rules out what cannot work, orders the rest by evidence, and its costs follow from the shapes."""

import json

import pytest
import torch
from models_for_tests import llama

from lora_lab.init import INITS, evidence
from lora_lab.init.advisor import advise
from lora_lab.init.costs import FP32, distinct_inputs, full_svd_flops, setup_cost, top_flops

SHAPES = {
    "a.q_proj": (64, 48),
    "a.k_proj": (32, 48),
    "a.o_proj": (48, 64),
    "m.gate_proj": (96, 48),
    "m.up_proj": (96, 48),
}
PLENTY = {"examples": 10_000, "tokens_per_example": 256}


def verdicts(**case) -> dict[str, bool]:
    settings = {"rank": 4, "quantized": True, **PLENTY, **case}
    return {advice.name: advice.possible for advice in advise(case.pop("shapes", SHAPES), **settings)}


RULED_OUT = {  # what is asked for, which inits cannot be used then and can be used otherwise
    "no data": ({"examples": 0}, {"corda", "eva", "lora_ga"}),
    "little data": ({"examples": 17}, {"corda"}),  # 4,352 tokens: 128 · 48 are asked for
    "an odd rank": ({"rank": 5}, {"orthogonal"}),
    "a large rank": ({"rank": 20}, {"lora_ga"}),
    "codes only": ({"original_weights": False}, {"pissa", "olora", "corda", "lora_ga", "loftq"}),
    "plain base": ({"quantized": False}, {"loftq"}),
    "embeddings": ({"layer_kinds": ("linear", "embedding")}, set(INITS) - {"default", "gaussian", "random"}),
    "no memory": ({"memory_bytes": 0}, set(INITS) - {"default", "gaussian", "orthogonal", "random"}),
    "no time": ({"flops": 1e4}, set(INITS) - {"default", "gaussian", "orthogonal", "random"}),
}


@pytest.mark.parametrize(("case", "names"), RULED_OUT.values(), ids=RULED_OUT)
def test_what_cannot_work_is_ruled_out(case, names):
    usual = verdicts()
    assert {name for name, possible in usual.items() if not possible} == {"random"}
    assert {name for name, possible in verdicts(**case).items() if not possible} == names | {"random"}


def test_every_init_has_a_row_a_cost_and_a_reason():
    ranking = advise(llama(), 4, **PLENTY)
    assert {advice.name for advice in ranking} == set(INITS)
    assert all(advice.reasons and min(advice.cost) >= 0 for advice in ranking)
    possible = [advice.possible for advice in ranking]
    assert possible == sorted(possible, reverse=True)
    scores = [advice.score for advice in ranking if advice.possible]
    assert scores == sorted(scores, reverse=True)
    text = str(ranking)
    assert all(f"\n{name}" in text for name in INITS)
    assert "[fact]" in text
    assert "[published, arXiv" in text


def record(path, **test_loss) -> None:
    runs = {
        name: {
            "test_loss": losses,
            "stories_loss": [2.0, 2.1],
            "lr": 0.01,
            "start": {"distance": 0.1 if name == "default" else 0.05},
        }
        for name, losses in test_loss.items()
    }
    path.write_text(json.dumps({"settings": {"steps": 9}, "plain": runs, "nf4": runs}))


def test_what_is_measured_counts_only_beyond_the_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MEASUREMENTS", tmp_path)

    def measured(**case) -> dict[str, list[int]]:
        found = {a.name: [r.sign for r in a.reasons if r.evidence == "measured"] for a in advise(SHAPES, 4, **case)}
        return {name: signs for name, signs in found.items() if signs}

    assert measured(short_run=True) == {}
    record(tmp_path / "inits.json", default=[0.5, 0.6], pissa=[0.3, 0.4], olora=[0.55, 0.9], mica=[0.7, 0.8])
    assert measured(short_run=True) == {"pissa": [1], "mica": [-1]}
    assert measured(short_run=False) == {}
    assert measured(keep_knowledge=True) == {}  # the stories' losses overlap
    assert measured(quantized=True) == {"pissa": [1], "olora": [1], "mica": [1]}


def test_corda_is_judged_by_the_method_that_fits_and_long_runs_by_long_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "MEASUREMENTS", tmp_path)
    start = {"start": {"distance": 0.0}}
    plain = {"default": (0.5, 2.0), "corda": (0.1, 3.0), "corda kpm": (0.9, 1.0), "pissa": (0.2, 2.0)}
    plain = {name: {"test_loss": [t, t], "stories_loss": [s, s], "lr": 0.01} | start for name, (t, s) in plain.items()}
    longer = {name: {"test_loss": [t, t], "lr": 0.01} for name, t in {"default": 0.3, "pissa": 0.4}.items()}
    content = {"settings": {"steps": 9, "longer_steps": 70}, "plain": plain, "nf4": {}, "longer": longer}

    def write() -> None:
        (tmp_path / "inits.json").write_text(json.dumps(content))

    write()

    def said(name: str, **case) -> list[tuple[int, str]]:
        found = next(advice for advice in advise(SHAPES, 4, **case) if advice.name == name)
        return [(reason.sign, reason.text) for reason in found.reasons if reason.evidence == "measured"]

    ((sign, text),) = said("corda", short_run=True)
    assert (sign, "method ipm" in text, "9 steps" in text) == (1, True, True)
    ((sign, text),) = said("corda", keep_knowledge=True)
    assert (sign, "method kpm" in text, "stories" in text) == (1, True, True)
    ((sign, text),) = said("pissa")
    assert (sign, "70 steps" in text) == (-1, True)
    assert said("pissa", quantized=True) == []
    plain["corda kpm"]["lr"] = plain["corda"]["lr"] = 0.003
    write()
    assert said("corda", keep_knowledge=True) == []  # the rate alone may make such a difference in what is forgotten
    ((_, text),) = said("corda", short_run=True)  # but each side learns at the rate that suits it
    assert "0.1 (rate 0.003), with the default 0.5 (rate 0.01)" in text


def test_the_course_has_measured():
    """The recorded runs are there, and say something about what is forgotten."""
    if not (evidence.MEASUREMENTS / "inits.json").exists():
        pytest.skip("data/measurements/inits.json has not been recorded")
    ranking = advise(SHAPES, 4, keep_knowledge=True)
    assert any(reason.evidence == "measured" for advice in ranking for reason in advice.reasons)


def test_costs_follow_the_shapes():
    assert sorted(distinct_inputs(SHAPES)) == [48, 48, 64]
    assert full_svd_flops(64, 48) == full_svd_flops(48, 64) == 6 * 64 * 48**2 + 20 * 48**3
    assert setup_cost("default", SHAPES, 4) == (sum((o + i) * 4 for o, i in SHAPES.values()), 0, 0)
    assert setup_cost("lora_ga", SHAPES, 4).bytes == FP32 * sum(o * i for o, i in SHAPES.values())
    assert setup_cost("eva", SHAPES, 4).bytes == FP32 * 8 * (48 + 48 + 64)
    assert setup_cost("pissa", SHAPES, 4).flops == sum(top_flops(o, i, 4) for o, i in SHAPES.values())
    corda, bigger = (setup_cost("corda", SHAPES, 4, parameters=p) for p in (None, 10**6))
    assert corda.tokens == 128 * 48
    assert corda.bytes >= FP32 * (2 * 48**2 + 64**2)
    assert bigger.flops - corda.flops == 2 * corda.tokens * (10**6 - sum(o * i for o, i in SHAPES.values()))


def test_llama_2_7b_needs_twice_its_weights_for_corda_with_peft():
    """PEFT's docstring says about 2 · model size; a covariance for every different input is less than half of that."""
    layer = {"q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096), "o_proj": (4096, 4096)}
    layer |= {"gate_proj": (11008, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}
    shapes = {f"{i}.{name}": shape for i in range(32) for name, shape in layer.items()}
    each = FP32 * sum(in_**2 for _, in_ in shapes.values())
    assert each == pytest.approx(28.4e9, rel=0.01)  # reference: recomputed from the shapes, 2.1 times 13.5 GB of fp16
    assert sum(i**2 for i in distinct_inputs(shapes)) * FP32 == 32 * FP32 * (3 * 4096**2 + 11008**2)


REFUSED = {
    "no model": (lambda: advise(None, 4), TypeError, "NoneType"),
    "no shapes": (lambda: advise({}, 4), ValueError, "shapes is empty"),
    "rank": (lambda: advise(SHAPES, 33), ValueError, "= 32, got 33"),
    "examples": (lambda: advise(SHAPES, 4, examples=-1), ValueError, "examples must be .* got -1"),
    "tokens": (lambda: advise(SHAPES, 4, tokens_per_example=1.5), ValueError, "got 1.5"),
    "memory": (lambda: advise(SHAPES, 4, memory_bytes=float("nan")), ValueError, "memory_bytes .* nan"),
    "kind": (lambda: advise(SHAPES, 4, layer_kinds=("linear", "conv")), ValueError, "convolution"),
    "name": (lambda: setup_cost("xavier", SHAPES, 4), ValueError, "unknown init 'xavier'"),
    "targets": (lambda: advise(llama(), 4, targets=["x_proj"]), ValueError, "x_proj"),
}


@pytest.mark.parametrize(("call", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_calls(call, error, words):
    with pytest.raises(error, match=words):
        call()
    assert torch.get_default_dtype() == torch.float32
