"""How learning rates are chosen: on validation rows, alike for every arm."""

from __future__ import annotations

import hashlib
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.study.selection import (
    Choice,
    Grid,
    Trial,
    best_rate,
    choose_rate,
    next_rates,
)
from tasks.base import Example
from tasks.data import split_validation


def row(name: str, question: str = "?") -> Example:
    return Example(name, question, ("one", "two"), ("A", "B"), 0)


def rows(number: int) -> list[Example]:
    return [row(f"train-{n}") for n in range(1, number + 1)]


def test_validation_rows_are_a_tenth_or_the_least() -> None:
    for number, least, expected in [(320, 64, 64), (5000, 512, 512), (9000, 512, 900)]:
        train, validation = split_validation(rows(number), 0.1, least)
        assert (len(train), len(validation)) == (number - expected, expected)


def test_no_row_is_trained_on_and_validated_on_and_none_is_lost() -> None:
    every = rows(400)
    train, validation = split_validation(every, 0.1, 64)
    assert not {each.id for each in train} & {each.id for each in validation}
    assert sorted([*train, *validation], key=every.index) == every
    assert train == sorted(train, key=every.index)
    assert validation == sorted(validation, key=every.index)


def test_the_choice_depends_on_the_ids_alone() -> None:
    every = rows(300)
    chosen = {each.id for each in split_validation(every, 0.1, 64)[1]}
    shuffled = [row(each.id, "another") for each in random.Random(1).sample(every, 300)]
    assert {each.id for each in split_validation(shuffled, 0.1, 64)[1]} == chosen
    largest = max(hashlib.sha256(name.encode()).hexdigest() for name in chosen)
    rest = {each.id for each in every} - chosen
    assert all(hashlib.sha256(name.encode()).hexdigest() > largest for name in rest)
    # Not the first rows, nor every tenth: a fair share of each half.
    assert 20 < sum(int(name.split("-")[1]) <= 150 for name in chosen) < 44


def test_a_few_more_rows_change_few_choices() -> None:
    before = {each.id for each in split_validation(rows(300), 0.1, 64)[1]}
    after = {each.id for each in split_validation(rows(310), 0.1, 64)[1]}
    assert len(before & after) > 55


def test_rows_to_train_on_must_be_left() -> None:
    with pytest.raises(ValueError, match="64 validation rows of 64 training rows leave none"):
        split_validation(rows(64), 0.1, 64)


