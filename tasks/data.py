"""Lists of examples: subsets, the multi-task mixture, and fingerprints."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence

from tasks.base import Example, Task


def select(examples: Sequence[Example], limit: int | None, seed: int = 0) -> list[Example]:
    """Returns a random subset of at most `limit` examples, in their original order.

    The choice depends on `seed`, `limit` and the number of examples only, so that every method and
    every training seed gets the same rows.

    Args:
        examples: all examples of a split.
        limit: size of the subset; None takes all examples.
        seed: seed of the choice, which is not the seed of the training run.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is None:
        return list(examples)
    if limit < 1:
        raise ValueError(f"limit is {limit}: must be at least 1")
    rows = random.Random(seed).sample(range(len(examples)), min(limit, len(examples)))
    return [examples[row] for row in sorted(rows)]


def split_validation(
    examples: Sequence[Example], share: float, least: int
) -> tuple[list[Example], list[Example]]:
    """Cuts validation examples from a training split.

    Those with the smallest SHA-256 of their id are taken, so that the choice depends on nothing but
    the ids: not on their order, a seed, or a method.

    Args:
        examples: the whole training split.
        share: part of the examples that is wanted, a fraction.
        least: number of validation examples that are taken at least.

    Returns:
        (examples to train on, validation examples), both in the order given.

    Raises:
        ValueError: No example would be left to train on.
    """
    number = max(round(share * len(examples)), least)
    if number >= len(examples):
        raise ValueError(
            f"{number} validation rows of {len(examples)} training rows leave none to train on"
        )
    by_hash = sorted(examples, key=lambda each: hashlib.sha256(each.id.encode()).digest())
    validation = {each.id for each in by_hash[:number]}
    return (
        [each for each in examples if each.id not in validation],
        [each for each in examples if each.id in validation],
    )


def mix(parts: Sequence[tuple[Task, Sequence[Example]]], seed: int) -> list[tuple[Task, Example]]:
    """Returns the examples of several tasks, each with its task, in one order shuffled by `seed`.

    The rows are put together as they are, without balancing the tasks.

    Source: arXiv 2404.15159, multi-task set-up.
    """
    rows = [(task, example) for task, examples in parts for example in examples]
    random.Random(seed).shuffle(rows)
    return rows


def fingerprint(examples: Sequence[Example]) -> str:
    """Returns the SHA-256, in hexadecimal, of the examples' content in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{json.dumps(dataclasses.astuple(example))}\n".encode())
    return digest.hexdigest()
