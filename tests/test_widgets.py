"""Moving a control changes the picture and the numbers; the numbers equal torch's; the static form says the same."""

import base64
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from lora_lab.widgets import rank_alpha_explorer, rank_explorer, sample_matrices
from lora_lab.widgets.rank_alpha import RULES, STEP

LORA, RSLORA = RULES
VIEW = "application/vnd.jupyter.widget-view+json"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


def picture(explorer) -> bytes:
    return bytes(explorer.canvas.image.value)


@pytest.fixture
def shown(monkeypatch) -> list[tuple[dict, dict]]:
    """What `display` is given: data and metadata."""
    outputs: list[tuple[dict, dict]] = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, raw, metadata=None: outputs.append((data, metadata or {}))
    )
    return outputs


# ---- the rank explorer


@pytest.mark.parametrize("rank", [1, 3, 7, 12])
@pytest.mark.parametrize("shape", [(20, 12), (12, 31)])
def test_the_truncation_is_torchs(shape, rank):
    W = noise(*shape).double()
    explorer = rank_explorer({"W": W})
    explorer.rank.value = rank
    U, S, Vh = torch.linalg.svd(W)
    best = U[:, :rank] @ torch.diag(S[:rank]) @ Vh[:rank]
    np.testing.assert_allclose(explorer.truncated(), best, atol=1e-12)
    n = explorer.numbers
    assert n.error == pytest.approx(float((W - best).norm() / W.norm()), abs=1e-12)
    assert n.energy == pytest.approx(float(S[:rank].square().sum() / W.square().sum()))
    assert (n.parameters, n.full) == (sum(p.numel() for p in (U[:, :rank], Vh[:rank, : shape[1]])), W.numel())


def test_every_step_of_the_slider_changes_picture_and_words():
    explorer = rank_explorer({"W": noise(12, 9)}, rank=1)
    seen = {(picture(explorer), explorer.readout(), explorer.alt())}
    for rank in range(2, 10):
        explorer.rank.value = rank
        seen.add((picture(explorer), explorer.readout(), explorer.alt()))
        assert f"{explorer.numbers.error:.1%}" in explorer.readout()
        assert explorer.box.children[-1].value == explorer.readout()  # the line below the picture
    assert all(len(set(column)) == 9 for column in zip(*seen, strict=True))


def test_redrawing_only_what_moves_gives_the_picture_of_a_full_drawing():
    W = noise(14, 30)
    explorer = rank_explorer({"W": W}, rank=2)
    for rank in (9, 14, 1, 5):
        explorer.rank.value = rank
    assert picture(explorer) == picture(rank_explorer({"W": W}, rank=5))


def test_the_rank_stays_within_the_matrix_and_each_is_decomposed_once(monkeypatch):
    count, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: count.append(1) or svd(*a, **k))
    explorer = rank_explorer({"large": noise(30, 40), "small": noise(6, 4)}, rank=25)
    before = picture(explorer)
    explorer.rank.value = 1000
    assert explorer.rank.value == explorer.rank.max == 30
    explorer.matrix.value = "small"
    assert explorer.rank.value == explorer.rank.max == 4
    assert explorer.numbers.error == pytest.approx(0, abs=1e-12)
    assert picture(explorer) == picture(rank_explorer({"small": noise(6, 4)}, rank=4))
    explorer.matrix.value = "large"
    explorer.rank.value = 25
    assert explorer.rank.max == 30
    assert picture(explorer) == before
    assert len(count) == 3  # two here, one for the comparison


def test_it_takes_half_precision_and_parameters_and_leaves_them_alone():
    weight = torch.nn.Parameter(noise(8, 5).to(torch.bfloat16))
    before = weight.detach().clone()
    explorer = rank_explorer({"W": weight})
    explorer.rank.value = 5
    assert explorer.numbers.error == pytest.approx(0, abs=1e-12)
    assert torch.equal(weight, before)
    assert weight.requires_grad


@pytest.mark.parametrize(
    ("matrices", "rank", "message"),
    [
        ({}, 1, "empty"),
        ({"v": torch.ones(3)}, 1, r"'v' has shape \(3,\)"),
        ({"W": torch.zeros(3, 2)}, 1, "all zero"),
        ({"W": torch.tensor([[1.0, float("nan")]])}, 1, "NaN"),
        ({"W": torch.ones(4, 3)}, 4, "rank 4 is outside 1 to 3"),
        ({"W": torch.ones(4, 3)}, 0, "rank 0 is outside 1 to 3"),
    ],
)
def test_what_cannot_be_explored_is_refused(matrices, rank, message):
    with pytest.raises(ValueError, match=message):
        rank_explorer(matrices, rank)


def test_the_samples_lie_at_the_two_ends():
    """A picture is copied well by a few ranks, noise is not: at r of k it keeps little more than r / k."""
    samples = sample_matrices(40, 90)
    word, pure = (torch.linalg.svdvals(m) for m in samples.values())
    kept = [float(s[:8].square().sum() / s.square().sum()) for s in (word, pure)]
    assert [m.shape for m in samples.values()] == [(40, 90)] * 2
    assert kept[0] > 0.95
    assert kept[1] < 0.5
    assert not torch.equal(sample_matrices(40, 90, seed=1)["pure noise"], samples["pure noise"])