def test_the_first_pass_is_half_decades() -> None:
    expected = (1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1)
    assert Grid().first_rates == expected
    assert next_rates(Grid(), {"lora": {}}) == {"lora": list(expected)}
    assert Grid(first_pass=1).first_rates == (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    assert Grid(lowest=2e-4, highest=2e-3, refined=2).first_rates == (2e-4, 6.32e-4, 2e-3)


def test_refined_rates_are_quarter_decades() -> None:
    rates = Grid().rates
    assert (rates[0], rates[-1], len(rates)) == (1e-6, 1.0, 25)
    for lower, upper in itertools.pairwise(rates):
        assert upper / lower == pytest.approx(10**0.25, rel=5e-3)


def selected(grid: Grid, curves: dict[str, dict[float, Trial]]) -> dict[str, dict[float, Trial]]:
    """All trials of a selection on these curves; the number of trials is checked every round."""
    trials: dict[str, dict[float, Trial]] = {arm: {} for arm in curves}
    for _ in range(len(grid.rates) + 1):
        wanted = next_rates(grid, trials)
        if not any(wanted.values()):
            return trials
        for arm, tried in wanted.items():
            assert not set(tried) & set(trials[arm])
            assert len(set(tried)) == len(tried)
            trials[arm] |= {rate: curves[arm][rate] for rate in tried}
        assert len({len(own) for own in trials.values()}) == 1
    raise AssertionError("the selection does not end")


def peaked(grid: Grid, peak: float, broken_above: float = math.inf) -> dict[float, Trial]:
    return {
        rate: Trial(None if rate > broken_above else -abs(math.log10(rate / peak)))
        for rate in grid.rates
    }


def test_a_peak_within_the_first_pass_takes_two_more_trials() -> None:
    trials = selected(Grid(), {"lora": peaked(Grid(), 1e-3)})["lora"]
    assert set(trials) == {*Grid().first_rates, 5.62e-4, 1.78e-3}
    assert choose_rate(Grid(), trials) == Choice(1e-3, (5.62e-4, 1.78e-3), False, 11)


def test_a_peak_between_two_rates_is_found() -> None:
    trials = selected(Grid(), {"lora": peaked(Grid(), 1.78e-3)})["lora"]
    assert choose_rate(Grid(), trials) == Choice(1.78e-3, (1e-3, 3.16e-3), False, 11)


def test_an_arm_at_the_edge_gives_the_others_as_many_trials() -> None:
    grid = Grid()
    curves = {"high": peaked(grid, 0.562), "low": peaked(grid, 1e-3)}
    trials = selected(grid, curves)
    assert choose_rate(grid, trials["high"]) == Choice(0.562, (0.316, 1.0), False, 14)
    chosen = choose_rate(grid, trials["low"])
    assert chosen == Choice(1e-3, (5.62e-4, 1.78e-3), False, 14)
    # They went to the nearest rates that had not been tried.
    assert {1.78e-4, 5.62e-3} < set(trials["low"])
    alone = selected(grid, {"low": curves["low"]})["low"]
    assert len(alone) == 11


def test_a_best_at_the_end_of_all_is_said_to_be_there() -> None:
    grid = Grid()
    trials = selected(grid, {"one": peaked(grid, 50.0)})["one"]
    assert choose_rate(grid, trials) == Choice(1.0, (0.562,), True, len(trials))


def test_rates_that_diverge_count_as_trials_and_are_no_neighbours() -> None:
    grid = Grid()
    curves = {"breaks": peaked(grid, 1.0, broken_above=1e-2), "holds": peaked(grid, 1e-3)}
    trials = selected(grid, curves)
    assert choose_rate(grid, trials["breaks"]) == Choice(1e-2, (5.62e-3,), False, 11)
    nan = {rate: Trial(math.nan if t.diverged else t.score) for rate, t in curves["breaks"].items()}
    assert selected(grid, {"breaks": nan})["breaks"].keys() == trials["breaks"].keys()


def test_an_arm_that_always_diverges_has_no_rate() -> None:
    grid = Grid()
    trials = selected(grid, {"one": dict.fromkeys(grid.rates, Trial(None))})["one"]
    with pytest.raises(ValueError, match=r"all 14 learning rates from 1e-06 on diverged"):
        choose_rate(grid, trials)


def test_ties_go_to_the_lower_loss_and_then_to_the_lower_rate() -> None:
    tied = {1e-3: Trial(0.5, 0.9), 1e-2: Trial(0.5, 0.8), 1e-1: Trial(0.5, 0.8)}
    assert best_rate(tied) == 1e-2
    assert best_rate({1e-2: Trial(0.5), 1e-3: Trial(0.5)}) == 1e-3
    assert best_rate({1e-3: Trial(0.5), 1e-2: Trial(0.5, 3.0)}) == 1e-2
    assert best_rate({1e-3: Trial(0.5, math.nan), 1e-2: Trial(0.5, 3.0)}) == 1e-2
    assert best_rate({1e-3: Trial(0.4, 0.1), 1e-2: Trial(0.5, 3.0)}) == 1e-2
    assert best_rate({1e-3: Trial(None, 0.1), 1e-2: Trial(0.0, 9.0)}) == 1e-2


scores = st.one_of(st.none(), st.sampled_from([0.2, 0.5, 0.50001]), st.floats(0, 1))
a_curve = st.lists(scores, min_size=25, max_size=25)


@given(st.dictionaries(st.sampled_from("abcd"), a_curve, min_size=1))
def test_every_selection_ends_with_equal_trials_and_a_best_inside(
    drawn: dict[str, list[float | None]],
) -> None:
    grid = Grid()
    curves = {
        arm: {rate: Trial(score) for rate, score in zip(grid.rates, values, strict=True)}
        for arm, values in drawn.items()
    }
    for arm, trials in selected(grid, curves).items():
        assert set(grid.first_rates) <= set(trials)
        position = grid.rates.index(best_rate(trials))
        for near in {max(position - 1, 0), min(position + 1, 24)}:
            assert grid.rates[near] in trials
        known = [t.score for t in trials.values() if t.score is not None]
        if known:
            choice = choose_rate(grid, trials)
            assert curves[arm][choice.rate].score == max(known)
            assert choice.at_edge == (position in (0, 24))
