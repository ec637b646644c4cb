"""Measures of a mixture's health by hand."""

from __future__ import annotations

import numpy as np
import pytest

from harness.study.health import (
    busiest_share,
    effective_experts,
    maximal_violation,
    task_information,
)


def test_maximal_violation_by_hand() -> None:
    # Mean 25; the busiest has 60, or as much as the others, or all.
    counts = [[60, 20, 10, 10], [25, 25, 25, 25], [0, 0, 100, 0]]
    assert maximal_violation(counts) == pytest.approx([1.4, 0.0, 3.0])
    # Two of four experts for every one of 50 tokens: at worst 4 / 2 - 1.
    assert maximal_violation([50, 50, 0, 0]) == pytest.approx(1.0)


def test_share_of_the_busiest_by_hand() -> None:
    assert busiest_share([[60, 20, 10, 10], [1, 1, 1, 1]]) == pytest.approx([0.6, 0.25])


def test_effective_number_of_experts_by_hand() -> None:
    even, sure, two = [0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]
    assert effective_experts([even]) == pytest.approx(4)
    assert effective_experts([sure]) == pytest.approx(1)
    assert effective_experts([two, sure]) == pytest.approx(1.5)  # the mean over tokens
    uneven = [0.7, 0.1, 0.1, 0.1]
    assert effective_experts([[uneven], [even]]) == pytest.approx([1 / 0.52, 4])  # two layers
    with pytest.raises(ValueError, match="sum to 1"):
        effective_experts([[0.5, 0.2]])
    with pytest.raises(ValueError, match=r"\(2,\): expected"):
        effective_experts([0.5, 0.5])


def test_information_about_the_task_by_hand() -> None:
    # First layer: each task has its expert. Second: both go the same ways. Third: half of each.
    one = [[10, 0], [30, 10], [40, 0]]
    two = [[0, 99], [3, 1], [50, 50]]
    third = 0.5 * np.log2(1 / 0.75) + 0.25 * np.log2(0.5 / 0.75) + 0.25 * np.log2(0.5 / 0.25)
    assert task_information({"a": one, "b": two}) == pytest.approx([1.0, 0.0, third])
    four = {name: np.eye(4, dtype=int)[[number]] * 7 for number, name in enumerate("abcd")}
    assert task_information(four) == pytest.approx([2.0])


def test_a_layer_without_tokens_is_refused() -> None:
    for measure in (maximal_violation, busiest_share):
        with pytest.raises(ValueError, match="at least one in every layer"):
            measure([[1, 2], [0, 0]])
