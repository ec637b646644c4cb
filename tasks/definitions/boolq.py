"""BoolQ: yes/no questions from search logs, asked without their passage (arXiv 1905.10044)."""

from __future__ import annotations

from typing import Any

from tasks.base import Example, HubDataset, LmEvalTask, Task
from tasks.fields import read_bool, read_text

_LABELS = ("true", "false")


def parse(row: dict[str, Any], default_id: str) -> Example:
    """Returns the row as an `Example` whose options are its labels, true and false."""
    # The data set's questions carry no question mark, its copies elsewhere do.
    question = read_text(row, "question").rstrip("?").rstrip()
    return Example(
        id=default_id,
        question=f"{question}?",
        options=_LABELS,
        labels=_LABELS,
        answer=0 if read_bool(row, "answer") else 1,
    )


TASK = Task(
    name="boolq",
    title="BoolQ",
    hub=HubDataset("google/boolq", None, "35b264d03638db9f4ce671b711558bf7ff0f80d5"),
    directory="boolq",
    train_split="train",
    eval_split="validation",
    columns={"question": "a non-empty text", "answer": "true or false, as a boolean"},
    instruction="Answer this question with true or false.",
    parse=parse,
    lm_eval=LmEvalTask(
        name="boolq",
        question='{{question.strip().rstrip("?").rstrip()}}?',
        options="['true', 'false']",
        answer="0 if answer else 1",
    ),
    lettered=False,
)
