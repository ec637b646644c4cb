"""Statistics against closed forms and against exact tests."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from harness.numbers.statistics import (
    holm,
    is_collapsed,
    majority_level,
    mean_and_stderr,
    paired_test,
    seed_std,
)


def exact_mcnemar(won: int, lost: int) -> float:
    """Two-sided binomial p-value of `won` against `lost` discordant pairs."""
    total, extreme = won + lost, max(won, lost)
    tail = sum(math.comb(total, k) for k in range(extreme, total + 1)) / 2**total
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (3, 1), (5, 5), (12, 3), (30, 14), (9, 0)])
def test_one_seed_is_mcnemars_exact_test(won: int, lost: int) -> None:
    ours = [True] * won + [False] * lost + [True] * 20 + [False] * 11
    theirs = [False] * won + [True] * lost + [True] * 20 + [False] * 11
    difference, p_value = paired_test([ours], [theirs])
    assert difference == pytest.approx((won - lost) / len(ours))
    assert p_value == pytest.approx(exact_mcnemar(won, lost), abs=1e-12)


def test_the_p_value_is_uniform_when_nothing_differs() -> None:
    generator = random.Random(1)
    small = 0
    for _ in range(60):
        ours = [generator.random() < 0.6 for _ in range(80)]
        theirs = [generator.random() < 0.6 for _ in range(80)]
        small += paired_test([ours], [theirs])[1] < 0.2
    assert 3 <= small <= 22  # about 12 of 60 expected


def exact_sign_flips(differences: list[float]) -> float:
    """Two-sided p-value over all flips of the signs."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


@pytest.mark.parametrize("seed", range(4))
def test_several_seeds_are_a_test_of_all_sign_flips(seed: int) -> None:
    generator = random.Random(seed)
    ours, theirs = (
        [[generator.random() < share for _ in range(12)] for _ in range(2)] for share in (0.8, 0.4)
    )
    pairs = zip(*ours, *theirs, strict=True)
    differences = [(a + b - c - d) / 2 for a, b, c, d in pairs if a + b != c + d]
    assert {abs(d) for d in differences} == {0.5, 1.0}
    assert paired_test(ours, theirs)[1] == pytest.approx(exact_sign_flips(differences), abs=1e-9)


def test_several_seeds_are_averaged_per_example() -> None:
    ours = [[True, True, False, True], [True, False, False, True]]
    theirs = [[True, False, False, False]]
    difference, _ = paired_test(ours, theirs)
    assert difference == pytest.approx((0 + 0.5 + 0 + 1) / 4)


def test_swapping_the_methods_flips_the_sign_only() -> None:
    ours, theirs = [[True] * 9 + [False] * 4], [[False] * 6 + [True] * 7]
    forth, back = paired_test(ours, theirs), paired_test(theirs, ours)
    assert forth[0] == -back[0]
    assert forth[1] == pytest.approx(back[1], abs=0.02)


def test_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="3 examples against 2"):
        paired_test([[True] * 3], [[True] * 2])


def test_standard_error_of_a_proportion() -> None:
    correct = [True] * 30 + [False] * 70
    mean, stderr = mean_and_stderr([correct])
    assert mean == pytest.approx(0.3)
    assert stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert mean_and_stderr([[True]]) == (1.0, None)


def test_standard_error_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        mean, stderr = mean_and_stderr([(generator.random(200) < 0.7).tolist()])
        assert stderr is not None
        inside += abs(mean - 0.7) < 1.96 * stderr
    assert 0.90 < inside / 300 < 0.99


def test_majority_and_collapse() -> None:
    assert majority_level([0, 1, 1, 2, 1]) == pytest.approx(0.6)
    assert is_collapsed([1] * 98 + [0, 2])
    assert not is_collapsed([1] * 97 + [0, 2, 0])


def test_holm_by_hand_and_by_definition() -> None:
    # The example of four tests: 0.01 x 4, 0.02 x 3, then at least what came before.
    assert holm([0.02, 0.01, 0.9, 0.03]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([]) == []
    generator = np.random.default_rng(1)
    for _ in range(50):
        values = generator.random(7) ** 3
        adjusted = holm(list(values))
        for level in (0.01, 0.05, 0.3):
            # Rejected, one after the other from the smallest, until one is not.
            rejected = 0
            for rank, value in enumerate(sorted(values)):
                if value > level / (7 - rank):
                    break
                rejected += 1
            assert sum(p <= level for p in adjusted) == rejected


def test_spread_over_seeds() -> None:
    assert seed_std([[True, True], [True, False], [False, False]]) == pytest.approx(0.5)
