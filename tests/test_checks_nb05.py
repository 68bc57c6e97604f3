"""What the checks of notebook 05 take for right, against the library and the record. Answers: `test_checks_answers`."""

import pytest
import torch
from torch import nn

from lora_lab.adapter import scale_of
from lora_lab.checks.harness import Cases
from lora_lab.checks.nb05_back import right_update
from lora_lab.checks.nb05_choose import NEARER, ZERO, every_case, ruled_out
from lora_lab.checks.nb05_data import right_covariance, right_directions
from lora_lab.checks.nb05_weights import right_olora, right_pissa
from lora_lab.experiments.inits.runs import distance, started, world
from lora_lab.init import INITS, named
from lora_lab.init.advisor import advise
from lora_lab.init.statistics import input_components, input_covariances

pytestmark = pytest.mark.usefixtures("away")
OUT, WIDE, RANK, SCALE = 14, 10, 3, 1.7


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, OUT, bias=False))


@pytest.mark.parametrize(("name", "right"), [("pissa", right_pissa), ("olora", right_olora)])
def test_factors_and_residual_are_those_of_the_library(name, right, layer):
    W = layer[0].weight.detach()
    A, B, residual = right(W, RANK, SCALE)
    start = named(name)(W, RANK, SCALE)
    torch.testing.assert_close(B @ A, start.B @ start.A)
    torch.testing.assert_close(A @ A.T, start.A @ start.A.T, check_dtype=False, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(residual + SCALE * start.B @ start.A, W)


def test_covariance_and_components_are_those_of_the_library(layer):
    samples = [torch.randn(length, WIDE) * size + 0.5 for length, size in ((30, 1.0), (12, 4.0), (25, 0.3))]

    def run(model, batch):
        model(batch)

    found = input_covariances(layer, ["0"], [x[None] for x in samples], run=run, progress=False)
    torch.testing.assert_close(right_covariance(samples), found["0"])
    X = torch.cat(samples)
    found = input_components(layer, ["0"], [X[None]], RANK, run=run, progress=False)
    cosines = (right_directions(X, RANK) @ found["0"].directions[:RANK].double().T).diagonal().abs()
    torch.testing.assert_close(cosines, torch.ones(RANK, dtype=torch.float64), atol=1e-4, rtol=0)


def test_a_converted_adapter_is_the_trained_one_beside_the_residual(layer):
    W, alpha = layer[0].weight.detach(), SCALE * RANK
    A0, B0, residual = right_pissa(W, RANK, SCALE)
    A, B = A0 + torch.randn_like(A0), B0 + torch.randn_like(B0)
    trained = residual + scale_of(RANK, alpha) * B @ A
    torch.testing.assert_close(W + right_update(A, B, A0, B0, alpha), trained)


def test_the_facts_of_the_advisor_are_those_of_the_inits(layer):
    W = layer[0].weight.detach()
    options = {"corda": {"covariance": torch.eye(WIDE)}, "lora_ga": {"gradient": torch.randn(OUT, WIDE)}}
    found = input_components(layer, ["0"], [torch.randn(1, 50, WIDE)], 4, run=lambda m, x: m(x), progress=False)
    options["eva"] = {"components": found["0"]}
    for name in INITS:
        start = named(name, **options.get(name, {}))(W, 4, SCALE)
        assert (name in ZERO) == (not start.A.any() or not start.B.any()), name


def test_what_starts_nearer_on_codes_does_so_on_the_base_of_the_course():
    here = world()
    off = {name: distance(here.base, started(here, name, quantize="nf4")) for name in ("default", "olora", *NEARER)}
    assert all((off[name] < 0.99 * off["default"]) == (name in NEARER) for name in off if name != "default")


def test_the_check_rules_out_what_the_library_rules_out():
    shapes = {"model.layers.0.mlp.up_proj": (512, 192)}
    for case in every_case(Cases(5)):
        if case["shared_base"]:  # the library advises against it only
            continue
        ranking = advise(
            shapes,
            case["rank"],
            examples=case["tokens"],
            tokens_per_example=1000 if case["tokens"] else 0,
            quantized=case["four_bit"],
            original_weights=case["original_weights"],
        )
        for advice in ranking:
            assert advice.possible == (not ruled_out(advice.name, case)), (advice.name, case)
