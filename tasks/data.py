"""Subsets and fingerprints of lists of examples."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence

from tasks.base import Example


def select(examples: Sequence[Example], limit: int | None, seed: int = 0) -> list[Example]:
    """Returns a random subset of at most `limit` examples, in their original order.

    Which rows are taken depends on `seed`, `limit` and the number of examples only, so that every
    method and every training seed sees the same ones.

    Args:
        examples: All examples of a split.
        limit: Size of the subset; None takes all.
        seed: Seed of the choice, not of the training run.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is None:
        return list(examples)
    if limit < 1:
        raise ValueError(f"limit is {limit}: must be at least 1")
    rows = random.Random(seed).sample(range(len(examples)), min(limit, len(examples)))
    return [examples[row] for row in sorted(rows)]


def fingerprint(examples: Sequence[Example]) -> str:
    """Returns the SHA-256, in hex, of the examples' content in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{json.dumps(dataclasses.astuple(example))}\n".encode())
    return digest.hexdigest()
