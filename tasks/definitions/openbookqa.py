"""OpenBookQA: elementary science that needs a fact and common sense (arXiv 1809.02789)."""

from __future__ import annotations

from typing import Any

from tasks.base import Example, HubDataset, LmEvalTask, Task
from tasks.fields import letters, read_choices, read_text


def parse(row: dict[str, Any], default_id: str) -> Example:
    """Returns the row as an `Example`; its question may be the beginning of a sentence."""
    options, answer = read_choices(row)
    return Example(
        id=read_text(row, "id"),
        question=read_text(row, "question_stem"),
        options=options,
        labels=letters(len(options)),
        answer=answer,
    )


TASK = Task(
    name="obqa",
    title="OBQA",
    hub=HubDataset("allenai/openbookqa", "main", "388097ea7776314e93a529163e0fea805b8a6454"),
    directory="openbookqa",
    train_split="train",
    eval_split="test",
    columns={
        "id": "a non-empty text that no other row has",
        "question_stem": "a non-empty text",
        "choices": "an object of two lists of one length, text and label (no label twice)",
        "answerKey": "the label of the right choice",
    },
    instruction="Answer this question or complete the sentence.",
    parse=parse,
    lm_eval=LmEvalTask(
        name="openbookqa",
        question="{{question_stem.strip()}}",
        options="choices.text",
        answer="(choices.label | map('trim') | list).index(answerKey.strip())",
    ),
)
