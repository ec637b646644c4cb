"""Statistics of per-example correctness: standard errors, paired tests, majority levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

#: A cell counts as collapsed when one answer takes at least this share of its predictions.
COLLAPSED_SHARE = 0.98

#: How many sign flips are drawn where there are too many to try all.
_DRAWS = 10_000


def mean_and_stderr(correct: Sequence[Sequence[bool]]) -> tuple[float, float | None]:
    """The accuracy and its standard error over examples, both fractions.

    Args:
        correct: for each seed, whether each example was answered correctly; all seeds have the same
            examples.

    Returns:
        The mean, and the sample standard deviation of the examples' mean correctness divided by
        sqrt(n), which is None for a single example.
    """
    per_example = np.asarray(correct, dtype=float).mean(axis=0)
    count = len(per_example)
    stderr = float(per_example.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return float(per_example.mean()), stderr


def seed_std(correct: Sequence[Sequence[bool]]) -> float:
    """The sample standard deviation of the accuracy over at least two seeds, a fraction."""
    return float(np.asarray(correct, dtype=float).mean(axis=1).std(ddof=1))


def paired_test(
    ours: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]]
) -> tuple[float, float]:
    """The difference in accuracy on the same examples, and its two-sided p-value.

    The test flips the signs of the per-example differences of mean correctness over seeds. Where
    all differences that are not 0 have the same size, as with one seed, it is McNemar's exact test:
    a binomial test of how many of them are positive. Otherwise it tries all flips, or 10,000 seeded
    draws of them where there are more.

    Args:
        ours: for each seed, the correctness of the method asked about.
        theirs: the same for the method that it is compared with, on the same examples.

    Returns:
        mean(ours) - mean(theirs) as a fraction, and p, which is above 0 and at most 1.

    Raises:
        ValueError: The numbers of examples differ.
    """
    # Imported here, because it takes longer than the rest of a command that only prints its help.
    from scipy.stats import binomtest, permutation_test

    mine, other = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if mine.shape[1] != other.shape[1]:
        raise ValueError(f"{mine.shape[1]} examples against {other.shape[1]}: not the same ones")
    difference = mine.mean(axis=0) - other.mean(axis=0)
    discordant = difference[difference != 0]
    if len(discordant) == 0:
        p_value = 1.0
    elif len(np.unique(np.abs(discordant))) == 1:
        p_value = binomtest(int((discordant > 0).sum()), len(discordant)).pvalue
    else:
        p_value = permutation_test(
            (discordant,),
            np.sum,
            permutation_type="samples",
            vectorized=True,
            n_resamples=_DRAWS,
            batch=_DRAWS // 10,
            rng=np.random.default_rng(0),
        ).pvalue
    return float(difference.mean()), float(p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number by Holm's step-down method.

    With a probability of at least 95 %, all those whose adjusted value is below 0.05 are true
    differences, whatever the dependence between the tests.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def majority_level(answers: Sequence[int]) -> float:
    """The accuracy of always giving the commonest right answer, a fraction."""
    return Counter(answers).most_common(1)[0][1] / len(answers)


def is_collapsed(predictions: Sequence[int]) -> bool:
    """Whether (almost) every prediction is the same answer, so that nothing was learned."""
    return Counter(predictions).most_common(1)[0][1] / len(predictions) >= COLLAPSED_SHARE
