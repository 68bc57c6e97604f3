"""combine, the methods that prune and vote: against PEFT where PEFT is right, against loops, and against symmetry."""

import math

import peft
import pytest
import torch
from adapters_for_tests import adapter, factors, padded, peft_combined, random, relative, wanted_sum
from models_for_tests import gpt2, llama

from lora_lab import Adapter, Factors, spectrum
from lora_lab.combine import combine
from lora_lab.combine.sparse import drop, majority_sign, trim

OUT, IN = 20, 12
FACTOR_METHODS = ("magnitude_prune", "dare_linear", "ties", "dare_ties")
METHODS = FACTOR_METHODS + tuple(f"{method}_svd" for method in FACTOR_METHODS)
PEFT_021 = pytest.mark.skipif(not peft.__version__.startswith("0.21."), reason="a fault of PEFT 0.21")


def seeded_combine(adapters, weights, method, seed=7, **options) -> Adapter:
    torch.manual_seed(seed)
    return combine(adapters, weights, method, **options)


def assert_equal_to_peft(base, adapters, weights, method, theirs_from=None, more=None, close=5e-6, **options) -> None:
    ours = seeded_combine(adapters, weights, method, **options, **(more or {}))
    state = torch.get_rng_state()
    theirs = peft_combined(base, theirs_from or adapters, weights, method, seed=7, **options)
    if method.startswith("dare"):
        assert torch.equal(torch.get_rng_state(), state)
    for path, delta in theirs.items():
        assert relative(ours[path].delta(), delta) < close


# --- PEFT, where it is right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vote", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.3, 0.8])
@pytest.mark.parametrize("method", METHODS)
def test_equal_to_peft_at_one_scale(method, density, vote):
    base = llama(layers=1)
    adapters = [adapter(base, seed=seed) for seed in range(3)]
    assert_equal_to_peft(
        base,
        adapters,
        [0.7, 1.3, 0.4],
        method,
        density=density,
        **{"majority_sign_method": vote} if "ties" in method else {},
    )


@pytest.mark.parametrize("method", [m for m in METHODS if m.endswith("svd") or "ties" not in m])
def test_equal_to_peft_at_different_alphas(method):
    """Without a vote among factors, PEFT takes the scales into account."""
    base = llama(layers=1)
    adapters = [adapter(base, seed=seed, alpha=alpha) for seed, alpha in enumerate((10, 3, 20))]
    assert_equal_to_peft(base, adapters, [0.7, 1.3, 0.4], method, density=0.5)


@pytest.mark.parametrize("method", [m for m in METHODS if m.endswith("svd")])
def test_equal_to_peft_at_different_ranks_and_layers(method):
    base = llama(layers=1)
    adapters = [adapter(base, ("q_proj", "v_proj"), 1, rank=3), adapter(base, ("v_proj", "up_proj"), 2, rank=5)]
    ours = seeded_combine(adapters, [1.5, 0.5], method, density=0.5, rank=4)
    theirs = peft_combined(base, adapters, [1.5, 0.5], method, seed=7, density=0.5, svd_rank=4)
    assert ours.keys() == theirs.keys()
    for path, delta in theirs.items():
        assert relative(ours[path].delta(), delta) < 5e-6


@pytest.mark.parametrize("method", ["magnitude_prune", "ties", "ties_svd", "magnitude_prune_svd"])
def test_equal_to_peft_on_conv1d(method):
    base = gpt2()
    adapters = [adapter(base, ("c_attn", "c_proj"), seed) for seed in range(2)]
    assert_equal_to_peft(base, adapters, [0.7, 1.3], method, density=0.5)


# --- the rules themselves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.01, 0.25, 0.5, 0.99, 1.0])
def test_trim_keeps_the_largest(density):
    x = random(7, 9)
    kept = trim(x, density)
    count = max(1, math.floor(63 * density))
    largest = sorted(x.abs().flatten().tolist(), reverse=True)[:count]
    assert sorted(kept[kept != 0].abs().tolist(), reverse=True) == largest
    assert torch.equal(kept[kept != 0], x[kept != 0])


