"""Formats against their definition, the census against torch, the runs by what each format can hold, the record."""

import copy
import json
import math

import pytest
import torch
from models_for_tests import fill, llama

from lora_lab.experiments import precision as P
from lora_lab.inject import inject, lora_layers
from lora_lab.paths import MEASUREMENTS

BITS = {"fp32": (8, 23), "fp16": (5, 10), "bf16": (8, 7)}  # of exponent and fraction (IEEE 754; bfloat16)


def examples(count: int) -> list[dict]:
    made = torch.randint(1, 64, (count, 9), generator=torch.Generator().manual_seed(1)).tolist()
    return [{"input_ids": ids, "labels": [-100] * 4 + ids[4:]} for ids in made]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return P.collate(examples(4))


@pytest.mark.parametrize("name", P.DTYPES)
def test_range_and_spacing_follow_from_the_bits(name):
    exponent, fraction = BITS[name]
    bias = 2 ** (exponent - 1) - 1
    one = P.formats()[name]
    assert one["largest"] == (2 - 2.0**-fraction) * 2.0**bias
    assert one["smallest_normal"] == 2.0 ** (1 - bias)
    assert one["smallest"] == pytest.approx(2.0 ** (1 - bias - fraction), rel=1e-9)
    assert one["spacing"]["1"] == one["eps"] == 2.0**-fraction
    assert one["spacing"]["10000"] == 2.0 ** (13 - fraction)  # 2^13 <= 10,000 < 2^14
    assert math.isnan(P.spacing(1e39, P.DTYPES[name]))  # beyond all three, for fp64 in the middle of its range


def test_spacing_knows_fp64_and_rounds_once():
    for value in (0.0, 0.1, 1.0, 1e39, 1e300, -1e39):
        assert P.spacing(value, torch.float64) == math.ulp(abs(value))
    assert math.isnan(P.spacing(math.nan, torch.float64))
    assert math.isnan(P.spacing(-math.inf, torch.bfloat16))


def test_adapters_are_the_same_numbers_in_every_format_and_keep_their_own():
    models = {name: P.adapted(llama(), base, 3, factors) for name, (base, factors) in P.KINDS.items()}
    for name, (base, factors) in P.KINDS.items():
        for layer, exact in zip(lora_layers(models[name]).values(), lora_layers(models["fp32"]).values(), strict=True):
            assert (layer.base.weight.dtype, layer.A.dtype, layer.B.dtype) == (base, factors, factors)
            assert torch.equal(layer.A, exact.A.to(factors))


def test_a_small_loss_scale_loses_gradients_and_a_large_one_overflows(batch):
    torch.manual_seed(0)
    model = fill(inject(llama(), "all-linear", 4, 10))
    rows = {row["scale"]: row for row in P.census(model, batch, (2.0**-24, 1.0, 2.0**40))}
    assert rows[2.0**-24]["zero"] > 0.5
    assert rows[1.0]["overflow"] == 0
    gradients = []
    for each, times in ((model, 1.0), (copy.deepcopy(model).half(), 1.0), (copy.deepcopy(model).half(), 2.0**-24)):
        each.zero_grad()
        (each(**batch).loss * times).backward()
        layers = lora_layers(each).values()
        gradients.append(torch.cat([p.grad.flatten() for n in layers for p in (n.A, n.B)]).float() / times)
    exact, half, tiny = gradients
    assert rows[1.0]["error"] == pytest.approx(((half - exact).norm() / exact.norm()).item(), rel=1e-3)
    assert rows[2.0**-24]["zero"] == pytest.approx((tiny == 0)[exact != 0].double().mean().item(), rel=1e-3)
    assert rows[1.0]["error"] < rows[2.0**-24]["error"]
    assert (rows[2.0**40]["error"], rows[2.0**40]["overflow"] > 0.9) == (None, True)


def test_the_largest_activation_is_found_where_it_was_planted(batch):
    model = llama()
    model.model.layers[1].mlp.down_proj.weight.data *= 1e6
    assert P.largest_activation(model, batch)["where"].startswith("model.layers.1")
    x = model.model.embed_tokens(batch["input_ids"])
    assert P.largest_activation(llama(), batch)["value"] >= float(f"{x.abs().max().item():.5g}")
    assert not any(module._forward_hooks for module in model.modules())


def test_what_overflows_fp16_does_not_overflow_bf16():
    """Outputs of one layer near 10⁵: beyond fp16's range, well within bf16's."""
    base = llama()
    base.model.layers[0].mlp.down_proj.weight.data *= 1e6
    data = examples(8)
    rows = {kind: P.run(base, kind, 1e-3, 0, data, data) for kind in ("fp16", "bf16", "fp32")}
    assert {kind: bool(row["failed"]) for kind, row in rows.items()} == {"fp16": True, "bf16": False, "fp32": False}
    assert rows["fp16"]["failed"] == 1
    assert rows["bf16"]["validation_loss"] == pytest.approx(rows["fp32"]["validation_loss"], rel=0.05)


def test_a_recovered_run_goes_on_from_its_checkpoint(monkeypatch):
    """The fp16 run is ended after step 4, as if step 6 had failed; the rest is run in bf16."""
    base, data, real = llama(), examples(8), P.attempt
    calls = []

    def watched(model, data, **settings):
        calls.append((model.lm_head.weight.dtype, "checkpoint" in settings))
        if len(calls) == 1:  # ends as if step 6 had failed
            from lora_lab.train import train

            history = train(
                model,
                data,
                steps=P.STEPS,
                batch_size=P.BATCH,
                progress=False,
                on_step=lambda step, _: step == 4,
                **settings,
            )
            history.loss.append(1.0)
            return history, "loss is nan at step 6"
        return real(model, data, **settings)

    monkeypatch.setattr(P, "attempt", watched)
    found = P.recovery(base, data, data, 1e-3)
    assert calls == [(torch.float16, True), (torch.bfloat16, True), (torch.bfloat16, False)]
    assert found["checkpoint"] == 4
    assert found["then_bf16"][:4] == found["fp16"][:4]
    assert len(found["then_bf16"]) == P.STEPS
    assert found["validation_loss"]["fp16, then bf16"] == pytest.approx(found["validation_loss"]["bf16"], rel=0.02)


def test_a_loss_scale_falls_until_it_fits():
    base = copy.deepcopy(llama())
    rows = P.scaled(base, examples(8), 2.0**40, steps=30)
    skipped = [row["skipped"] for row in rows]
    first = skipped.index(False)
    assert all(skipped[:first])
    assert rows[first]["scale"] == 2.0 ** (40 - first)
    assert all(row["loss"] is not None for row in rows)


def test_the_record_says_what_the_lesson_says():
    record = json.loads((MEASUREMENTS / "precision.json").read_text(encoding="utf-8"))
    assert record["formats"] == json.loads(json.dumps(P.formats()))
    assert {"command", "date", "versions", "hardware", "settings"} <= set(record)
    assert len(record["runs"]) == len(P.RATES) * len(P.KINDS) * P.SEEDS
    assert P.table(record).count("\n") == len(P.RATES)
    failed = {(row["kind"], row["lr"]) for row in record["runs"] if row["failed"]}
    assert not {kind for kind, _ in failed} & {"fp32", "bf16"}
    assert ("fp16", max(P.RATES)) in failed
    # Nothing in fp16 fails where the largest activation stays within its range, as long as A and B are fp32.
    top = {rate: max(row["value"] for row in record["activations"] if row["lr"] == rate) for rate in P.RATES}
    assert top[max(P.RATES)] > record["formats"]["fp16"]["largest"] > top[min(P.RATES)]
