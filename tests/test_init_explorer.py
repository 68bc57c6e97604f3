"""The explorer's numbers are torch's own, every control moves picture and words, and it answers in time."""

import itertools
import statistics
import time

import numpy as np
import pytest
import torch
from models_for_tests import gpt2, linear, llama
from torch import nn

from lora_lab.batches import collate
from lora_lab.init.statistics import input_covariances
from lora_lab.quantize import quantize
from lora_lab.quantized_linear import quantize_model_
from lora_lab.widgets.init_explorer import InitExplorer, init_explorer

PATH = "model.layers.1.mlp.down_proj"


def model_of() -> nn.Module:
    return llama(hidden=64)


def batches() -> list[dict]:
    tokens = torch.randint(3, 60, (48, 14), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": row, "labels": [-100] * 2 + row[2:]} for row in tokens]
    return [collate(rows[i : i + 16]) for i in range(0, 48, 16)]


def at(explorer: InitExplorer, **values) -> InitExplorer:
    for name, value in values.items():
        getattr(explorer, name).value = value
    return explorer


@pytest.mark.parametrize("rank", [2, 8])
def test_pissa_takes_the_largest_directions_out_of_the_base(rank):
    model = model_of()
    explorer = at(init_explorer(model), init="pissa", layer=PATH, rank=rank, alpha=32)
    W = model.get_submodule(PATH).weight.detach().double()
    s = torch.linalg.svdvals(W)
    n = explorer.numbers
    share = float(s[:rank].square().sum().sqrt() / s.norm())
    assert (n.scale, n.moves) == (32 / rank, "A and B")
    assert n.removed == pytest.approx(share, rel=1e-4)
    assert n.update == pytest.approx(share, rel=1e-4)
    assert n.distance < 1e-5
    base = explorer._values[1].get_ydata()
    np.testing.assert_allclose(base[: len(s) - rank], s[rank:], rtol=1e-3)
    np.testing.assert_allclose(explorer._values[2].get_ydata(), s[:rank], rtol=1e-3)
    heights = [bar.get_height() for bar in explorer._bars["A"]]
    assert sum(heights[: -(-rank // 4)]) == pytest.approx(1, abs=1e-4)  # 64 directions, four in a group


def test_olora_s_base_depends_on_alpha_and_the_start_does_not():
    explorer = at(init_explorer(model_of()), init="olora", layer=PATH, rank=4)
    removed = [at(explorer, alpha=alpha).numbers for alpha in (4, 8)]
    assert removed[1].removed == pytest.approx(2 * removed[0].removed, rel=1e-4)
    assert max(n.distance for n in removed) < 1e-5


@pytest.mark.parametrize("init", ["default", "pissa", "loftq", "loftq 5"])
def test_beside_nf4_the_distance_is_what_quantizing_leaves(init):
    model = model_of()
    explorer = at(init_explorer(model), base="NF4", layer=PATH, rank=8, alpha=16, init=init)
    W = model.get_submodule(PATH).weight.detach()
    plain = float((W - quantize(W, "nf4").dequantize()).norm() / W.norm())
    if init == "default":
        assert explorer.numbers.distance == explorer.numbers.removed == pytest.approx(plain, rel=1e-4)
    else:
        assert 0.1 * plain < explorer.numbers.distance < plain
    assert "NF4 codes" in explorer.readout()


def test_the_first_step_moves_what_has_a_gradient():
    explorer = at(init_explorer(model_of()), layer=PATH, rank=4)
    moves = {init: at(explorer, init=init).numbers.moves for init in ("default", "gaussian", "orthogonal", "mica")}
    assert moves == {"default": "B", "gaussian": "B", "orthogonal": "A and B", "mica": "A"}
    assert explorer._zero["A"].get_text() == "A = 0"
    assert "only A is ever trained" in explorer.readout()


def test_inits_that_look_at_data_need_it():
    model = model_of()
    assert "corda" not in init_explorer(model).init.options
    rows = batches()
    explorer = init_explorer(model, rows)
    assert {"corda", "corda kpm", "eva", "lora_ga"} <= set(explorer.init.options)
    at(explorer, layer=PATH, rank=8, init="corda")
    known = input_covariances(model, "all-linear", rows, progress=False)
    given = at(init_explorer(model, statistics={"corda": known}), layer=PATH, rank=8, init="corda")
    assert given.numbers == explorer.numbers
    assert "eva" not in given.init.options
    removed = [at(explorer, init=init).numbers.removed for init in ("corda", "corda kpm", "eva")]
    assert removed[0] > removed[1] > removed[2] == 0


def test_every_control_moves_picture_and_words():
    explorer = at(init_explorer(model_of()), init="olora", rank=4)
    seen = {(bytes(explorer.canvas.image.value), explorer.readout(), explorer.alt())}
    changes = (
        ("layer", "model.layers.0.self_attn.k_proj"),
        ("base", "NF4"),
        ("rank", 2),
        ("alpha", 64),
        ("init", "mica"),
    )
    for control, value in changes:
        getattr(explorer, control).value = value
        seen.add((bytes(explorer.canvas.image.value), explorer.readout(), explorer.alt()))
    assert all(len(set(column)) == 6 for column in zip(*seen, strict=True))


REFUSALS = {
    "an odd rank": ({"init": "orthogonal", "rank": 1}, "even"),
    "a base that is not quantized": ({"init": "loftq"}, "choose the base NF4"),
}


@pytest.mark.parametrize(("values", "words"), REFUSALS.values(), ids=REFUSALS)
def test_what_an_init_refuses_is_said_and_drawn(values, words):
    explorer = at(init_explorer(model_of()), **values)
    assert explorer.numbers is None
    assert words in explorer.readout()
    assert words in explorer.alt()
    assert explorer._zero["B"].get_text() == "refused"
    assert at(explorer, init="default").numbers is not None


def test_it_leaves_model_and_random_state_alone():
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    explorer = init_explorer(model)
    for init in explorer.init.options:
        at(explorer, init=init, base="NF4")
    torch.testing.assert_close(torch.rand(4), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_conv1d_is_explored_as_the_linear_layer_that_it_is():
    """GPT-2 stores (in, out). Shares of A lie over the directions of the inputs, those of B over the outputs."""
    turned, plain = nn.ModuleDict({"x": linear(20, 8, conv1d=True)}), nn.ModuleDict({"x": linear(20, 8)})
    plain["x"].weight.data = turned["x"].weight.data.T.contiguous()
    one, other = init_explorer(turned), init_explorer(plain)
    for init, base in itertools.product(("default", "pissa", "olora", "mica", "loftq"), ("fp32", "NF4")):
        for explorer in (one, other):
            at(explorer, init=init, base=base, rank=4)
        assert one.numbers == other.numbers
        assert (one.readout(), one.alt()) == (other.readout(), other.alt())
        for name in "AB":
            assert [b.get_height() for b in one._bars[name]] == [b.get_height() for b in other._bars[name]]
    # A random direction has 1 in 8 of A over the 8 inputs, and 1 in 20 of B over the 20 outputs.
    at(one, init="olora", base="fp32")
    assert [one._chance[name].get_ydata()[0] for name in "AB"] == pytest.approx([1 / 8, 1 / 20])


def test_gpt2_is_explored_on_data():
    model, path, rows = gpt2(), "transformer.h.1.mlp.c_fc", batches()
    explorer = at(init_explorer(model, rows), layer=path, rank=4, alpha=8)
    W = model.get_submodule(path).weight.detach().T  # (out 96, in 24)
    assert tuple(explorer._layer(path).weight.shape) == tuple(W.shape) == (96, 24)
    s = torch.linalg.svdvals(W)
    removed = float(s[:4].norm() / s.norm())
    assert at(explorer, init="pissa").numbers.removed == pytest.approx(removed, rel=1e-4)
    for init in explorer.init.options:
        at(explorer, init=init, base="NF4")
        assert explorer.numbers is not None, init
    covariance = input_covariances(model, "all-linear", rows, progress=False)[path]
    U, _, _ = torch.linalg.svd(W.double() @ covariance.double(), full_matrices=False)
    # CorDA's B spans the first left singular vectors of W·C, whatever is done about small values of C.
    start = at(explorer, init="corda", base="fp32")._start(path, explorer._layer(path).weight, 4, 2.0)
    Q, _ = torch.linalg.qr(start.B.double())
    assert torch.linalg.svdvals(Q.T @ U[:, :4]).min() > 0.99


def test_the_words_for_the_base_are_those_of_the_map():
    explorer = at(init_explorer(model_of()), layer=PATH, rank=4)
    words = {at(explorer, init=i, base=b)._base_words() for i in ("mica", "olora", "loftq") for b in ("fp32", "NF4")}
    assert words == {"W", "W − s·BA", "W − s·B₀A₀"} | {
        f"the NF4 codes of {what}" for what in ("W", "W − s·BA", "W − s·B₀A₀")
    }


def quantized(model: nn.Module) -> nn.Module:
    return quantize_model_(model, [PATH], "nf4")


WRONG = {
    "quantized": (lambda m: init_explorer(quantized(m)), rf"{PATH} is quantized, 1 of 14 layers are: W is gone"),
    "quantized, with data": (lambda m: init_explorer(quantized(m), batches()), rf"{PATH} is quantized"),
    "both": (lambda m: init_explorer(m, [], statistics={}), "both given"),
    "whose statistic": (lambda m: init_explorer(m, statistics={"pissa": {}}), "statistics for pissa"),
    "too few layers": (lambda m: init_explorer(m, statistics={"corda": {}}), "lacks 14 layers"),
    "no layers": (lambda m: init_explorer(nn.ReLU()), "linear"),
}


@pytest.mark.parametrize(("call", "words"), WRONG.values(), ids=WRONG)
def test_wrong_calls_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(model_of())


def test_a_slider_answers_in_time_on_a_layer_of_the_course_s_size():
    model = nn.Sequential(nn.Linear(512, 192))
    explorer = at(init_explorer(model), base="NF4")
    for init in ("pissa", "mica", "loftq 5"):
        at(explorer, init=init)
        times = []
        for rank, alpha in itertools.product((4, 8, 16), (8, 64)):
            began = time.process_time()  # other programs may have the machine
            at(explorer, rank=rank, alpha=alpha)
            times.append((time.process_time() - began) / 2)
        assert statistics.median(times) <= 0.100
