"""Subsets, fingerprints and the mixture."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import Example, get_task
from tasks.data import fingerprint, mix, select


def make_examples(count: int, prefix: str = "q") -> list[Example]:
    return [
        Example(f"{prefix}{n}", f"question {n}", ("x", "y"), ("A", "B"), n % 2)
        for n in range(count)
    ]


@given(count=st.integers(0, 60), limit=st.integers(1, 80), seed=st.integers(0, 5))
def test_subset_is_an_ordered_subset_of_the_right_size(count: int, limit: int, seed: int) -> None:
    examples = make_examples(count)
    subset = select(examples, limit, seed)
    assert len(subset) == min(limit, count)
    positions = [examples.index(example) for example in subset]
    assert positions == sorted(set(positions))
    assert subset == select(examples, limit, seed)


def test_subset_is_drawn_from_the_whole_range() -> None:
    examples = make_examples(1000)
    drawn = Counter(
        examples.index(example) // 250
        for seed in range(20)
        for example in select(examples, 40, seed)
    )
    # 800 draws over four quarters: 200 each with a standard deviation of 12.
    assert all(130 < drawn[quarter] < 270 for quarter in range(4))


def test_no_limit_takes_all_and_a_limit_below_one_is_refused() -> None:
    examples = make_examples(5)
    assert select(examples, None) == examples
    for limit in (0, -3):
        with pytest.raises(ValueError, match=f"limit is {limit}: must be at least 1"):
            select(examples, limit)


def test_fingerprint_sees_every_field_and_the_order() -> None:
    examples = make_examples(3)
    changes: dict[str, Any] = {
        "id": "z",
        "question": "z",
        "options": ("x", "z"),
        "labels": ("A", "Z"),
        "answer": 1,
    }
    seen = {fingerprint(examples), fingerprint(examples[::-1]), fingerprint(examples[:2])}
    for field, value in changes.items():
        seen.add(fingerprint([dataclasses.replace(examples[0], **{field: value}), *examples[1:]]))
    assert len(seen) == 3 + len(changes)


def test_fingerprint_is_stable_across_processes_and_versions() -> None:
    # The hashes of no bytes and of one line of JSON, computed with sha256sum of coreutils.
    example = Example("é", "q", ("x", "y"), ("A", "B"), 1)
    assert fingerprint([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert fingerprint([example]) == (
        "67f171075dca164dc1f3328a5b2b0f8f3339c4afb8d5bb31df8de910ba3bf455"
    )


def test_mixture_holds_every_row_once_in_an_order_of_its_own() -> None:
    parts = [
        (get_task("arc-e"), make_examples(40, "e")),
        (get_task("boolq"), make_examples(10, "b")),
    ]
    mixed = mix(parts, seed=1)
    plain = [(task.name, example.id) for task, examples in parts for example in examples]
    assert Counter((task.name, example.id) for task, example in mixed) == Counter(plain)
    assert [(task.name, example.id) for task, example in mixed] != plain
    assert mixed == mix(parts, seed=1)
    assert mixed != mix(parts, seed=2)
    # Shuffled across tasks, not only within them.
    assert {task.name for task, _ in mixed[:25]} == {"arc-e", "boolq"}
    assert {task.name for task, _ in mixed[25:]} == {"arc-e", "boolq"}
