"""Searches on a tiny model: untouched bases, equal runs, interruption, and files to go on from."""

import json

import pytest
import torch
from models_for_tests import llama

from lora_lab import inject, train
from lora_lab.plots.search import search_plot
from lora_lab.practice.search import Search, Trial, base_hash, equal_budget, search
from lora_lab.train import mean_loss


def examples(count: int, seed: int) -> list[dict]:
    made = torch.randint(1, 64, (count, 9), generator=torch.Generator().manual_seed(seed)).tolist()
    return [{"input_ids": ids, "labels": [-100] * 4 + ids[4:]} for ids in made]


TRAIN, UNSEEN = examples(12, 1), examples(6, 2)
QUICK = {"steps": 3, "batch_size": 4, "seeds": (0, 1)}


@pytest.mark.parametrize("backend", ["lora_lab", "peft"])
def test_every_trial_starts_from_the_same_bits_whatever_ran_before(backend):
    base = llama()
    base.model.norm.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in base.named_parameters()}
    names = set(vars(base))
    trials = [Trial(2, 10, ("q_proj", "v_proj")), Trial(4, 10), Trial(3, 10, r".*\.down_proj")]
    together = search(base, trials, TRAIN, UNSEEN, backend=backend, **QUICK)
    assert base_hash(base) == base_hash(llama())
    assert {name: p.requires_grad for name, p in base.named_parameters()} == before
    assert set(vars(base)) == names
    alone = search(llama(), trials[::-1], TRAIN, UNSEEN, backend=backend, **QUICK)
    assert sorted(map(str, together.rows)) == sorted(map(str, alone.rows))
    assert together.complete
    assert len(together.rows) == 6


def test_a_run_is_what_inject_and_train_make_by_hand_and_the_backends_count_alike():
    trial = Trial(4, 10, lr=5e-3)
    row = search(llama(), [trial], TRAIN, UNSEEN, steps=3, batch_size=4, seeds=(7,)).rows[0]
    model = llama()
    torch.manual_seed(7)
    inject(model, "all-linear", 4, 10)
    train(model, TRAIN, steps=3, lr=5e-3, batch_size=4, seed=7, progress=False)
    assert row["validation_loss"] == pytest.approx(mean_loss(model, UNSEEN), rel=1e-4)
    theirs = search(llama(), [trial], TRAIN, UNSEEN, steps=3, batch_size=4, seeds=(7,), backend="peft").rows[0]
    assert theirs["parameters"] == row["parameters"]


def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(tmp_path):
    base, path, new = llama(), tmp_path / "search.json", []
    trials = [Trial(rank, 10) for rank in (2, 4)]

    def interrupt(row):
        new.append(row)
        if len(new) == 3:
            raise KeyboardInterrupt

    stopped = search(base, trials, TRAIN, UNSEEN, path=path, on_run=interrupt, **QUICK)
    assert not stopped.complete
    assert "1 of 4 runs are missing" in stopped.table()
    assert base_hash(base) == base_hash(llama())
    assert len(json.loads(path.read_text())["runs"]) == 3
    whole = search(base, trials, TRAIN, UNSEEN, path=path, on_run=new.append, **QUICK)
    assert whole.complete
    assert len(new) == 4
    assert whole.rows == search(llama(), trials, TRAIN, UNSEEN, **QUICK).rows
    with pytest.raises(ValueError, match="of another search"):
        search(base, trials, TRAIN, UNSEEN, path=path, **QUICK | {"steps": 4})


def test_a_trial_stopped_between_its_seeds_is_one_cell_when_it_has_gone_on(tmp_path):
    path, trial = tmp_path / "search.json", [Trial(2, 10, ("q_proj", "v_proj"))]

    def interrupt(row):
        raise KeyboardInterrupt

    search(llama(), trial, TRAIN, UNSEEN, path=path, on_run=interrupt, **QUICK)
    whole = search(llama(), trial, TRAIN, UNSEEN, path=path, **QUICK)
    assert [len(cell["losses"]) for cell in whole.cells()] == [2]
    assert whole.rows == search(llama(), trial, TRAIN, UNSEEN, **QUICK).rows


def test_a_trial_that_changes_the_base_is_found_out(monkeypatch):
    base = llama()

    def careless(*args, **kwargs):
        base.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
        return 1.0

    monkeypatch.setattr("lora_lab.practice.search.mean_loss", careless)
    with pytest.raises(ValueError, match="has changed the base"):
        search(base, [Trial(2, 10, ("q_proj",))], TRAIN, UNSEEN, **QUICK)


