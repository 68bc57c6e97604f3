"""LoRA on experts: the formula against arithmetic, every number against PEFT's, and products against whole tensors."""

import copy

import pytest
import torch
from experts_for_tests import (
    DOWN,
    MIXTURES,
    UP,
    fill_experts,
    filled_pair,
    gpt_oss,
    mixtral,
    pair,
    peft_updates,
    updates,
)
from models_for_tests import ALPHA, DTYPES, HALF, RANK, logits, token_ids
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from variants_for_tests import Largest, close

from lora_lab import count
from lora_lab.variants.experts import ExpertUpdate, LoRAExperts, inject_experts
from lora_lab.variants.experts.products import Stack

WAYS = [(dtype, how) for dtype in DTYPES for how in ("eager", "grouped_mm", "batched_mm")]
WAYS.remove((torch.float64, "grouped_mm"))  # torch has no such kernel


@pytest.mark.parametrize("transposed", [False, True])
def test_the_formula(transposed):
    shape = (3, 6, 9) if transposed else (3, 9, 6)  # 3 experts, in 6, out 9
    weight = torch.randn(shape, dtype=torch.float64)
    update = ExpertUpdate(weight, 2, 5, init=False, transposed=transposed)
    assert (update.A.shape, update.B.shape) == ((6, 6), (9, 6))
    total, folded = update(weight), torch.empty_like(weight)
    update.fold(weight, folded)
    for e in range(3):
        delta = 5 / 2 * update.B[:, e::3] @ update.A[2 * e : 2 * e + 2]
        for result in (total[e], folded[e]):
            close(result - weight[e], delta.T if transposed else delta, 1e-13)
    assert bool((total - weight).abs().max() > 0.1)
    assert ExpertUpdate(weight, 4, 10, rslora=True, transposed=transposed).scale == 10 / 4**0.5


@pytest.mark.parametrize("init", [True, "gaussian", False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MIXTURES)
def test_init_and_counts_as_in_peft(name, dtype, init):
    ours, twin = pair(MIXTURES[name](dtype), init=init)
    theirs = peft_updates(twin)
    assert updates(ours).keys() == theirs.keys()
    assert len(theirs) == 4
    for path, update in updates(ours).items():
        for mine, their in zip((update.A, update.B), theirs[path], strict=True):
            torch.testing.assert_close(mine, their, rtol=0, atol=0)
        assert update.A.any()
        assert bool(update.B.any()) == (init is False)
    assert count(ours)[:2] == twin.get_nb_trainable_parameters()
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        f"{path.rpartition('.')[0]}.updates.{path.rpartition('.')[2]}.{factor}" for path in theirs for factor in "AB"
    }


def step(model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """The logits, and the gradients of what trains by the order of its tensors."""
    model.zero_grad()
    result = model(input_ids=token_ids(), labels=token_ids())
    result.loss.backward()
    factors = [(u.A, u.B) for u in updates(model).values()] or list(peft_updates(model).values())
    return result.logits, [factor.grad for one in factors for factor in one]


@pytest.mark.parametrize(("dtype", "how"), WAYS, ids=str)
@pytest.mark.parametrize("name", MIXTURES)
def test_forward_and_gradients_as_in_peft(name, dtype, how):
    base = MIXTURES[name](dtype, how)
    before = logits(base)
    for targets, rslora in (((UP, DOWN), False), ((DOWN,), True)):
        ours, twin = filled_pair(base, targets, rslora=rslora)
        (mine, gradients), (theirs, expected) = step(ours), step(twin)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert (mine - before).abs().max() > 0.01
        order = [list(peft_updates(twin)).index(path) for path in updates(ours)]
        for i, place in enumerate(order):
            for factor in (0, 1):
                assert gradients[2 * i + factor].any()
                torch.testing.assert_close(
                    gradients[2 * i + factor], expected[2 * place + factor], rtol=1e-6, atol=1e-8
                )


@pytest.mark.parametrize("how", ["eager", "grouped_mm"])
def test_ten_training_steps_as_in_peft(how):
    ours, twin = pair(mixtral(how=how))
    losses = []
    for model in (ours, twin):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
        losses.append([])
        for _ in range(10):
            losses[-1].append(model.train()(input_ids=token_ids(), labels=token_ids()).loss)
            optimizer.zero_grad()
            losses[-1][-1].backward()
            optimizer.step()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    assert losses[0][-1] < losses[0][0] - 0.1
    for path, (A, B) in peft_updates(twin).items():
        close(updates(ours)[path].A, A, 1e-3)
        close(updates(ours)[path].B, B, 1e-3)


def run_experts(experts: LoRAExperts) -> list[Tensor]:
    """The output for 11 tokens, none of which goes to the third expert, and the gradients of all that has one."""
    dtype = experts.base.down_proj.dtype
    x = torch.randn(11, 24, generator=torch.Generator().manual_seed(4)).bfloat16().to(dtype).requires_grad_()
    weights = torch.linspace(0.1, 0.9, 22).reshape(11, 2).bfloat16().to(dtype).requires_grad_()
    y = experts.zero_grad() or experts(x, torch.tensor([[0, 1], [1, 0], [0, 1]] + [[1, 0]] * 8), weights)
    assert y.dtype == dtype
    (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)).sum().backward()
    return [y, x.grad, weights.grad, *(p.grad for p in experts.updates.parameters())]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("targets", [(UP, DOWN), (UP,), (DOWN,)], ids=str)
