"""What a study's correct and wrong answers say: differences, their certainty, and verdicts.

All accuracies and differences are fractions. Shape legend: A arms, S seeds, Q questions of a task,
B resamples. What is asked is always the same: how would the average over tasks differ if other
seeds had trained and other questions of the same kind had been asked? Tasks are not drawn anew: a
verdict is about the tasks of the study.

Verdicts rest on an analysis of variance of paired differences: every seed answers every question,
and the variances over seeds, over questions and of the rest add up. With three to five seeds its
t-test keeps the promised rate of false verdicts nearly everywhere. The paired hierarchical
bootstrap, printed beside it, does not: where seeds differ much its interval of 95 % holds the truth
in 80 to 88 of 100 studies, and where they do not it is up to 1.4 times too wide.
`tests/harness/study/test_calibration.py` measures both.

Sources: Searle, Casella and McCulloch, Variance Components (1992), chapter 4, for the two-way
layout; Satterthwaite, Biometrics Bulletin 2 (1946) 110-114, for degrees of freedom; Davison and
Hinkley, Bootstrap Methods and their Application (1997), 3.8, for resampling on two levels;
Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987) 657-680, for equivalence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from harness.numbers.statistics import holm

#: Resamples of the bootstrap, which are the same whenever a study is rendered.
_RESAMPLES = 10_000
_RANDOM_SEED = 20_240_415

#: Resamples are made in parts of about this many numbers, to bound the memory.
_PART = 20_000_000

VerdictName = Literal["better", "worse", "equivalent", "undecided"]

Array = NDArray[np.float64]

#: Task -> (S, Q) whether each question was answered right, by seed.
Answers = Mapping[str, ArrayLike]


@dataclass(frozen=True)
class Estimate:
    """An average over tasks, of accuracies or of paired differences, and where its error is from.

    Attributes:
        mean: the value measured, a fraction.
        seed_variance: variance of the mean that other seeds would cause.
        question_variance: variance of the mean that other questions would cause, for all seeds
            alike.
        residual_variance: variance of the mean from what is peculiar to a question under a seed.
        degrees: degrees of freedom of the sum of the three.
        seeds: number of seeds S. With one, differences between seeds are not known and not in the
            error.
        rows: number of questions of all tasks.
    """

    mean: float
    seed_variance: float
    question_variance: float
    residual_variance: float
    degrees: float
    seeds: int
    rows: int

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, a fraction."""
        return math.sqrt(self.seed_variance + self.question_variance + self.residual_variance)

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """The interval that leaves the truth out in a share `level` of studies."""
        half = float(stats.t.isf(level / 2, self.degrees)) * self.standard_error
        return self.mean - half, self.mean + half

    def p_difference(self) -> float:
        """p-value of "the truth is 0", two-sided."""
        return float(2 * stats.t.sf(abs(self.mean) / self.standard_error, self.degrees))

    def p_equivalence(self, margin: float) -> float:
        """p-value of "the truth is `margin` or more away from 0": two one-sided tests.

        At most `level` exactly where `interval(2 * level)` lies within the margin.
        """
        room = margin - abs(self.mean)
        return float(stats.t.sf(room / self.standard_error, self.degrees))


@dataclass(frozen=True)
class Verdict:
    """What a study says of one arm against its reference.

    Attributes:
        verdict: "better" or "worse" (p_adjusted is at most the level), "equivalent" (the difference
            is surely below the margin), or "undecided". Where a difference is both, surely there
            and surely below the margin, it is "equivalent": the study said beforehand that so
            little does not matter.
        difference: accuracy of the arm minus that of its reference, averaged over tasks.
        interval: of 1 - level (95 %), for this one difference alone.
        bootstrap_interval: the same by the paired hierarchical bootstrap, percentiles. No verdict
            rests on it.
        p: p-value of "no difference", for this one alone.
        p_adjusted: the same by Holm's method for the whole family.
        p_equivalent: p-value of "a difference of the margin or more", likewise alone.
        p_equivalent_adjusted: the same by Holm's method for the whole family.
        margin: the difference below which two arms count as equivalent.
        detectable: smallest true difference that would be called better with the power asked for,
            at the level that the first step of Holm's method asks of a family of this size.
        rows_to_decide: of an undecided arm, number of questions of all tasks that would decide with
            the power asked for, if the truth is as measured; None where no number does, because
            the seeds differ too much, and for an arm that is decided.
        estimate: the difference with its error in parts.
    """

    verdict: VerdictName
    difference: float
    interval: tuple[float, float]
    bootstrap_interval: tuple[float, float]
    p: float
    p_adjusted: float
    p_equivalent: float
    p_equivalent_adjusted: float
    margin: float
    detectable: float
    rows_to_decide: int | None
    estimate: Estimate


