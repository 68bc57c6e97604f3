"""Intruder dimensions: found by their definition, taken down exactly, and as PEFT does it where PEFT is right."""

import copy
import math

import peft
import pytest
import torch
from adapters_for_tests import adapter, factors, peft_carrying, peft_delta, random, relative
from models_for_tests import fill, gpt2, linear, llama, logits, unchanged
from peft.tuners.lora.intruders import reduce_intruder_dimension
from torch.testing import assert_close

from lora_lab import inject, lora_layers, merge_
from lora_lab.base import oriented_weight
from lora_lab.combine import reduce_intruders
from lora_lab.spectrum import intruder_dimensions

SHAPES = [(20, 12), (12, 20), (9, 9), (1, 6), (6, 1)]
PEFT_021 = pytest.mark.skipif(not peft.__version__.startswith("0.21."), reason="a fault of PEFT 0.21")


def rotation(n: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(random(n, n, seed=seed, dtype=torch.float64)).Q


def with_spectrum(values, out: int, in_: int) -> torch.Tensor:
    k = len(values)
    return rotation(out, 1)[:, :k] @ torch.diag(torch.tensor(values).double()) @ rotation(in_, 2)[:, :k].T


def by_definition(W, delta, k, epsilon) -> tuple[list[float], list[int], torch.Tensor]:
    """Best cosines of the top k, the intruders among them, and Σ s u vᵀ over those: in fp64, one by one."""
    old = torch.linalg.svd(W.double(), full_matrices=False).U
    U, s, Vh = torch.linalg.svd(W.double() + delta.double(), full_matrices=False)
    best = [max(abs(float(U[:, j] @ old[:, i])) for i in range(old.shape[1])) for j in range(min(k, len(s)))]
    found = [j for j, cosine in enumerate(best) if cosine < epsilon]
    return best, found, sum((s[j] * U[:, j, None] * Vh[j] for j in found), torch.zeros_like(U @ Vh))


# --- finding them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_found_by_the_definition(shape, dtype):
    W = random(*shape, dtype=dtype)
    for seed in range(4):
        delta = factors(*shape, rank=2, seed=seed, size=1 + seed, dtype=torch.float64).delta().to(dtype)
        for k, epsilon in ((1, 0.9), (5, 0.5), (10, 0.7)):
            found = intruder_dimensions(W, delta, k, epsilon)
            best, indices, total = by_definition(W, delta, k, epsilon)
            assert_close(found.similarity.double(), torch.tensor(best).double(), rtol=1e-3, atol=1e-3)
            assert found.indices.tolist() == indices
            assert_close(((found.U * found.s) @ found.Vh).double(), total, rtol=1e-3, atol=1e-3)


def test_a_planted_intruder_is_found_and_a_familiar_direction_is_not():
    W = with_spectrum([9.0, 7, 5, 3, 2, 1], 20, 12)
    left, right = rotation(20, 1)[:, 10:11], rotation(12, 2)[:, 8:9]  # orthogonal to all of W
    assert intruder_dimensions(W, 6 * left @ right.T).indices.tolist() == [2]  # after 9 and 7
    assert intruder_dimensions(W, 6 * left @ right.T, k=2).indices.tolist() == []
    found = intruder_dimensions(W, 0.5 * left @ right.T)
    assert len(found.similarity) == 7  # W has rank 6, and this is one more
    assert found.similarity[6] < 1e-6
    assert_close((found.U * found.s) @ found.Vh, 0.5 * left @ right.T)
    known = rotation(20, 1)[:, 3:4] @ rotation(12, 2)[:, 3:4].T
    assert intruder_dimensions(W, 30 * known).indices.tolist() == []  # louder, not new
    # Equally along two old directions: cosine √½ with either.
    mixed = (rotation(20, 1)[:, 4:5] + rotation(20, 1)[:, 5:6]) / math.sqrt(2)
    assert_close(intruder_dimensions(W, 1e4 * mixed @ right.T).similarity[0].item(), math.sqrt(0.5), rtol=1e-3, atol=0)


def test_no_update_no_intruder_and_rounding_noise_is_none():
    for W in (random(20, 12), with_spectrum([9.0, 7, 5], 20, 12), with_spectrum([9.0, 7, 5], 12, 20)):
        found = intruder_dimensions(W, torch.zeros_like(W), epsilon=0.9)
        assert len(found.indices) == 0
        assert found.similarity.min() > 0.999


def test_in_an_empty_weight_every_direction_is_new():
    found = intruder_dimensions(torch.zeros(20, 12), factors(20, 12, rank=3).delta())
    assert found.indices.tolist() == [0, 1, 2]
    assert not found.similarity.any()


# --- taking them down ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.75, 1.0])
def test_exactly_the_intruders_shrink(keep, rslora):
    base = llama(layers=1)
    start = adapter(base, seed=1, rslora=rslora)
    result = reduce_intruders(start, base, keep=keep)
    for path, f in start.items():
        W = base.get_submodule(path).weight.detach()
        _, found, total = by_definition(W, f.delta(), 10, 0.5)
        assert result.intruders[path].indices.tolist() == found
        assert found
        new = result.adapter[path]
        error = new.delta().double() - (f.delta().double() + (keep - 1) * total)
        assert error.norm() < 1e-5 * f.delta().norm()  # singular vectors in fp32
        assert new.rank == f.rank + (len(found) if keep < 1 else 0)
        assert (new.scale, new.rslora) == (pytest.approx(f.scale), rslora)
        assert result.lost[path] == 0


def test_the_rank_does_not_grow_for_an_intruder_inside_the_update():
    """ΔW = s·b aᵀ with b and a orthogonal to W is itself the intruder: its size changes, its rank does not."""
    W = with_spectrum([9.0, 7, 5, 3, 2, 1], 20, 12)
    f = factors(20, 12, 1, 3)._replace(B=2 * rotation(20, 1)[:, 10:11], A=3 * rotation(12, 2)[:, 8:9].T)
    found = reduce_intruders({"x": f}, {"x": W}, keep=0.25)
    assert found.intruders["x"].indices.tolist() == [0]
    assert found.adapter["x"].rank == 1
    assert_close(found.adapter["x"].delta(), 0.25 * f.delta())
    assert not reduce_intruders({"x": f}, {"x": W}, keep=0).adapter["x"].delta().abs().max() > 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_without_intruders_keep_their_factors(dtype):
    base = llama(layers=1)
    start = adapter(base, size=0.01, dtype=dtype)
    result = reduce_intruders(start, base)
    for path, f in start.items():
        assert len(result.intruders[path].indices) == 0
        assert torch.equal(result.adapter[path].A, f.A.float())
        assert torch.equal(result.adapter[path].B, f.B.float())
        assert result.adapter[path].A.data_ptr() != f.A.data_ptr()
        assert result.adapter[path].alpha == f.alpha


@pytest.mark.parametrize("adapted", [False, True])
def test_base_and_adapter_are_only_read(adapted):
    base = llama(layers=1)
    start = adapter(base, seed=1)
    before = copy.deepcopy(start)
    plain = reduce_intruders(start, base)
    weights = {path: base.get_submodule(path).weight for path in start}
    if adapted:
        base = fill(inject(base, list(start), 2, 3))
    with unchanged(base):
        result = reduce_intruders(start, base)
    for path, f in before.items():
        assert torch.equal(start[path].A, f.A)
        assert torch.equal(start[path].B, f.B)
        for other in (plain, reduce_intruders(start, weights)):
            assert torch.equal(result.adapter[path].A, other.adapter[path].A)
        assert not result.adapter[path].A.requires_grad


# --- PEFT ------------------------------------------------------------------------------------------------------------


def peft_reduced(base, start, k=10, epsilon=0.5, keep=0.75) -> peft.PeftModel:
    twin = peft_carrying(base, [start])
    reduce_intruder_dimension(twin, "a0", "less", k, epsilon, keep, logging_sink=None)
    return twin


@pytest.mark.parametrize("settings", [{}, {"k": 3, "epsilon": 0.7, "keep": 0.2}, {"keep": 1.0}])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("size", [0.1, 0.3, 1.0])
def test_with_the_rank_kept_it_is_peft(size, rslora, settings):
    base = llama()
    start = adapter(base, seed=1, size=size, rslora=rslora)
    twin = peft_reduced(base, start, **settings)
    result = reduce_intruders(start, base, **settings, keep_rank=True)
    for path, f in start.items():
        new = result.adapter[path]
        assert (new.rank, new.rslora) == (f.rank, rslora)
        assert new.alpha == pytest.approx(f.alpha)
        assert relative(new.delta(), peft_delta(twin, path, "less")) < 5e-6


def test_what_keeping_the_rank_loses():
    base = llama()
    start = adapter(base, seed=1, size=0.1)
    exact, kept = reduce_intruders(start, base), reduce_intruders(start, base, keep_rank=True)
    for path in start:
        lost = relative(kept.adapter[path].delta(), exact.adapter[path].delta())
        assert kept.lost[path] == pytest.approx(lost, rel=1e-4, abs=1e-6)
        assert (lost > 1e-3) == (len(kept.intruders[path].indices) > 0)
    assert max(kept.lost.values()) > 0.1


@PEFT_021
def test_peft_breaks_conv1d_where_ours_is_that_of_the_linear_layer():
    base = gpt2()
    start = adapter(base, ("c_attn",), size=0.5)
    twin = peft_reduced(base, start)
    weights = {path: oriented_weight(base.get_submodule(path)).contiguous() for path in start}
    ours, same = reduce_intruders(start, base), reduce_intruders(start, weights)
    for path, f in start.items():
        assert len(ours.intruders[path].indices)
        assert_close(ours.adapter[path].delta(), same.adapter[path].delta())
        assert twin.base_model.model.get_submodule(path).lora_B["less"].weight.shape != f.B.shape
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        logits(twin)


@PEFT_021
def test_peft_rounds_the_adapter_to_the_dtype_of_the_base():
    base = llama(torch.bfloat16)
    start = adapter(base, seed=1)
    twin = peft_reduced(base, start)
    ours = reduce_intruders(start, base, keep_rank=True)
    for path in start:
        layer = twin.base_model.model.get_submodule(path)
        assert (layer.lora_A["a0"].weight.dtype, layer.lora_A["less"].weight.dtype) == (torch.float32, torch.bfloat16)
        assert ours.adapter[path].A.dtype == torch.float32
        off = relative(peft_delta(twin, path, "less").float(), ours.adapter[path].delta())
        assert 1e-4 < off < 0.02


# --- what is refused -------------------------------------------------------------------------------------------------


def test_bad_settings_are_refused():
    W, delta = random(20, 12), random(20, 12, seed=1)
    start, base = {"x": factors(20, 12)}, {"x": W}
    bad = {
        "k 0 is outside 1": {"k": 0},
        "k must be a whole number, got True": {"k": True},
        "epsilon must be above 0 and at most 1, got 0": {"epsilon": 0},
        "got 1.5": {"epsilon": 1.5},
        "got nan": {"epsilon": math.nan},
    }
    for message, settings in bad.items():
        with pytest.raises((ValueError, TypeError), match=message):
            intruder_dimensions(W, delta, **settings)
        with pytest.raises((ValueError, TypeError), match=message):
            reduce_intruders(start, base, **settings)
    for keep in (-0.1, 1.1, math.nan, None, True):
        with pytest.raises(ValueError, match=rf"keep must be from 0 .* got {keep}"):
            reduce_intruders(start, base, keep=keep)
    with pytest.raises(TypeError):
        intruder_dimensions(W, delta, k=2.5)
    with pytest.raises(ValueError, match=r"W \(20, 12\) and delta_W \(12, 20\) differ"):
        intruder_dimensions(W, delta.T)
    with pytest.raises(ValueError, match="delta_W has 240 entries that are NaN"):
        intruder_dimensions(W, delta * math.nan)


def test_a_base_that_does_not_fit_is_refused():
    start, nan = {"0": factors(20, 12)}, random(20, 12)
    nan[3, 4] = math.nan
    bad = {
        "the base lacks 1 of 1 layers .'0'": {"1": random(20, 12)},
        r"'0': the adapter wants a weight .* = \(20, 12\), the base has \(12, 20\)": {"0": random(12, 20)},
        "'0': the base must have a linear layer or a weight there, got ReLU": torch.nn.Sequential(torch.nn.ReLU()),
        "base must be a model or map paths to weights, got list": [random(20, 12)],
        "0 has 1 entries that are NaN": {"0": nan},
    }
    for message, base in bad.items():
        with pytest.raises((ValueError, TypeError), match=message):
            reduce_intruders(start, base)
    with pytest.raises(ValueError, match="has no layers"):
        reduce_intruders({}, {"0": nan})
    model = fill(inject(torch.nn.Sequential(linear(20, 12)), ["0"], 2, 3))
    merge_(model)
    with unchanged(model), pytest.raises(ValueError, match="'0': the base weight holds an update, it is merged"):
        reduce_intruders(start, model)
    assert lora_layers(model)["0"].merged


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    base = llama(layers=1)
    start = adapter(base, seed=1)
    wanted = reduce_intruders(start, base)
    result = reduce_intruders(start, base.cuda())  # the adapter stays where it is
    for path in start:
        assert result.intruders[path].U.is_cuda
        assert not result.adapter[path].A.is_cuda
        assert relative(result.adapter[path].delta(), wanted.adapter[path].delta()) < 1e-5
