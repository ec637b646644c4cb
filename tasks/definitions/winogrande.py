"""WinoGrande: which of two names or things fills the blank of a sentence (arXiv 1907.10641)."""

from __future__ import annotations

from typing import Any

from tasks.base import Example, HubDataset, LmEvalTask, Task
from tasks.fields import RowError, letters, read_index, read_text
from tasks.messages import short_repr


def parse(row: dict[str, Any], default_id: str) -> Example:
    """Returns the row as an `Example` with two options; the question is the sentence with `_`."""
    sentence = read_text(row, "sentence")
    if "_" not in sentence:
        raise RowError("sentence", f"got {short_repr(sentence)}")
    return Example(
        id=default_id,
        question=sentence,
        options=(read_text(row, "option1"), read_text(row, "option2")),
        labels=letters(2),
        answer=read_index(row, "answer", first=1, count=2),
    )


TASK = Task(
    name="winogrande",
    title="WinoGrande",
    # The paper trains on the debiased subset; the validation split is that of all subsets.
    hub=HubDataset(
        "allenai/winogrande", "winogrande_debiased", "01e74176c63542e6b0bcb004dcdea22d94fb67b5"
    ),
    directory="winogrande",
    train_split="train",
    eval_split="validation",
    columns={
        "sentence": "a text with the blank written as _",
        "option1": "a non-empty text",
        "option2": "a non-empty text",
        "answer": '"1" or "2", the right option\'s number',
    },
    instruction="Choose what the blank _ in this sentence stands for.",
    parse=parse,
    lm_eval=LmEvalTask(
        name="winogrande",
        question="{{sentence.strip()}}",
        options="[option1, option2]",
        answer="answer | int - 1",
    ),
)