def test_changes_from_two_threads_end_in_one_state():
    """JupyterLab handles a slider's messages in another thread than the cells."""
    W = noise(16, 20)
    explorer = rank_explorer({"W": W})

    def move(ranks):
        for rank in ranks:
            explorer.rank.value = rank

    threads = [threading.Thread(target=move, args=(range(1 + i, 17, 2),)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert picture(explorer) == picture(rank_explorer({"W": W}, rank=explorer.rank.value))
    assert explorer.box.children[-1].value == explorer.readout()


# ---- the static form


@pytest.mark.parametrize("make", [lambda: rank_explorer({"W": noise(40, 30)}), lambda: rank_alpha_explorer(30, 20)])
def test_displays_a_view_a_picture_and_words(shown, make):
    explorer = make()
    explorer._ipython_display_()
    (data, metadata), (words, _) = shown
    assert data[VIEW]["model_id"] == explorer.box.model_id
    assert data["text/plain"] == metadata["image/png"]["alt"] == explorer.alt()
    assert explorer.alt() in words["text/plain"]
    static, live = (pixels(p) for p in (base64.b64decode(data["image/png"]), picture(explorer)))
    assert static.shape == live.shape
    assert np.abs(static - live).mean() < 1  # the same picture but for its 256 colours
    explorer.rank.value += 3
    explorer._ipython_display_()
    assert shown[2][0]["image/png"] != data["image/png"]
    assert shown[2][0]["text/plain"] != data["text/plain"]


def test_the_picture_to_commit_is_small_and_the_same_each_time():
    W = noise(128, 128)
    first, second = (rank_explorer({"W": W}).canvas.png() for _ in range(2))
    assert first == second
    assert len(first) < 100_000


# ---- the rank/alpha explorer


@pytest.mark.parametrize(("rule", "exponent"), [(LORA, 1.0), (RSLORA, 0.5)])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 4.0), (3, 128.0), (20, 1.0)])
def test_scale_norm_spectrum_and_count_are_torchs(rule, exponent, rank, alpha):
    explorer = rank_alpha_explorer(in_features=33, out_features=20)
    explorer.rule.value, explorer.alpha.value, explorer.rank.value = rule, alpha, rank
    A, B = explorer.A[:rank], explorer.B[:, :rank]
    delta = alpha / rank**exponent * B @ A
    n = explorer.numbers
    assert n.scale == pytest.approx(alpha / rank**exponent)
    assert n.norm == pytest.approx(float(torch.linalg.matrix_norm(delta)))
    np.testing.assert_allclose(explorer.spectrum(), torch.linalg.svdvals(delta)[:rank], rtol=1e-9)
    assert (n.trainable, n.full) == (A.numel() + B.numel(), delta.numel())


def test_the_factors_are_what_the_text_says():
    explorer = rank_alpha_explorer(in_features=256, out_features=64)
    A, B = explorer.A, explorer.B
    assert A.abs().max() <= 1 / 16
    assert A.std() == pytest.approx(1 / 16 / 3**0.5, rel=0.03)  # uniform
    assert set(B.abs().unique().tolist()) == {STEP}
    assert abs(float(B.sign().mean())) < 0.06
    assert torch.equal(A, rank_alpha_explorer(256, 64).A)
    assert not torch.equal(A, rank_alpha_explorer(256, 64, seed=1).A)


def test_the_update_shrinks_with_the_rank_under_one_rule_and_not_under_the_other():
    explorer = rank_alpha_explorer()
    norms = {}
    for rule in RULES:
        for rank in (1, 64):
            explorer.rule.value, explorer.rank.value = rule, rank
            norms[rule, rank] = explorer.numbers.norm
    assert norms[LORA, 64] / norms[LORA, 1] == pytest.approx(1 / 8, rel=0.1)
    assert norms[RSLORA, 64] / norms[RSLORA, 1] == pytest.approx(1, rel=0.1)


def test_each_control_changes_picture_and_words():
    explorer = rank_alpha_explorer(in_features=48, out_features=40)
    for control, value in ((explorer.rank, 17), (explorer.alpha, 64.0), (explorer.rule, RSLORA)):
        before = picture(explorer), explorer.readout(), explorer.alt()
        control.value = value
        after = picture(explorer), explorer.readout(), explorer.alt()
        assert all(old != new for old, new in zip(before, after, strict=True))
    assert f"{explorer.numbers.trainable:,}" in explorer.readout()


def test_its_controls_stay_within_bounds():
    explorer = rank_alpha_explorer(in_features=100, out_features=10)
    explorer.rank.value, explorer.alpha.value = 1000, 1e6
    assert (explorer.rank.value, explorer.alpha.value) == (10, 128)
    explorer.rank.value, explorer.alpha.value = 0, 0.001
    assert (explorer.rank.value, explorer.alpha.value) == (1, 1)
    assert rank_alpha_explorer().rank.max == 64
    assert rank_alpha_explorer(1, 1).numbers.full == 1


def test_a_base_weight_sets_the_sizes_and_is_compared_with():
    W = noise(24, 40).to(torch.bfloat16)
    explorer = rank_alpha_explorer(base_weight=W)
    assert explorer.numbers.full == W.numel()
    share = explorer.numbers.norm / float(W.double().norm())
    assert f"{share:.2%} of ‖W‖" in explorer.readout()
    assert picture(explorer) != picture(rank_alpha_explorer(40, 24))
    assert "‖W‖" not in rank_alpha_explorer(40, 24).readout()


def test_sizes_that_make_no_layer_are_refused():
    with pytest.raises(ValueError, match="in_features 0"):
        rank_alpha_explorer(in_features=0)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        rank_alpha_explorer(base_weight=torch.ones(3))
