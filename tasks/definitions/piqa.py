"""PIQA: which of two ways reaches an everyday physical goal (arXiv 1911.11641)."""

from __future__ import annotations

from typing import Any

from tasks.base import Example, HubDataset, LmEvalTask, Task
from tasks.fields import letters, read_index, read_text


def parse(row: dict[str, Any], default_id: str) -> Example:
    """Returns the row as an `Example` with two options."""
    return Example(
        id=default_id,
        question=read_text(row, "goal"),
        options=(read_text(row, "sol1"), read_text(row, "sol2")),
        labels=letters(2),
        answer=read_index(row, "label", first=0, count=2),
    )


TASK = Task(
    name="piqa",
    title="PIQA",
    hub=HubDataset("baber/piqa", None, "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"),
    directory="piqa",
    train_split="train",
    eval_split="validation",
    columns={
        "goal": "a non-empty text",
        "sol1": "a non-empty text",
        "sol2": "a non-empty text",
        "label": "0 (sol1 is right) or 1 (sol2 is right)",
    },
    instruction="Choose the way that reaches this goal.",
    parse=parse,
    lm_eval=LmEvalTask(
        name="piqa",
        question="{{goal.strip()}}",
        options="[sol1, sol2]",
        answer="label | int",
    ),
)
