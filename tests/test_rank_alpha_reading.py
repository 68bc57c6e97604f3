"""Reading the recorded sweeps: rates that were tried, ties, chance, and the page to keep."""

import pytest

from lora_lab.experiments import rank_alpha
from lora_lab.experiments.rank_alpha import reading
from lora_lab.experiments.rank_alpha.advice import ADVICE, advice_table


def row(rank, lr, seed, validation, test, rule="alpha/r", stopped=""):
    both = {"validation_loss": validation, "test_loss": test}
    return {"rank": rank, "lr": lr, "seed": seed, "rule": rule, "stopped": stopped} | both


def experiment():
    rows = [row(4, 0.02, seed, 1 + seed, 2 + seed) for seed in (1, 0)]
    rows += [row(4, 0.01, seed, 1.5, 4.0) for seed in (0, 1)]
    rows += [row(4, 0.04, 0, 9.0, 9.0)]  # one seed only
    rows += [row(8, 0.02, 0, 3.0, 3.0), row(8, 0.02, 1, None, None, stopped="nan at step 3")]
    rows += [row(1, 0.02, seed, 5.0, 6.0) for seed in (0, 1)]
    rows += [row(4, 0.02, seed, 7.0, 8.0, "alpha/sqrt(r)") for seed in (0, 1)]
    return {"settings": {"seeds": 2}, "runs": rows}


def test_only_rates_with_every_seed_count_and_rank_1_belongs_to_both_rules():
    found = reading.tried(experiment(), "rank", rule="alpha/r")
    assert found == {
        1: {0.02: {"validation_loss": [5.0, 5.0], "test_loss": [6.0, 6.0]}},
        4: {
            0.01: {"validation_loss": [1.5, 1.5], "test_loss": [4.0, 4.0]},
            0.02: {"validation_loss": [1, 2], "test_loss": [2, 3]},
        },
    }
    assert list(reading.tried(experiment(), "rank", rule="alpha/sqrt(r)")) == [1, 4]
    with pytest.raises(ValueError, match="no run has"):
        reading.tried(experiment(), "rank", rule="another")


def test_a_rate_is_undecided_within_one_standard_error_of_the_best():
    best = [1.0, 2.0, 3.0, 2.0]  # mean 2, standard error sqrt(2/3)/2 = 0.408
    assert reading.standard_error(best) == pytest.approx((2 / 3) ** 0.5 / 2)
    assert reading.undecided({0.1: [2.4] * 4, 0.2: best, 0.4: [2.42] * 4}) == [0.1, 0.2]


def test_the_table_marks_the_best_and_the_undecided_and_spans_their_test_losses():
    found = {
        2.0: {
            0.1: {"validation_loss": [2.4] * 4, "test_loss": [5.0] * 4},
            0.2: {"validation_loss": [1.0, 2.0, 3.0, 2.0], "test_loss": [7.0] * 4},
            0.4: {"validation_loss": [3.0] * 4, "test_loss": [9.0] * 4},
        }
    }
    head, line = reading.rate_table(found, "ratio").splitlines()
    assert head.split()[:4] == ["ratio", "0.1", "0.2", "0.4"]
    assert line.split() == ["2", "2.40/5.00~", "2.00/7.00*", "3.00/9.00", "5.00", "to", "7.00"]


def test_chance_explains_groups_that_are_alike_and_not_groups_that_are_apart():
    apart, share = reading.by_chance({1: [1.0, 1.1, 1.2], 2: [5.0, 5.1, 5.2], 4: [9.0, 9.1, 9.2]})
    assert apart == pytest.approx(8)
    assert share < 0.02  # six of 1,680 ways to deal them out
    assert reading.by_chance({1: [1.0, 3.0], 2: [2.0, 2.0]})[1] == 1
    exact = reading.by_chance({1: [0.0], 2: [1.0], 4: [2.0]})
    assert exact == (2.0, 1.0)  # single losses: the means are the losses, however they are dealt


def test_a_plateau_is_left_where_the_loss_has_halved_from_it():
    assert reading.leaves_plateau({"loss": [9.0, 5.0, 3.0, 2.9, 1.4], "steps": 50}) == 50
    assert reading.leaves_plateau({"loss": [9.0, 5.0, 3.0, 2.9, 1.6], "steps": 50}) is None


def test_curves_and_looks_keep_the_seeds_apart():
    runs = [
        {"loss": [4.0, 2.0], "steps": 10, "watched": {"5": [1.0, 3.0]}},
        {"loss": [5.0, 1.0], "watched": {"5": [0, 7]}},
    ]
    assert reading.curve_of(runs) == {2.5: (4.0, 5.0), 7.5: (2.0, 1.0)}
    assert reading.looks(runs) == {5: [3.0, 7]}


def test_spans_and_spreads_in_words():
    assert reading.span([2.0, 0.5]) == "0.5 to 2"
    assert reading.span([1.0, 1.001], "{:.2f}") == "1.00"
    assert reading.plus_minus([1.0, 3.0], 1) == "2.0 ± 1.4"


def test_the_page_needs_a_figure_for_every_choice():
    table = advice_table({choice: f"figure {i}" for i, choice in enumerate(ADVICE)})
    assert all(line.count("|") == 6 for line in table.splitlines())
    assert table.count("figure") == len(ADVICE) == len(table.splitlines()) - 2
    with pytest.raises(ValueError, match="missing or unknown: Rank"):
        advice_table({choice: "" for choice in ADVICE if choice != "Rank"})


def test_the_recorded_sweeps_hold_what_the_lesson_compares():
    for rule in reading.RULE_NAMES:
        found = reading.tried(rank_alpha.recorded("ranks"), "rank", rule=rule)
        assert list(found) == [1, 2, 4, 8, 16, 32, 64, 128]
        assert all({0.005, 0.01} <= set(rates) for rates in found.values())
    valleys = reading.tried(rank_alpha.recorded("against_full"), "method", task="support_desk", examples=1600)
    assert {len(rates) for rates in valleys.values()} == {4, 5}
