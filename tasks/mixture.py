"""The multi-task training mixture.

Source: arXiv 2404.15159, multi-task set-up: the tasks' training rows are put together as they are,
without balancing, and each task is evaluated on its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tasks.base import Example, Task

MULTI_TASK: tuple[str, ...] = ("arc-e", "arc-c", "boolq", "obqa", "piqa")
"""The tasks that the paper's multi-task models are trained on."""


def mix(parts: Sequence[tuple[Task, Sequence[Example]]], seed: int) -> list[tuple[Task, Example]]:
    """Returns all examples of all parts, each with its task, shuffled by `seed`."""
    rows = [(task, example) for task, examples in parts for example in examples]
    random.Random(seed).shuffle(rows)
    return rows
