"""Statistics of per-example correctness: standard errors, paired tests, majority levels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

#: A cell counts as collapsed when one answer takes at least this share of its predictions.
COLLAPSED_SHARE = 0.98
_DRAWS = 10_000


def mean_and_stderr(correct: Sequence[Sequence[bool]]) -> tuple[float, float | None]:
    """Accuracy and its standard error over examples, both fractions.

    Args:
        correct: Per seed, whether each example was answered right; the same examples for all seeds.

    Returns:
        The mean, and the sample standard deviation of the examples' mean correctness over
        sqrt(n) (None for a single example).
    """
    per_example = np.asarray(correct, dtype=float).mean(axis=0)
    count = len(per_example)
    stderr = float(per_example.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return float(per_example.mean()), stderr


def seed_std(correct: Sequence[Sequence[bool]]) -> float:
    """Sample standard deviation of the accuracy over (at least two) seeds, a fraction."""
    return float(np.asarray(correct, dtype=float).mean(axis=1).std(ddof=1))


def paired_test(
    ours: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]]
) -> tuple[float, float]:
    """Difference in accuracy on the same examples, and its two-sided p-value.

    A sign-flip randomisation test of 10,000 seeded draws on the per-example differences of mean
    correctness over seeds. With one seed this is McNemar's exact test, estimated.

    Args:
        ours: Per seed, correctness of the method asked about.
        theirs: The same of the method compared with, on the same examples.

    Returns:
        (mean(ours) - mean(theirs) as a fraction, p in (0, 1]).

    Raises:
        ValueError: The numbers of examples differ.
    """
    mine, other = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if mine.shape[1] != other.shape[1]:
        raise ValueError(f"{mine.shape[1]} examples against {other.shape[1]}: not the same ones")
    difference = mine.mean(axis=0) - other.mean(axis=0)
    observed = difference.sum()
    discordant = difference[difference != 0]
    generator = np.random.default_rng(0)
    extreme = 0
    for _ in range(10):  # in parts: all draws at once would take draws x examples of memory
        signs = generator.choice((-1.0, 1.0), size=(_DRAWS // 10, len(discordant)))
        extreme += int((np.abs(signs @ discordant) >= abs(observed) - 1e-9).sum())
    return float(difference.mean()), (extreme + 1) / (_DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, by Holm's step-down method.

    Of those below 0.05, all are true differences with a probability of 95 % at least, whatever the
    dependence between the tests. Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def majority_level(answers: Sequence[int]) -> float:
    """Accuracy of always giving the commonest right answer, a fraction."""
    return Counter(answers).most_common(1)[0][1] / len(answers)


def is_collapsed(predictions: Sequence[int]) -> bool:
    """Whether (almost) every prediction is the same answer, so nothing of the task was learned."""
    return Counter(predictions).most_common(1)[0][1] / len(predictions) >= COLLAPSED_SHARE
