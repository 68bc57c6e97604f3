"""Experts merged into their tensors and taken out again, and what cannot be merged."""

import copy

import pytest
import torch
from experts_for_tests import DOWN, MIXTURES, PATHS, UP, Shared, fill_experts, filled_pair, mixtral, updates
from models_for_tests import ALPHA, DTYPES, HALF, RANK, logits, unchanged

from lora_lab.variants.experts import (
    eject_experts,
    expert_layers,
    inject_experts,
    merge_experts_,
    unmerge_experts_,
)


def base_path(path: str) -> str:
    module, _, tensor = path.rpartition(".")
    return f"{module}.base.{tensor}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MIXTURES)
def test_merge_and_unmerge(name, dtype):
    ours, twin = filled_pair(MIXTURES[name](dtype))
    before = {path: ours.get_parameter(base_path(path)).clone() for path in updates(ours)}
    expected = logits(ours)
    merge_experts_(ours)
    theirs = twin.merge_and_unload()
    rounding = torch.finfo(dtype).eps
    for path, update in updates(ours).items():
        weight = ours.get_parameter(base_path(path))
        A, B = (factor.double() for factor in update.factors())
        delta = update.scale * B @ A
        exact = before[path].double() + (delta.mT if update.transposed else delta)
        assert ((weight - exact).abs() <= rounding * exact.abs() + 1e-6).all()
        # PEFT rounds ΔW to W's dtype before it adds, and rounds the sum once more.
        error, their_error = ((w.double() - exact).abs().max() for w in (weight, theirs.get_parameter(path)))
        assert error <= their_error
        assert (weight - theirs.get_parameter(path)).abs().max() <= 2 * rounding * exact.abs().max()
    assert all(layer.merged for layer in expert_layers(ours).values())
    if dtype not in HALF:  # where rounding sends some tokens to other experts
        assert (logits(ours) - expected).abs().max() < 1e-4
    state = copy.deepcopy(ours.state_dict())
    assert all(torch.equal(tensor, state[key]) for key, tensor in merge_experts_(ours).state_dict().items())
    unmerge_experts_(ours)
    for path in updates(ours):
        weight, largest = ours.get_parameter(base_path(path)), before[path].abs().max() + 10
        assert (weight - before[path]).abs().max() <= 2 * rounding * largest
    restored = {path: ours.get_parameter(base_path(path)).clone() for path in updates(ours)}
    unmerge_experts_(merge_experts_(ours, keep_base=True))
    assert all(torch.equal(ours.get_parameter(base_path(path)), restored[path]) for path in restored)
    assert not any(
        name.startswith("kept") for layer in expert_layers(ours).values() for name, _ in layer.named_buffers()
    )


@pytest.mark.parametrize(
    ("dtype", "fill_b", "words"),
    [
        (torch.float16, 6e4, r"experts.down_proj: W \+ s·BA is not finite in torch.float16"),
        (torch.float32, float("nan"), r"experts.down_proj: W \+ s·BA is not finite in torch.float32"),
        (torch.bfloat16, float("inf"), r"experts.down_proj: W \+ s·BA is not finite in torch.bfloat16"),
    ],
)
def test_what_cannot_be_merged_is_refused(dtype, fill_b, words):
    model = fill_experts(inject_experts(mixtral(dtype), [DOWN, UP], RANK, ALPHA))
    with torch.no_grad():
        updates(model)[PATHS[3]].B[2, 5] = fill_b
    with unchanged(model), pytest.raises(ValueError, match=words):
        merge_experts_(model)


@pytest.mark.parametrize("b", [3e4, 2.4e4])
def test_the_sum_itself_decides(b):
    model = inject_experts(mixtral(torch.float16), [DOWN], RANK, ALPHA)
    with torch.no_grad():
        A, B = updates(model)[PATHS[1]].factors()
        A[0].zero_()
        A[0, 0, 0], A[0, 1, 1] = 1, b
        B[0, 0, 0] = b  # s·BA = 2.5 b; |B_i|·|A_j| is far beyond fp16
    if 2.5 * b < torch.finfo(torch.float16).max:
        assert merge_experts_(model) is model
    else:
        with unchanged(model), pytest.raises(ValueError, match="is not finite"):
            merge_experts_(model)


def test_a_shared_tensor_is_refused():
    model = inject_experts(Shared(), ["a.w"], 2, 3)
    with unchanged(model), pytest.raises(ValueError, match="a shares a tensor with b"):
        merge_experts_(model)


def test_merged_experts_are_not_ejected():
    model = merge_experts_(inject_experts(mixtral(), [DOWN], RANK, ALPHA))
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"2 modules of experts are merged .*: unmerge_experts_ first"),
    ):
        eject_experts(model)
