"""SocialIQA: what people do, want and feel in everyday situations (arXiv 1904.09728)."""

from __future__ import annotations

from typing import Any

from tasks.base import Example, HubDataset, LmEvalTask, Task
from tasks.fields import letters, read_index, read_text


def parse(row: dict[str, Any], default_id: str) -> Example:
    """Returns the row as an `Example` with three options; context and question are two lines."""
    return Example(
        id=default_id,
        question=f"{read_text(row, 'context')}\n{read_text(row, 'question')}",
        options=tuple(read_text(row, f"answer{letter}") for letter in letters(3)),
        labels=letters(3),
        answer=read_index(row, "label", first=1, count=3),
    )


TASK = Task(
    name="siqa",
    title="SIQA",
    # No commit hash of this repository could be confirmed: the newest is taken.
    hub=HubDataset("lighteval/siqa"),
    directory="social_iqa",
    train_split="train",
    eval_split="validation",
    columns={
        "context": "a non-empty text",
        "question": "a non-empty text",
        "answerA": "a non-empty text",
        "answerB": "a non-empty text",
        "answerC": "a non-empty text",
        "label": '"1", "2" or "3", the right answer\'s place',
    },
    instruction="Answer this question about the situation.",
    parse=parse,
    lm_eval=LmEvalTask(
        name="social_iqa",
        question="{{context.strip()}}\n{{question.strip()}}",
        options="[answerA, answerB, answerC]",
        answer="label | int - 1",
    ),
)