def test_a_run_that_goes_astray_counts_as_none_and_the_best_rate_is_chosen_by_the_mean():
    rows = [
        {
            "rank": 4,
            "alpha": 10,
            "targets": "all-linear",
            "lr": lr,
            "rslora": False,
            "name": "",
            "label": "all-linear",
            "seed": seed,
            "parameters": 5,
            "validation_loss": loss,
            "stopped": "",
        }
        for lr, losses in ((0.1, (1.0, None)), (0.2, (2.0, 4.0)), (0.4, (3.5, 3.0)))
        for seed, loss in enumerate(losses)
    ]
    found = Search(rows, 6)
    assert (found.best()["lr"], found.best()["mean"], found.best()["edge"]) == (0.2, 3.0, False)
    assert "0.2 " in found.table()
    with pytest.raises(ValueError, match="no trial has finished"):
        Search(rows[:2], 2).best()
    astray = search(llama(), [Trial(2, 10, lr=1e30)], TRAIN, UNSEEN, **QUICK)
    assert {row["validation_loss"] for row in astray.rows} == {None}
    assert "at step" in astray.rows[0]["stopped"]


def test_equal_budgets_come_near_and_say_so_when_they_cannot():
    sets = {"q": ("q_proj",), "mlp": ("gate_proj", "up_proj", "down_proj")}
    each = {"q": 32 + 32, "mlp": 3 * (32 + 48)}  # in + out of the tiny Llama, two layers
    ranks = equal_budget(llama(), sets, 2 * 240 * 3)
    assert ranks == {"q": round(1440 / (2 * each["q"])), "mlp": 3}
    with pytest.raises(ValueError, match="largest there"):
        equal_budget(llama(), sets, 10_000)
    with pytest.raises(ValueError, match="more than twice"):
        equal_budget(llama(), sets, 200)


def test_wrong_calls_are_refused_before_anything_runs():
    base = llama()
    for trials, more, words in (
        ([], {}, "0 trials"),
        ([Trial(2, 10)] * 2, {}, "made twice"),
        ([Trial(2, 10)], {"seeds": (1, 1)}, "made twice"),
        ([Trial(2, 10)], {"backend": "magic"}, "backend must be"),
        ([Trial(2, 10, ("q_proj",), name="a"), Trial(4, 10, ("v_proj",), name="a")], {}, "'a' .*q_proj.*v_proj"),
        ([Trial(2, 10), Trial(4, 10, ("up_proj",), name="all-linear")], {}, "two sets of targets, 'all.*up_proj"),
    ):
        with pytest.raises(ValueError, match=words):
            search(base, trials, TRAIN, UNSEEN, **QUICK | more)
    for wrong in ({"rank": 0}, {"alpha": -1}, {"lr": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Trial(**wrong)
    with pytest.raises(ValueError, match="carries adapters"):
        search(inject(base, ["q_proj"], 2, 10), [Trial(2, 10)], TRAIN, UNSEEN, **QUICK)


def test_the_plot_has_lines_over_ranks_and_bars_for_one_rank_each():
    def cell(label, rank, losses):
        return {"label": label, "rank": rank, "losses": losses}

    lines = search_plot([cell("all", r, [1.0 / r, 1.1 / r]) for r in (1, 2, 4)], "Rank")
    assert list(lines.axes[0].lines[0].get_ydata()) == pytest.approx([1.05, 0.525, 0.2625])
    both = search_plot([cell("q v", 8, [1.0, 1.2]), cell("MLP", 3, [0.5, 0.7])], "Targets")
    assert [bar.get_width() for bar in both.axes[0].patches] == pytest.approx([1.1, 0.6])
    with pytest.raises(ValueError, match="cells is empty"):
        search_plot([], "Nothing")


def test_the_plot_keeps_apart_what_shares_targets_and_rank():
    def cell(rank, alpha, losses, rslora=False, label="q v"):
        return {"label": label, "rank": rank, "alpha": alpha, "rslora": rslora, "losses": losses}

    def lines(cells):
        return {line.get_label(): list(line.get_ydata()) for line in search_plot(cells, "Rank").axes[0].lines}

    alphas = [cell(r, alpha, [alpha / r]) for r in (2, 4) for alpha in (5, 10)]
    assert lines(alphas) == {"q v, alpha 5": [2.5, 1.25], "q v, alpha 10": [5.0, 2.5]}
    scalings = [cell(r, 3 * r, [r + rs], rs) for r in (2, 4) for rs in (False, True)]  # alpha goes with the rank
    assert lines(scalings) == {"q v, α/r": [2, 4], "q v, α/√r": [3, 5]}
    assert lines([cell(2, 6, [1.0]), cell(4, 12, [2.0])]) == {"q v": [1.0, 2.0]}  # nothing shares a rank: one line
    with pytest.raises(ValueError, match="'q v' at rank 2 and alpha 5"):
        search_plot([cell(2, 5, [1.0]), cell(2, 5, [2.0])], "Rank")
