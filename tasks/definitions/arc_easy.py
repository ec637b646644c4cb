"""ARC-Easy: school science questions that retrieval answers (arXiv 1803.05457)."""

from __future__ import annotations

from typing import Any

from tasks.base import Example, HubDataset, LmEvalTask, Task
from tasks.fields import letters, read_choices, read_text


def parse(row: dict[str, Any], default_id: str) -> Example:
    """Returns the row as an `Example` with three to five options."""
    options, answer = read_choices(row)
    return Example(
        id=read_text(row, "id"),
        question=read_text(row, "question"),
        options=options,
        labels=letters(len(options)),
        answer=answer,
    )


TASK = Task(
    name="arc-e",
    title="ARC-e",
    hub=HubDataset("allenai/ai2_arc", "ARC-Easy", "210d026faf9955653af8916fad021475a3f00453"),
    directory="arc_easy",
    train_split="train",
    eval_split="test",
    columns={
        "id": "a non-empty text that no other row has",
        "question": "a non-empty text",
        "choices": "an object of two lists of one length, text and label (no label twice)",
        "answerKey": "the label of the right choice",
    },
    instruction="Answer this science question.",
    parse=parse,
    lm_eval=LmEvalTask(
        name="arc_easy",
        question="{{question.strip()}}",
        options="choices.text",
        answer="(choices.label | map('trim') | list).index(answerKey.strip())",
    ),
)
