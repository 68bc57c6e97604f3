"""FLOPs against torch's own counter, to the unit; time and cost by arithmetic."""

import pytest
import torch
from budget_for_tests import FAMILY, MIXTURES, STEPWISE, ids, loss, model, predicted
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from lora_lab.budget import GPUS, budget, fits
from lora_lab.budget.devices import seconds

aten = torch.ops.aten


def _grouped(x, weight, *_, out_shape=None, **__) -> int:
    """Rows sorted by expert times one matrix each (forward), or two matrices of rows (gradient of the weights)."""
    return 2 * x[0] * x[1] * weight[-1]


# What FlopCounterMode has no formula for on a CPU. With fewer key-value heads than queries each serves several.
MISSING = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, q, q),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda dy, q, k, v, *_, **__: sdpa_backward_flop_count(
        dy, q, q, q
    ),
    aten._grouped_mm: _grouped,
}


def counted(family: str, batch: int, length: int, **settings) -> tuple[int, int]:
    """FLOPs of the forward pass, and of forward and backward together."""
    made, tokens = model(family, **settings), ids(batch, length)
    with FlopCounterMode(display=False, custom_mapping=MISSING) as counter:
        value = loss(made, tokens)
        forward = counter.get_total_flops()
        value.backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILY)
def test_flops_are_those_torch_counts(family, method, checkpointing):
    attention = "eager" if family in STEPWISE or method == "full" else "sdpa"
    targets = ["q_proj", "v_proj"] if family in MIXTURES else "all-linear"
    settings = {"method": method, "attention": attention, "checkpointing": checkpointing, "targets": targets}
    flops = predicted(family, 2, 7, **settings).flops
    assert (flops.forward, flops.total) == counted(family, 2, 7, **settings)
    assert (flops.repeated > 0) == checkpointing


@pytest.mark.parametrize(
    "settings",
    [
        {"targets": ["v_proj"]},
        {"targets": ["down_proj"], "checkpointing": True},
        {"targets": r"model\.layers\.1\..*(q|up)_proj"},
        {"method": "qlora"},
        {"method": "full", "attention": "sdpa", "checkpointing": True},
    ],
    ids=str,
)
def test_flops_of_other_settings(settings):
    flops = predicted("llama", 3, 5, **settings).flops
    assert (flops.forward, flops.total) == counted("llama", 3, 5, **settings)


def test_the_rules_of_thumb():
    n, tokens = 8_030_261_248 - 128_256 * 4096, 256  # the embedding is a lookup
    full, lora = (budget("Llama-3-8B", method, rank=1, length=tokens).flops for method in ("full", "lora"))
    assert full.forward - 4 * 32 * 4096 * tokens**2 == pytest.approx(2 * n * tokens, rel=1e-4)
    without = full.total - full.attention
    assert without == pytest.approx(6 * n * tokens, rel=1e-4)
    # LoRA leaves the gradients of the frozen weights out: 4 for each weight and token instead of 6.
    assert lora.total - lora.attention == pytest.approx(4 * n * tokens, rel=0.02)
    again = budget("Llama-3-8B", "lora", rank=1, length=tokens, checkpointing=True).flops
    assert 0.9 < again.repeated / again.forward < 1


def test_attention_grows_with_the_square_of_the_length():
    one, two = (predicted("llama", 2, length).flops for length in (16, 32))
    assert two.attention == 4 * one.attention
    assert two.total - two.attention == 2 * (one.total - one.attention)
    assert two.attention == 3 * 7 * 2 * 2 * 4 * 32**2 * 8  # layers · products · 2 · batch · heads · length² · width
    assert one.per_token == one.total / 32
    again = predicted("llama", 2, 16, checkpointing=True).flops
    assert again.attention == one.attention * 9 // 7  # two of the seven products once more


def test_time_and_cost():
    run = budget("Llama-3-8B", "lora", batch=2, length=512)
    step = run.seconds("A100 80GB", mfu=0.5)
    assert step == pytest.approx(run.flops_per_step / (312e12 * 0.5))
    assert run.seconds("A100 80GB", tokens=10 * 1024, mfu=0.5) == pytest.approx(10 * step)
    assert run.cost("A100 80GB", 3600 / step * 1024, price_per_hour=2.5, mfu=0.5) == pytest.approx(2.5)
    assert run.seconds("H100 80GB") < run.seconds("A100 80GB") < run.seconds("T4 16GB")


def test_fits_lists_what_is_large_enough():
    gib = 2**30
    assert next(iter(fits(0, torch.float16))) == "T4 16GB"
    assert not any(name.startswith(("T4", "V100")) for name in fits(0, torch.bfloat16))
    spare = fits(30 * gib)
    assert list(spare) == sorted(spare, key=lambda name: GPUS[name].memory)
    assert spare["A100 40GB"] == GPUS["A100 40GB"].memory - 31 * gib
    assert "RTX 4090 24GB" not in spare
    assert fits(1000 * gib) == {}
    run = budget("Llama-2-70B", "qlora", batch=1, length=512, checkpointing=True)
    assert run.fits() == fits(run.memory.peak)
    assert "L40S 48GB" in run.fits()  # what the QLoRA paper says of 65B
    assert "RTX 4090 24GB" not in run.fits()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: seconds(1e12, "GTX 1080"), "A100 80GB.*GTX 1080"),
        (lambda: seconds(1e12, "A100 80GB", 0), "mfu.*0"),
        (lambda: seconds(1e12, "A100 80GB", 1.5), "mfu.*1.5"),
        (lambda: seconds(1e12, "A100 80GB", True), "mfu.*True"),
        (lambda: seconds(float("nan"), "A100 80GB"), "flops.*nan"),
        (lambda: seconds(-1, "A100 80GB"), "flops.*-1"),
        (lambda: fits(-1), "nbytes.*-1"),
        (lambda: fits(float("inf")), "nbytes.*inf"),
        (lambda: fits(1, reserve=-5), "reserve.*-5"),
        (lambda: budget("GPT-2").seconds("A100 80GB", tokens=0), "tokens.*0"),
        (lambda: budget("GPT-2").cost("A100 80GB", 10, -1), "price_per_hour.*-1"),
    ],
)
def test_bad_calls_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