def test_drop_keeps_the_mean():
    x = 1 + random(40, 50).abs()
    torch.manual_seed(1)
    samples = torch.stack([drop(x, 0.3) for _ in range(400)])
    kept = samples != 0
    assert kept.float().mean().item() == pytest.approx(0.3, rel=0.02)
    torch.testing.assert_close(samples[kept], (x / 0.3).expand_as(samples)[kept])
    assert samples.mean(0).mean().item() == pytest.approx(x.mean().item(), rel=0.02)
    assert 0.2 < kept.float().mean(0).min() < kept.float().mean(0).max() < 0.4  # every entry has the same chance


def test_drop_takes_a_generator_or_the_global_state():
    x = random(9, 7)
    state = torch.get_rng_state()
    first = drop(x, 0.5, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(drop(x, 0.5), first)
    assert torch.equal(drop(x.double(), 0.5, torch.Generator().manual_seed(3)).float(), first)  # in any dtype


def test_the_majority_sign():
    stack = torch.tensor([[3.0, -1, 0, 1, 1], [-1, -1, 0, -1, 1], [-1, 5, 0, 0, -9]])
    assert majority_sign(stack, "total").tolist() == [1, 1, 1, 1, -1]
    assert majority_sign(stack, "frequency").tolist() == [-1, -1, 1, 1, 1]


def elected(updates: list[torch.Tensor], weights: list[float], density: float, vote: str) -> torch.Tensor:
    """TIES, entry by entry: trim, elect a sign, mean of those that have it."""
    count = int(density * updates[0].numel())
    trimmed = []
    for x in updates:
        smallest = sorted(x.abs().flatten().tolist(), reverse=True)[count - 1]
        trimmed.append([[v if abs(v) >= smallest else 0.0 for v in row] for row in x.tolist()])
    result = torch.zeros_like(updates[0])
    for i in range(result.shape[0]):
        for j in range(result.shape[1]):
            entries = [(w, t[i][j]) for w, t in zip(weights, trimmed, strict=True)]
            votes = sum(v if vote == "total" else (v > 0) - (v < 0) for _, v in entries)
            sign = 1 if votes >= 0 else -1
            agreed = [w * v for w, v in entries if v * sign > 0]
            result[i, j] = sum(agreed) / len(agreed) if agreed else 0.0
    return result


@pytest.mark.parametrize("vote", ["total", "frequency"])
def test_ties_is_trim_elect_and_mean(vote):
    adapters = [
        {"x": factors(OUT, IN, r, a, seed, rs)}
        for seed, (r, a, rs) in enumerate([(4, 9, False), (2, 3, True), (3, 5, False)])
    ]
    updates = [a["x"].delta().double() for a in adapters]
    wanted = elected(updates, [0.7, 1.3, 0.4], 0.4, vote)
    found = combine(adapters, [0.7, 1.3, 0.4], "ties_svd", density=0.4, majority_sign_method=vote, rank=12)
    assert relative(found["x"].delta(), wanted) < 1e-5
    cut = combine(adapters, [0.7, 1.3, 0.4], "ties_svd", density=0.4, majority_sign_method=vote)
    assert cut["x"].rank == 4
    assert relative(cut["x"].delta(), spectrum.truncate(wanted, 4)) < 1e-5


def test_at_density_one_nothing_is_pruned_or_drawn():
    adapters = [{"x": factors(OUT, IN, 4, 9, seed)} for seed in range(2)]
    state = torch.get_rng_state()
    plain = combine(adapters, [0.7, -1.3], "linear")["x"].delta()
    for method in ("magnitude_prune", "dare_linear"):
        assert torch.equal(combine(adapters, [0.7, -1.3], method, density=1)["x"].delta(), plain)
        dense = combine(adapters, [0.7, -1.3], f"{method}_svd", density=1.0, rank=8)["x"].delta()
        assert relative(dense, wanted_sum(adapters, [0.7, -1.3])["x"]) < 1e-5
    ties = combine(adapters, [0.7, -1.3], "ties", density=1)["x"].delta()
    assert torch.equal(combine(adapters, [0.7, -1.3], "dare_ties", density=1)["x"].delta(), ties)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_leaves_the_global_state_alone():
    adapters = [{"x": factors(OUT, IN, 4, 9, seed)} for seed in range(2)]
    for method in ("dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"):
        state = torch.get_rng_state()
        found = combine(adapters, [1, 2], method, density=0.5, generator=torch.Generator().manual_seed(7))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(found["x"].A, seeded_combine(adapters, [1, 2], method, density=0.5)["x"].A)


# --- symmetries, which PEFT 0.21 breaks ------------------------------------------------------------------------------


def rewritten(f: Factors) -> Factors:
    """The same update, as other factors and another alpha."""
    return Factors(2 * f.A, 2 * f.B, f.alpha / 4)


def negated(f: Factors) -> Factors:
    return f._replace(A=-f.A)


CASES = {
    "the same update at another alpha": (rewritten, [0.7, 1.3, 0.4], [0.7, 1.3, 0.4]),
    "a negative weight": (negated, [0.7, 1.3, 0.4], [0.7, -1.3, 0.4]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_one_adapter_said_in_two_ways_gives_one_result(case, method):
    change, weights, weights_changed = CASES[case]
    adapters = [{"x": factors(OUT, IN, 4, 10, seed)} for seed in range(3)]
    changed = [adapters[0], {"x": change(adapters[1]["x"])}, adapters[2]]
    first = seeded_combine(adapters, weights, method, density=0.5)["x"].delta()
    second = seeded_combine(changed, weights_changed, method, density=0.5)["x"].delta()
    assert relative(second, first) < 1e-6


@PEFT_021
@pytest.mark.parametrize(
    ("case", "method"),
    [("the same update at another alpha", m) for m in ("ties", "dare_ties")]
    + [("a negative weight", m) for m in ("ties", "dare_ties", "ties_svd", "dare_ties_svd")],
)
def test_peft_gives_two(case, method):
    base = llama(layers=1)
    change, weights, weights_changed = CASES[case]
    adapters = [adapter(base, seed=seed) for seed in range(3)]
    changed = [adapters[0], {path: change(f) for path, f in adapters[1].items()}, adapters[2]]
    first, second = (
        peft_combined(base, a, w, method, seed=7, density=0.5)
        for a, w in ((adapters, weights), (changed, weights_changed))
    )
    assert all(relative(second[path], first[path]) > 0.1 for path in first)


@PEFT_021
@pytest.mark.parametrize("method", ["ties", "magnitude_prune_svd"])
def test_peft_does_not_prune_a_single_adapter(method):
    base = llama(layers=1)
    one = [adapter(base)]
    theirs = peft_combined(base, one, [1.0], method, density=0.2)
    ours = combine(one, [1.0], method, density=0.2)
    for path, wanted in wanted_sum(one, [1]).items():
        assert relative(theirs[path], wanted) < 1e-6
        assert relative(ours[path].delta(), wanted) > 0.1


# --- different ranks -------------------------------------------------------------------------------------------------


def test_at_different_ranks_the_thinner_is_pruned_before_it_is_padded():
    """PEFT refuses different ranks. On factors padded by hand it would count the padding among what pruning keeps."""
    thin, thick = factors(OUT, IN, 2, 7, 1), factors(OUT, IN, 5, 3, 2, rslora=True)
    found = combine([{"x": thin}, {"x": thick}], [0.7, 1.3], "magnitude_prune", density=0.5)["x"]
    A, B = 0, 0
    for f, weight in ((thin, 0.7), (thick, 1.3)):
        root = math.sqrt(weight * f.scale)
        A = A + root * torch.cat([trim(f.A, 0.5), torch.zeros(5 - f.rank, IN)])
        B = B + root * torch.cat([trim(f.B, 0.5), torch.zeros(OUT, 5 - f.rank)], dim=1)
    assert (found.rank, found.scale) == (5, 1)
    assert relative(found.delta(), B @ A) < 1e-6


@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
def test_a_vote_does_not_count_the_padding():
    base = llama(layers=1)
    adapters = [adapter(base, seed=1, rank=2, alpha=4), adapter(base, seed=2, rank=5, alpha=10)]
    assert_equal_to_peft(base, adapters, [0.7, 1.3], "ties", [padded(a, 5) for a in adapters], density=1.0)
