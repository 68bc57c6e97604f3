"""The walk over a tape, on tapes so short that every moment can be counted by hand."""

import torch

from lora_lab.budget.linear import Linear, linear
from lora_lab.budget.measure import Accountant
from lora_lab.budget.rules import How, Rules
from lora_lab.budget.tape import Value
from lora_lab.budget.walk import backward_peak, forward_peak

N, FP32 = 100, torch.float32
BYTES = 4 * N


def tape(grad: bool = True) -> tuple[Rules, Value]:
    x = Value(N, FP32, grad)
    return Rules(How(1, 1, FP32, device="cpu"), x), x


def total(at: dict[str, int]) -> int:
    return sum(at.values())


def test_a_chain_frees_what_nobody_needs():
    t, x = tape()
    t.scale(t.scale(t.scale(x)))
    assert t.saved() == {}
    assert total(forward_peak(t)) == 3 * BYTES  # x, held by the caller; one factor; the next
    assert total(backward_peak(t)) == 2 * BYTES  # a gradient and the next


def test_saved_values_pile_up_going_forward_and_vanish_going_back():
    t, x = tape()
    y = x
    for _ in range(3):
        y = t.of_output("tanh", y)
    assert total(t.saved_bytes()) == 3 * BYTES
    assert total(forward_peak(t)) == 4 * BYTES
    assert total(forward_peak(t, keep=False)) == 3 * BYTES
    assert total(backward_peak(t)) == 5 * BYTES  # three saved, the gradient that comes in, the one computed
    # Checkpointed: x and the gradient, then all but the last tanh again, then the last two gradients.
    assert total(backward_peak(t, checkpointed=True)) == 5 * BYTES


def test_a_sum_hands_one_gradient_to_both_and_adding_to_a_shared_one_takes_memory():
    t, x = tape()
    t.add(x, t.scale(x))
    # dy is the gradient of x and of the product; the product's own makes two; their sum cannot be written into dy.
    assert total(backward_peak(t)) == 3 * BYTES
    t, x = tape()
    t.add(t.scale(x), t.scale(x))
    assert total(backward_peak(t)) == 3 * BYTES  # dy, then one gradient of x; the second is added into the first


def test_nothing_is_saved_where_nothing_needs_a_gradient():
    t, x = tape(grad=False)
    t.mul(t.of_input("silu", x), x)
    assert t.saved() == {}
    assert total(backward_peak(t)) == BYTES


def test_products_of_activations_save_only_what_the_other_needs():
    t, x = tape()
    constant = Value(N, FP32)
    t.mul(x, constant)
    assert list(t.saved()) == [constant.buffer]
    t, x = tape()
    other = Value(N, FP32, grad=True)
    t.mul(x, other)
    assert set(t.saved()) == {x.buffer, other.buffer}


def test_a_view_shares_its_buffer_and_is_counted_once():
    t, x = tape()
    half = t.part(x, N // 2)
    t.join(t.of_input("silu", half), t.of_input("silu", t.part(x, N // 2)))
    assert total(t.saved_bytes()) == BYTES


def test_what_a_linear_layer_saves():
    def saved(**more) -> int:
        t, x = tape()
        make = {"out": 30, "in_": 10, "bias": True, "trains": False, "dtype": FP32} | more
        linear(t, x, Linear(**make))
        return total(t.saved_bytes())

    rows = N // 10
    assert saved() == 0
    assert saved(codes=True) == 0
    assert saved(trains=True) == BYTES
    assert saved(rank=3) == BYTES + 4 * 3 * rows
    # DoRA: W x without its bias and B A x, and three vectors: n, m/n and m/n - 1
    assert saved(rank=3, dora=True) == saved(rank=3) + 2 * 4 * 30 * rows + 3 * 4 * 30


def test_checkpointing_repeats_all_before_the_last_that_saves():
    t, x = tape()
    y = t.of_input("silu", t.scale(x))
    t.scale(t.scale(y))
    assert [op.name for op in t.repeated()] == ["scale"]


def test_the_accountant_sees_what_is_alive():
    x = torch.ones(1000)
    with Accountant([x]) as accountant:
        assert accountant.now == x.nbytes
        y = x * 2
        view = y[10:]
        assert accountant.now == 2 * x.nbytes
        del y
        assert accountant.now == 2 * x.nbytes  # the view still holds it
        del view
        assert accountant.now == x.nbytes
        assert accountant.peak == 2 * x.nbytes
        z = torch.exp(x).sum()
        assert accountant.peak == 2 * x.nbytes
        assert z.ndim == 0
        accountant.reset()
        assert accountant.peak == accountant.now == x.nbytes


def test_the_accountant_counts_meta_tensors():
    with Accountant() as accountant:
        weight = torch.empty(10_000, 10_000, device="meta", requires_grad=True)
        loss = (weight * 2).sum()
        loss.backward()
        assert accountant.now == 2 * weight.nbytes  # the weight and its gradient
        assert accountant.peak - 2 * weight.nbytes < 100  # the gradient of a sum is one number, expanded
