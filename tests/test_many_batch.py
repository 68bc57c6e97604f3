"""The arithmetic of a batch with another adapter in every row: exact, rounded once, in few blocks."""

import pytest
import torch
from adapters_for_tests import random
from many_for_tests import COMPOSITIONS, IN, MIX, OUT, exact, layer_carrying, one_layer
from models_for_tests import DTYPES, linear

from lora_lab.many.batch import Rows, blocks_of, plan_for
from lora_lab.quantized_linear import QuantizedLinear

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def rows_of(mixes: list, copies: int = 1) -> Rows:
    groups = {}
    for i, mix in enumerate(mixes):
        mix = {mix: 1.0} if isinstance(mix, str) else mix or {}
        groups.setdefault(repr(mix), (mix, []))[1].append(i)
    return Rows(list(groups.values()), copies)


@pytest.mark.parametrize("conv1d", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixes", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_the_update_is_summed_wide_and_rounded_once(mixes, dtype, conv1d):
    layer, found = one_layer(dtype, conv1d)
    layer.selection.rows = rows_of(mixes)
    x = random(len(mixes), 5, IN).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    # (1, 5, in) and (5, in) can take another road to the same base output: so base(x) is taken once, for all rows.
    base = layer.base(x).double()
    added = [exact(layer, found, {mix: 1} if isinstance(mix, str) else mix or {}, x) for mix in mixes]
    wanted = torch.stack([base[i] + (one - base)[i] for i, one in enumerate(added)])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bound = 0.5 * torch.finfo(dtype).eps * wanted.abs() + 40 * torch.finfo(wide).eps * (1 + wanted.abs())
    assert ((y.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("shape", [(3, IN), (3, 4, 2, IN), (6, 4, IN), (6, IN), (3, 0, IN)], ids=str)
def test_any_shape_of_input_with_rows_first(shape):
    layer, found = one_layer()
    mixes = ["b", MIX, "a"]
    layer.selection.rows = rows_of(mixes, copies=2)
    x = random(*shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], OUT)
    times = shape[0] // 3
    for i, mix in enumerate([{"b": 1}, MIX, {"a": 1}]):
        part = slice(i * times, (i + 1) * times)
        torch.testing.assert_close(y[part].double(), exact(layer, found, mix, x[part]), **CLOSE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mixes", [["a"] * 3, ["a", MIX, "b"], None], ids=str)
def test_inputs_and_outputs_that_are_not_contiguous(mixes, bias):
    layer, found = one_layer(bias=bias)
    layer.base.register_forward_hook(lambda _, __, y: y.transpose(0, 1).contiguous().transpose(0, 1))
    layer.selection.mix = MIX
    layer.selection.rows = mixes and rows_of(mixes)
    x = random(IN, 4, 3).permute(2, 1, 0)
    with torch.no_grad():
        y = layer(x)
    for i, mix in enumerate(mixes or [MIX] * 3):
        mix = {mix: 1.0} if isinstance(mix, str) else mix
        torch.testing.assert_close(y[i].double(), exact(layer, found, mix, x)[i], **CLOSE)


@pytest.mark.parametrize("shape", [(2, IN), (4, 3, IN), (9, 3, IN), (12, IN), (IN,), (1, 3, IN)], ids=str)
def test_another_first_axis_is_refused_naming_both_numbers(shape):
    """(12, in) is what 3 rows of 4 tokens look like where they have been flattened."""
    layer, _ = one_layer()
    layer.selection.rows = rows_of(["b", MIX, "a"], copies=2)
    with pytest.raises(ValueError, match=rf"3 rows, 2 copies of each, .*\({shape[0]},"):
        layer(random(*shape))


def test_one_vector_is_no_batch_of_rows():
    layer, _ = one_layer()
    layer.selection.rows = rows_of(["a"] * IN)
    with pytest.raises(ValueError, match=rf"{IN} rows .*\({IN},\)"):
        layer(random(IN))


@pytest.mark.parametrize("name", ["distinct", "one for all", "sorted, even"])
def test_rows_that_lie_right_are_not_moved(name):
    layer, _ = one_layer()
    plan = plan_for(rows_of(COMPOSITIONS[name]), layer.adapters, (OUT, IN))
    assert plan.places is None
    assert len(plan.A) == len(plan.B) == {"one for all": 1, "sorted, even": 3}.get(name, len(COMPOSITIONS[name]))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_bases(kind):
    layer, found = layer_carrying(QuantizedLinear.from_linear(linear(OUT, IN), kind))
    layer.selection.rows = rows_of(["a", "b"])
    x = random(2, 3, IN)
    for i, name in enumerate("ab"):
        torch.testing.assert_close(layer(x)[i].double(), exact(layer, found, {name: 1}, x)[i], **CLOSE)


def test_autocast():
    layer, found = one_layer()
    layer.selection.rows = rows_of(["a", MIX])
    x = random(2, 3, IN)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y[1].double(), exact(layer, found, MIX, x)[1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mixes", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_gradients_reach_the_input(mixes):
    layer, found = one_layer(torch.float64)
    layer.selection.rows = rows_of(mixes)
    x = random(len(mixes), 3, IN, dtype=torch.float64).requires_grad_()
    layer(x).square().sum().backward()
    for i, mix in enumerate(mixes):
        mix = {mix: 1.0} if isinstance(mix, str) else mix or {}
        row = x.detach()[i : i + 1].clone().requires_grad_()
        total = layer.base(row)
        for name, weight in mix.items():
            total = total + weight * row @ found[name].delta().double().T
        total.square().sum().backward()
        torch.testing.assert_close(x.grad[i : i + 1], row.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(30))
def test_blocks_hold_every_row_and_are_not_many(seed):
    generator = torch.Generator().manual_seed(seed)
    number, kinds = (int(torch.randint(1, high, (), generator=generator)) for high in (60, 9))
    kind = torch.randint(kinds, (number,), generator=generator).tolist()
    groups = [[i for i, k in enumerate(kind) if k == wanted] for wanted in sorted(set(kind))]
    blocks = blocks_of(groups)
    assert {row for _, members in blocks for row in members} == set(range(number))
    assert all(set(members) <= set(groups[k]) for k, members in blocks)
    (size,) = {len(members) for _, members in blocks}
    assert len(blocks) <= 2 * len(groups)
    assert size * len(blocks) <= 2 * (number + len(groups))
    # The groups one after the other, all of one size: nothing is moved and nothing copied.
    even = [list(range(4 * k, 4 * k + 4)) for k in range(len(groups))]
    assert blocks_of(even) == list(enumerate(even))
