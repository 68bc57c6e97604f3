"""What lesson 07 measures: the cut update is torch's, the routes out of 4 bits do what their names say."""

import copy

import pytest
import torch
from models_for_tests import ALPHA, RANK, fill, llama

from lora_lab.experiments import merging
from lora_lab.inject import inject, lora_layers
from lora_lab.merge import merged
from lora_lab.models import load_base


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[:, :3] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def adapted(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    return fill(inject(llama(), "all-linear", RANK, ALPHA, **options)).eval()


def test_answers_are_judged_where_they_are_predicted(batch):
    model = adapted()
    logits = merging.answer_logits(model, batch)
    whole = model(input_ids=batch["input_ids"]).logits
    assert logits.shape == (3 * 4, whole.shape[-1])  # tokens 3 to 6, each predicted one place before
    torch.testing.assert_close(logits[:4], whole[0, 2:6], rtol=1e-4, atol=1e-5)


def test_a_difference_counts_flips():
    old = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    new = torch.tensor([[0.5, 1.0], [0.0, 3.0]])
    assert merging.difference(old, new) == {"max": 1.5, "mean": 1.5 / 4, "flips": 1, "positions": 2}


def test_the_update_is_cut_and_multiplied_and_the_model_left_alone(batch):
    model = adapted()
    before = copy.deepcopy(model.state_dict())
    same = merging.recut(model, RANK)
    torch.testing.assert_close(
        merging.answer_logits(same, batch), merging.answer_logits(model, batch), rtol=1e-4, atol=1e-5
    )
    cut = merging.recut(model, 1, times=2.5, dtype=torch.bfloat16)
    for path, layer in lora_layers(cut).items():
        U, s, Vh = torch.linalg.svd(lora_layers(model)[path].delta_weight(), full_matrices=False)
        torch.testing.assert_close(layer.delta_weight(), 2.5 * s[0] * torch.outer(U[:, 0], Vh[0]), rtol=1e-3, atol=1e-5)
        assert layer.base.weight.dtype == torch.bfloat16
        assert layer.A.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_of_the_routes_one_is_exact_one_stays_small_and_one_starts_from_the_original(batch):
    base = llama()
    torch.manual_seed(0)
    model = fill(inject(copy.deepcopy(base), "all-linear", RANK, ALPHA, quantize="nf4")).eval()
    reference = merging.answer_logits(model, batch)
    small, exact, original = merging.routes(model, base).values()
    torch.testing.assert_close(merging.answer_logits(exact, batch), reference, rtol=1e-3, atol=1e-4)
    assert merging.difference(reference, merging.answer_logits(small, batch))["max"] > 1e-2
    assert merging.weight_bytes(small) == merging.weight_bytes(model)
    assert merging.weight_bytes(exact) > 4 * merging.weight_bytes(small)
    path, layer = next(iter(lora_layers(model).items()))
    want = base.get_submodule(path).weight + layer.delta_weight()
    torch.testing.assert_close(original.get_submodule(path).weight, want)
    assert not lora_layers(small) | lora_layers(exact) | lora_layers(original)


def test_a_lead_is_that_of_the_first_over_the_second():
    logits = torch.tensor([[1.0, 4.0, 3.5], [2.0, -1.0, 0.0], [0.0, 0.0, 9.0]])
    found = merging.margins(logits)
    assert found["lead"] == pytest.approx(2.0)
    assert 0.5 < found["low_lead"] < 0.6


def test_pairs_are_judged_by_those_that_changed():
    """McNemar's exact p is the binomial test of a fair coin; the error is that of a mean of -1, 0 and 1."""
    before = [True] * 9 + [False] * 11
    after = [False] * 6 + [True] * 4 + [False] * 10
    found = merging.paired(before, after)
    assert (found["lost"], found["gained"]) == (6, 1)
    assert found["p"] == pytest.approx(2 * (1 + 7) / 2**7)
    steps = torch.tensor([b - a for a, b in zip(before, after, strict=True)]).double()
    assert found["change"] == pytest.approx(steps.mean().item())
    assert found["error"] == pytest.approx((steps.var(correction=0) / len(steps)).sqrt().item())
    assert merging.paired(before, before) == {"lost": 0, "gained": 0, "change": 0.0, "error": 0.0, "p": 1.0}


def test_both_adapters_are_added_to_one_base():
    first, second = (load_base()[0] for _ in range(2))
    torch.manual_seed(0)
    for model, targets in ((first, ["q_proj"]), (second, ["q_proj", "v_proj"])):
        fill(inject(model, targets, RANK, ALPHA))
    found, base = merging.both(first, second, 0.5), load_base()[0]
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"):
        want = base.get_submodule(path).weight.clone()
        for model in (first, second):
            if path in lora_layers(model):
                want += 0.5 * lora_layers(model)[path].delta_weight()
        torch.testing.assert_close(found.get_submodule(path).weight, want)
    assert not lora_layers(found)


def test_a_table_is_the_mean_share():
    row = {"dtype": "bfloat16", "rank": 2, "times": 0.5, "positions": 200, "flips": [1, 2, 6]}
    assert merging.table({"flips": [row]}) == {("bfloat16", 2, 0.5): pytest.approx(0.015)}


def test_both_models_are_timed():
    model = adapted()
    found = merging.latency({"unmerged": model, "merged": merged(model)}, batch=1, length=3, repeats=2)
    assert set(found) == {"unmerged", "merged"}
    assert all(seconds > 0 for seconds in found.values())
