"""Verdicts and their numbers against hand-worked cases, textbook tests and brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.study.statistics import (
    Estimate,
    detectable_ratio,
    estimate,
    expected_best,
    judge,
    plateau,
    rows_to_decide,
)


def answers(seed: int, shape: tuple[int, ...], chance: float = 0.6) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < chance


def one_task(values: Any) -> dict[str, Any]:
    return {"arc-e": values}


def test_variances_by_hand() -> None:
    # Means of seeds 3 and 5, of questions 2, 4 and 6; residuals -1, 0, 1 and 1, 0, -1.
    found = estimate(one_task([[0, 3, 6], [4, 5, 6]]), shared_seeds=True)
    assert found.mean == 4
    residual = (4 * 1) / (1 * 2) / 6  # sum of squares / degrees / number of values
    assert found.residual_variance == pytest.approx(residual)
    assert found.seed_variance == pytest.approx(2 / 2 - residual)
    assert found.question_variance == pytest.approx(4 / 3 - residual)
    total = 1 + 4 / 3 - residual
    assert found.standard_error == pytest.approx(math.sqrt(total))
    assert found.degrees == pytest.approx(total**2 / (1**2 / 1 + (4 / 3) ** 2 / 2))
    assert (found.seeds, found.rows) == (2, 3)


@pytest.mark.parametrize("shared", [True, False])
def test_one_seed_is_the_paired_t_test_on_questions(shared: bool) -> None:
    mine, other = answers(1, (1, 80)), answers(2, (1, 80))
    found = estimate(one_task(mine * 1.0 - other * 1.0), shared_seeds=shared)
    expected = stats.ttest_rel(mine[0].astype(float), other[0].astype(float))
    assert found.p_difference() == pytest.approx(expected.pvalue)
    assert found.interval(0.1) == pytest.approx(expected.confidence_interval(0.9))


def test_seeds_that_agree_add_nothing_to_one() -> None:
    difference = answers(3, (1, 60)) * 1.0 - answers(4, (1, 60))
    one = estimate(one_task(difference), shared_seeds=True)
    three = estimate(one_task(np.repeat(difference, 3, axis=0)), shared_seeds=True)
    assert three.p_difference() == pytest.approx(one.p_difference())
    assert three.question_variance == pytest.approx(one.question_variance)


def test_questions_that_agree_leave_the_t_test_on_seeds() -> None:
    of_seeds = np.array([0.03, 0.05, -0.01, 0.04])
    found = estimate(one_task(np.repeat(of_seeds[:, None], 500, axis=1)), shared_seeds=True)
    expected = stats.ttest_1samp(of_seeds, 0)
    assert found.p_difference() == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(expected.confidence_interval(0.95))


def test_seeds_of_tasks_are_pooled_where_they_are_not_shared() -> None:
    # Two tasks whose seeds move against each other: as runs of their own, that is luck in both;
    # as one run, a seed's luck cancels out.
    up = np.repeat([[0.0], [0.2], [0.4]], 400, axis=1)
    tasks = {"one": up, "two": 0.4 - up}
    apart = estimate(tasks, shared_seeds=False)
    together = estimate(tasks, shared_seeds=True)
    assert apart.seed_variance == pytest.approx(2 * 0.2**2 / 3 / 4)
    assert apart.degrees == pytest.approx(4)
    assert together.seed_variance == pytest.approx(0, abs=1e-12)


def test_tasks_weigh_the_same_whatever_their_size() -> None:
    tasks = {"small": np.zeros((2, 10)), "large": np.ones((2, 90))}
    found = estimate(tasks, shared_seeds=False)
    assert (found.mean, found.rows) == (0.5, 100)


def test_variances_are_unbiased() -> None:
    random = np.random.default_rng(7)
    found = []
    for _ in range(400):
        of_seeds = random.normal(0, 0.3, (4, 1))
        values = of_seeds + random.normal(0, 0.8, (1, 50)) + random.normal(0, 1.0, (4, 50))
        found.append(estimate(one_task(values), shared_seeds=True))
    means = np.array([[f.seed_variance, f.question_variance, f.residual_variance] for f in found])
    truth = [0.3**2 / 4, 0.8**2 / 50, 1.0 / 200]
    assert means.mean(axis=0) == pytest.approx(truth, rel=0.12)


def test_equivalence_is_the_interval_of_90_percent_within_the_margin() -> None:
    random = np.random.default_rng(8)
    within = 0
    for _ in range(60):
        values = random.normal(random.normal(0, 0.02), 0.2, (3, 100))
        found = estimate(one_task(values), shared_seeds=True)
        low, high = found.interval(0.1)
        assert (found.p_equivalence(0.05) <= 0.05) == (low > -0.05 and high < 0.05)
        within += found.p_equivalence(0.05) <= 0.05
    assert 5 < within < 55
    # One seed: the larger of two one-sided t-tests.
    values = random.normal(0.01, 0.3, (1, 200))
    found = estimate(one_task(values), shared_seeds=True)
    below = stats.ttest_1samp(values[0], 0.05, alternative="less").pvalue
    above = stats.ttest_1samp(values[0], -0.05, alternative="greater").pvalue
    assert found.p_equivalence(0.05) == pytest.approx(max(below, above))


def family(seed: int, better_by: float = 0.0) -> dict[str, dict[str, np.ndarray]]:
    """Three arms on two tasks, 4 seeds; "b" is better than the others by so much."""
    random = np.random.default_rng(seed)
    arms: dict[str, dict[str, np.ndarray]] = {"a": {}, "b": {}, "c": {}}
    for task, questions in (("one", 300), ("two", 200)):
        hard = random.random((1, questions))
        for arm in arms:
            chance = 0.4 + 0.4 * hard + (better_by if arm == "b" else 0)
            arms[arm][task] = random.random((4, questions)) < chance
    return arms


def test_a_large_difference_is_found_in_its_direction() -> None:
    correct = family(1, better_by=0.15)
    found = judge(correct, "a", 0.02, shared_seeds=False)
    assert found["b"].verdict == "better"
    assert judge(correct, "b", 0.02, shared_seeds=False)["a"].verdict == "worse"
    assert found["b"].rows_to_decide is None
    low, high = found["b"].interval
    assert low < 0.15 < high
    expected = np.mean([np.mean(correct["b"][t]) - np.mean(correct["a"][t]) for t in correct["a"]])
    assert found["b"].difference == pytest.approx(expected)


def test_no_difference_within_a_wide_margin_is_equivalent() -> None:
    found = judge(family(2), "a", 0.08, shared_seeds=False)
    assert {v.verdict for v in found.values()} == {"equivalent"}


def test_little_that_is_known_is_undecided() -> None:
    verdict = judge(family(3), "a", 0.01, shared_seeds=False)["b"]
    assert verdict.verdict == "undecided"
    assert verdict.rows_to_decide is None or verdict.rows_to_decide > 500


def test_a_difference_smaller_than_the_margin_is_equivalent_even_if_it_is_sure() -> None:
    questions = 2000
    base = np.zeros((3, questions))
    ours = base.copy()
    ours[:, : questions // 100] = 1  # one point better, on every seed
    verdict = judge({"a": one_task(base), "b": one_task(ours)}, "a", 0.02, shared_seeds=True)["b"]
    assert verdict.p_adjusted < 1e-4
    assert verdict.verdict == "equivalent"
    verdict = judge({"a": one_task(base), "b": one_task(ours)}, "a", 0.005, shared_seeds=True)["b"]
    assert verdict.verdict == "better"


@pytest.mark.parametrize("seed", range(6))
def test_swapping_two_arms_mirrors_the_verdict(seed: int) -> None:
    both = {arm: tasks for arm, tasks in family(seed, 0.03 * seed).items() if arm != "c"}
    forth = judge(both, "a", 0.05, shared_seeds=seed % 2 == 0)["b"]
    back = judge(both, "b", 0.05, shared_seeds=seed % 2 == 0)["a"]
    mirrored = {"better": "worse", "worse": "better"}
    assert back.verdict == mirrored.get(forth.verdict, forth.verdict)
    assert back.difference == pytest.approx(-forth.difference)
    for one, other in (
        (forth.interval, back.interval),
        (forth.bootstrap_interval, back.bootstrap_interval),
    ):
        assert one == pytest.approx((-other[1], -other[0]))
    for name in ("p", "p_adjusted", "p_equivalent", "detectable", "rows_to_decide"):
        assert getattr(forth, name) == pytest.approx(getattr(back, name))


def test_p_values_are_corrected_for_the_family() -> None:
    correct = family(5, better_by=0.05)
    alone = judge({arm: correct[arm] for arm in "ab"}, "a", 0.02, shared_seeds=False)["b"]
    verdicts = judge(correct, "a", 0.02, shared_seeds=False)
    assert alone.p_adjusted == alone.p == verdicts["b"].p
    smaller, larger = sorted(verdicts.values(), key=lambda verdict: verdict.p)
    assert smaller.p_adjusted == pytest.approx(min(1, 2 * smaller.p))
    assert larger.p_adjusted == pytest.approx(max(smaller.p_adjusted, larger.p))
    assert verdicts["b"].detectable > alone.detectable


def test_arms_that_never_differ_are_not_known_to_be_equal_on_few_questions() -> None:
    for questions, expected in ((40, "undecided"), (2000, "equivalent")):
        same = one_task(answers(6, (3, questions)))
        verdict = judge({"a": same, "b": same}, "a", 0.01, shared_seeds=True)["b"]
        assert verdict.difference == 0
        assert verdict.estimate.standard_error == pytest.approx(1 / questions)
        assert verdict.verdict == expected


def test_the_bootstrap_is_that_of_a_plain_loop() -> None:
    tasks = {"one": answers(9, (3, 40)) * 1.0, "two": answers(10, (3, 25)) * 1.0}
    zeros = {name: np.zeros_like(values) for name, values in tasks.items()}
    random = np.random.default_rng(11)
    for shared in (True, False):
        drawn = []
        for _ in range(6000):
            seeds = random.integers(3, size=3)
            value = 0.0
            for values in tasks.values():
                if not shared:
                    seeds = random.integers(3, size=3)
                questions = random.integers(values.shape[1], size=values.shape[1])
                value += values[seeds][:, questions].mean() / 2
            drawn.append(value)
        verdict = judge({"a": zeros, "b": tasks}, "a", 0.02, shared_seeds=shared, level=0.1)["b"]
        expected = np.quantile(drawn, [0.05, 0.95])
        assert verdict.bootstrap_interval == pytest.approx(tuple(expected), abs=0.006)


def test_other_rows_seeds_or_tasks_are_refused() -> None:
    def judged(other: Any) -> Any:
        return judge({"a": one_task(np.zeros((2, 9))), "b": other}, "a", 0.02, shared_seeds=True)

    for values in (np.zeros((2, 8)), np.zeros((3, 9)), np.zeros(9), np.full((2, 9), np.nan)):
        with pytest.raises(ValueError, match="b, arc-e: answers are"):
            judged(one_task(values))
    with pytest.raises(ValueError, match=r"b: tasks are \['obqa'\], expected \['arc-e'\]"):
        judged({"obqa": np.zeros((2, 9))})
    with pytest.raises(ValueError, match="at least 2 questions"):
        estimate(one_task(np.zeros((2, 1))), shared_seeds=True)
    with pytest.raises(ValueError, match=r"margin is 2\.0: expected a fraction"):
        judge({"a": {}, "b": {}}, "a", 2.0, shared_seeds=True)


def test_a_whole_study_is_judged() -> None:
    random = np.random.default_rng(12)
    correct = {
        f"arm-{number}": {f"task-{task}": random.random((5, 200)) < 0.7 for task in range(8)}
        for number in range(17)
    }
    verdicts = judge(correct, "arm-0", 0.05, shared_seeds=False)
    assert len(verdicts) == 16
    assert all(v.verdict in ("equivalent", "undecided") for v in verdicts.values())


@pytest.mark.parametrize(("degrees", "level"), [(2, 0.05), (4, 0.0125), (30, 0.05), (400, 0.003)])
def test_the_detectable_difference_is_found_as_often_as_said(degrees: int, level: float) -> None:
    shift = detectable_ratio(degrees, level, 0.8)
    random = np.random.default_rng(13)
    statistic = (random.normal(size=40_000) + shift) / np.sqrt(
        random.chisquare(degrees, 40_000) / degrees
    )
    found = np.mean(statistic > stats.t.isf(level / 2, degrees))
    assert found == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("truth", "margin"), [(0.04, 0.02), (0.0, 0.03), (0.01, 0.04)])
def test_as_many_rows_as_said_decide_as_often_as_said(truth: float, margin: float) -> None:
    random = np.random.default_rng(14)

    def study(questions: int) -> Any:
        values = (
            truth
            + random.normal(0, 0.004, (5, 1))
            + random.normal(0, 0.2, (1, questions))
            + random.normal(0, 0.3, (5, questions))
        )
        return estimate(one_task(values), shared_seeds=True)

    exact = Estimate(  # the truth, as a study of 100 questions would measure it at best
        mean=truth,
        seed_variance=0.004**2 / 5,
        question_variance=0.2**2 / 100,
        residual_variance=0.3**2 / 500,
        degrees=100.0,
        seeds=5,
        rows=100,
    )
    rows = rows_to_decide(exact, margin)
    assert rows is not None
    assert rows > 100
    studies = [study(rows) for _ in range(500)]
    different = np.mean([each.p_difference() <= 0.05 for each in studies])
    equivalent = np.mean([each.p_equivalence(margin) <= 0.05 for each in studies])
    assert max(different, equivalent) == pytest.approx(0.8, abs=0.08)


def test_where_seeds_differ_too_much_no_number_of_rows_decides() -> None:
    values = np.random.default_rng(15).normal(0.01, 1, (1, 50)) * 0.1 + np.array([[-0.2], [0.2]])
    assert rows_to_decide(estimate(one_task(values), shared_seeds=True), 0.02) is None


def test_expected_best_is_the_mean_over_all_draws() -> None:
    scores = [0.3, 0.7, 0.5, 0.7]
    for trials, value in enumerate(expected_best(scores), start=1):
        draws = itertools.product(scores, repeat=trials)
        assert value == pytest.approx(np.mean([max(drawn) for drawn in draws]))
    assert expected_best([0.4, None, math.nan, 0.4])[0] == pytest.approx(0.2)
    assert expected_best([0.4]) == [0.4]


def test_the_plateau_by_hand() -> None:
    scores = {1e-4: 0.60, 1e-3: 0.695, 1e-2: 0.70, 1e-1: 0.69, 1.0: 0.70}
    assert plateau(scores) == (1e-3, 1.0)
    assert plateau(scores, within=0.005) == (1e-3, 1e-2)
    assert plateau(scores, within=0.5) == (1e-4, 1.0)
    assert plateau(scores | {1e-1: None}) == (1e-3, 1e-2)
    assert plateau({1e-3: 0.2, 1e-2: None}) == (1e-3, 1e-3)
    with pytest.raises(ValueError, match="every learning rate diverged"):
        plateau({1e-3: None, 1e-2: math.nan})