@pytest.mark.parametrize("name", MIXTURES)
def test_products_give_what_whole_tensors_give(name, targets, dtype):
    models = [inject_experts(MIXTURES[name](dtype), targets, RANK, ALPHA, fused=fused) for fused in (False, True)]
    for layer in (0, 1):
        plain, fused = (fill_experts(model).model.layers[layer].mlp.experts for model in models)
        whole, products = run_experts(plain), run_experts(fused)
        exact = run_experts(copy.deepcopy(plain).double())
        for mine, theirs, truth in zip(products, whole, exact, strict=True):
            if dtype in HALF:
                assert (mine - truth).norm() < 2 * (theirs - truth).norm()
            else:
                close(mine, theirs, 1e-5 if dtype == torch.float32 else 1e-12)
            assert truth.any()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_in_half_precision_products_keep_an_update_that_whole_tensors_lose(dtype):
    experts = inject_experts(mixtral(dtype), (UP,), RANK, ALPHA).model.layers[0].mlp.experts
    update, weight = experts.updates["gate_up_proj"], experts.base.gate_up_proj
    signs = torch.tensor([1.0, -1.0]).repeat(12)  # W x = 0 for W of ones
    with torch.no_grad():
        weight.fill_(1)
        update.A.copy_(signs.expand_as(update.A))
        update.B.fill_(
            1e-4 / ALPHA
        )  # s·BA = 10 / 4 · 4 · 1e-5: less than half of the distance from 1 to its neighbours
    x = signs.to(dtype).expand(5, 24)
    assert torch.equal(update(weight), weight)
    close(Stack(experts.base, "gate_up_proj", experts.updates)(2, x).float(), torch.full((5, 80), 24e-4), 1e-2)


def test_products_form_nothing_of_the_size_of_the_experts():
    x, index = torch.randn(4, 24), torch.tensor([[0, 1], [2, 1], [0, 2], [1, 2]])
    sizes = {}
    for fused in (False, True):
        experts = fill_experts(inject_experts(mixtral(), (UP, DOWN), 1, 3, fused=fused)).model.layers[0].mlp.experts
        with Largest() as largest:
            experts(x, index, torch.full((4, 2), 0.5)).sum().backward()
        sizes[fused] = largest.numel
    assert sizes[False] >= 3 * 80 * 24
    assert sizes[True] <= 8 * 80  # of the activations


def test_autocast_and_activation_checkpointing():
    for fused in (False, True):
        experts = (
            fill_experts(inject_experts(gpt_oss(), (UP, DOWN), RANK, ALPHA, fused=fused)).model.layers[1].mlp.experts
        )
        assert isinstance(experts, LoRAExperts)
        arguments = torch.tensor([[0, 1], [2, 1], [0, 2]]), torch.full((3, 2), 0.5)
        x, gradients = torch.randn(3, 24), []
        for recomputed in (False, True):
            y = checkpoint(experts, x, *arguments, use_reentrant=False) if recomputed else experts(x, *arguments)
            gradients.append(torch.autograd.grad(y.sin().sum(), list(experts.updates.parameters())))
        assert all(torch.equal(*both) for both in zip(*gradients, strict=True))
        weight, update = experts.base.down_proj, experts.updates["down_proj"]
        total = update(weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(update(weight), total)  # the sum stays exact
            close(experts(x, *arguments).float(), y, 0.05)