def judge(
    correct: Mapping[str, Answers],
    reference: str,
    margin: float,
    *,
    shared_seeds: bool,
    level: float = 0.05,
    power: float = 0.8,
) -> dict[str, Verdict]:
    """The verdict on every arm but the reference, which together are one family of tests.

    Args:
        correct: Arm -> its answers. All arms have the same tasks, seeds and questions, in the same
            order; a run that diverged has answered nothing right.
        reference: The arm that the others are compared with.
        margin: Difference below which arms count as equivalent, a fraction above 0.
        shared_seeds: Whether one run with a seed answers all tasks, as in `estimate`.
        level: Probability of a false verdict in the whole family.
        power: Probability with which a true difference is to be found, for `Verdict.detectable` and
            `Verdict.rows_to_decide`.

    Raises:
        ValueError: The arms have not the same tasks, seeds and questions, or the margin is out of
            range.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin is {margin}: expected a fraction above 0 and below 1")
    base = correct[reference]
    arms = [arm for arm in correct if arm != reference]
    differences = [_paired(arm, correct[arm], base) for arm in arms]
    estimates = [estimate(values, shared_seeds=shared_seeds) for values in differences]
    adjusted = holm([each.p_difference() for each in estimates])
    equivalent_adjusted = holm([each.p_equivalence(margin) for each in estimates])
    percentiles = _bootstrap(differences, shared_seeds, level)
    strict = level / len(arms)

    verdicts = {}
    for number, (arm, each) in enumerate(zip(arms, estimates, strict=True)):
        name: VerdictName = "undecided"
        if equivalent_adjusted[number] <= level:
            name = "equivalent"
        elif adjusted[number] <= level:
            name = "better" if each.mean > 0 else "worse"
        verdicts[arm] = Verdict(
            verdict=name,
            difference=each.mean,
            interval=each.interval(level),
            bootstrap_interval=percentiles[number],
            p=each.p_difference(),
            p_adjusted=adjusted[number],
            p_equivalent=each.p_equivalence(margin),
            p_equivalent_adjusted=equivalent_adjusted[number],
            margin=margin,
            detectable=each.standard_error * detectable_ratio(each.degrees, strict, power),
            rows_to_decide=(
                rows_to_decide(each, margin, strict, power) if name == "undecided" else None
            ),
            estimate=each,
        )
    return verdicts


def estimate(correct: Answers, *, shared_seeds: bool) -> Estimate:
    """The average over tasks of answers, or of paired differences, with its error.

    A value is the mean, plus an effect of its seed, plus an effect of its question, plus a
    residual: a two-way layout without repeats. An estimate of a variance that comes out negative
    counts as 0.

    Args:
        correct: Task -> (S, Q) numbers.
        shared_seeds: Whether one run with a seed answers all tasks (tuned on all of them), so that
            its luck is the same in all; False where every task has runs and seeds of its own.

    Raises:
        ValueError: The arrays are not (S, Q) with the same S and at least 2 questions.
    """
    tasks = _arrays("answers", correct, correct)
    share = 1 / len(tasks)  # of each task in the average
    seeds = len(tasks[0])
    # (S, runs of a seed): accuracy of each, divided by the number of tasks.
    runs = share * np.stack([values.mean(axis=1) for values in tasks], axis=1)
    if shared_seeds:
        runs = runs.sum(axis=1, keepdims=True)
    by_question = residual = squares = least = 0.0
    for values in tasks:
        questions = values.shape[1]
        per_question = values.mean(axis=0)
        variance = share**2 * float(per_question.var(ddof=1)) / questions
        by_question += variance
        squares += variance**2 / (questions - 1)
        least += (share / questions) ** 2
        if seeds > 1:
            left = values - per_question - values.mean(axis=1, keepdims=True) + values.mean()
            degrees = (seeds - 1) * (questions - 1)
            residual += share**2 * float((left**2).sum()) / degrees / values.size
    by_seed = 0.0
    if seeds > 1:
        variances = runs.var(axis=0, ddof=1) / seeds
        by_seed = float(variances.sum())
        squares += float((variances**2).sum()) / (seeds - 1)
    # The spread of seeds' means, and that of questions' means, hold the residual each.
    seed_variance = max(by_seed - residual, 0.0)
    question_variance = max(by_question - residual, 0.0)
    # Two arms that never differ on Q questions are not known to be equal: the variance is never
    # taken below that of one question answered differently in each task.
    question_variance += max(least - seed_variance - question_variance - residual, 0.0)
    total = seed_variance + question_variance + residual
    return Estimate(
        mean=float(runs.mean(axis=0).sum()),
        seed_variance=seed_variance,
        question_variance=question_variance,
        residual_variance=residual,
        degrees=total**2 / squares if squares else float(min(v.shape[1] for v in tasks) - 1),
        seeds=seeds,
        rows=sum(values.shape[1] for values in tasks),
    )


def detectable_ratio(degrees: float, level: float = 0.05, power: float = 0.8) -> float:
    """Smallest true difference, in standard errors, that a t-test finds with that power.

    Args:
        degrees: Degrees of freedom.
        level: Probability of finding a difference that is not there, two-sided.
        power: Probability of finding one that is.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2.
    """
    critical = stats.t.isf(level / 2, degrees)
    # The noncentral t-distribution that lies below the critical value with probability 1 - power.
    return float(special.nctdtrinc(degrees, 1 - power, critical))


def rows_to_decide(
    each: Estimate, margin: float, level: float = 0.05, power: float = 0.8
) -> int | None:
    """Questions of all tasks that would decide with that power, if the truth is as measured.

    As many more in every task, asked of the same number of seeds, which keep their spread.

    Args:
        each: What was measured.
        margin: Difference below which arms count as equivalent, a fraction.
        level: Probability of a false verdict on this arm.
        power: Probability of a verdict.

    Returns:
        None where no number of questions decides: seeds differ too much, or the difference measured
        is the margin itself and none. At least as many as there are.
    """
    # Both kinds of verdict depend on the standard error alone; the larger one that does counts.
    of_difference = abs(each.mean) / detectable_ratio(each.degrees, level, power)
    of_equivalence = _error_for_equivalence(abs(each.mean), margin, each.degrees, level, power)
    enough = max(of_difference, of_equivalence) ** 2 - each.seed_variance
    if enough <= 0:
        return None
    of_rows = each.question_variance + each.residual_variance
    return max(each.rows, math.ceil(each.rows * of_rows / enough))


def expected_best(scores: Sequence[float | None]) -> list[float]:
    """Expected best validation score after 1, 2, ..., len(scores) trials.

    As if trials were drawn at random, with replacement, from the ones made: what somebody can hope
    for who tries that many rates. Source: Dodge et al., arXiv 1909.03004, eq. 1-5.

    Args:
        scores: One per trial; None or NaN, for a diverged one, counts as 0.
    """
    values = np.sort([0.0 if s is None or not math.isfinite(s) else s for s in scores])
    number = len(values)
    below = np.arange(number + 1) / number  # share of the scores up to each
    return [float(values @ np.diff(below**trials)) for trials in range(1, number + 1)]


def plateau(scores: Mapping[float, float | None], within: float = 0.01) -> tuple[float, float]:
    """Lowest and highest learning rate of the plateau around the best one.

    All tried rates between the two score at most `within` less than the best.

    Args:
        scores: Learning rate -> score, a fraction; None or NaN where the training diverged.
        within: What may be lost, a fraction.

    Raises:
        ValueError: Every training diverged.
    """
    finite = {r: s for r, s in scores.items() if s is not None and math.isfinite(s)}
    if not finite:
        raise ValueError("every learning rate diverged: there is no plateau")
    rates = sorted(scores)
    peak = max(sorted(finite), key=finite.__getitem__)
    good = [rate in finite and finite[rate] >= finite[peak] - within - 1e-12 for rate in rates]
    first = last = rates.index(peak)
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(rates) - 1 and good[last + 1]:
        last += 1
    return rates[first], rates[last]


def _error_for_equivalence(
    mean: float, margin: float, degrees: float, level: float, power: float
) -> float:
    """Largest standard error that shows equivalence with that power, if `mean` is the truth."""
    if mean >= margin:
        return 0.0
    critical = stats.t.isf(level, degrees)

    def lacking(error: float) -> float:
        upper = stats.t.cdf((margin - mean) / error - critical, degrees)
        lower = stats.t.cdf((margin + mean) / error - critical, degrees)
        return float(upper + lower - 1) - power

    smallest = (margin - mean) * 1e-6
    return float(optimize.brentq(lacking, smallest, margin)) if lacking(smallest) > 0 else 0.0


def _paired(arm: str, answers: Answers, base: Answers) -> dict[str, ArrayLike]:
    """The arm's answers minus the reference's."""
    pairs = zip(base, _arrays(arm, answers, base), _arrays(arm, base, base), strict=True)
    return {task: mine - other for task, mine, other in pairs}


def _arrays(arm: str, answers: Answers, like: Answers) -> list[Array]:
    """The answers as numbers, in the order of the tasks of `like`.

    Raises:
        ValueError: The tasks, seeds or questions are not those of `like`, or there are none.
    """
    if set(answers) != set(like) or not like:
        raise ValueError(f"{arm}: tasks are {list(answers)}, expected {list(like)}")
    arrays = [np.asarray(answers[task], dtype=np.float64) for task in like]
    seeds = len(arrays[0])
    for task, values in zip(like, arrays, strict=True):
        expected = np.shape(like[task])
        fits = values.shape == expected and values.ndim == 2 and values.shape[0] == seeds > 0
        if not fits or values.shape[1] < 2 or not np.isfinite(values).all():
            raise ValueError(
                f"{arm}, {task}: answers are {values.shape}, expected finite numbers "
                f"{expected}: (seeds, questions), {seeds} seeds as in the other tasks, and at "
                "least 2 questions"
            )
    return arrays


def _bootstrap(
    differences: Sequence[Answers], shared_seeds: bool, level: float
) -> list[tuple[float, float]]:
    """Percentile intervals of the paired hierarchical bootstrap, one per arm.

    In every resample S seeds are drawn with replacement, for every task or, where shared, for all
    together, and Q questions of each task. All arms have the same seeds and questions drawn.
    """
    tasks = [
        np.stack([np.asarray(arm[task], dtype=np.float64) for arm in differences])
        for task in differences[0]
    ]  # each (A, S, Q)
    random = np.random.default_rng(_RANDOM_SEED)
    arms, seeds = tasks[0].shape[:2]
    drawn_seeds = _draws(random, _RESAMPLES, seeds)
    means = np.zeros((_RESAMPLES, arms))
    for values in tasks:
        questions = values.shape[2]
        flat = values.reshape(-1, questions).T
        if not shared_seeds:
            drawn_seeds = _draws(random, _RESAMPLES, seeds)
        part = max(1, _PART // questions)
        for start in range(0, _RESAMPLES, part):
            rows = slice(start, min(start + part, _RESAMPLES))
            drawn = _draws(random, rows.stop - start, questions)
            sums = (drawn @ flat).reshape(-1, arms, seeds)
            means[rows] += np.einsum("bas,bs->ba", sums, drawn_seeds[rows]) / (seeds * questions)
    ends = np.quantile(means / len(tasks), [level / 2, 1 - level / 2], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]


def _draws(random: np.random.Generator, number: int, size: int) -> Array:
    """(number, size): how often each of `size` things comes in `size` draws with replacement."""
    drawn = random.integers(size, size=(number, size))
    drawn += size * np.arange(number)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=number * size)
    return counts.reshape(number, size).astype(np.float64)
