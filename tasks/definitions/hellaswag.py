"""HellaSwag: which ending continues a description of an activity (arXiv 1905.07830)."""

from __future__ import annotations

from typing import Any

from tasks.base import Example, HubDataset, LmEvalTask, Task
from tasks.fields import RowError, letters, read_index, read_text, read_texts

_NUM_ENDINGS = 4


def parse(row: dict[str, Any], default_id: str) -> Example:
    """Returns the row as an `Example` with four options."""
    endings = read_texts(row, "endings")
    if len(endings) != _NUM_ENDINGS:
        raise RowError("endings", f"got {len(endings)} texts")
    return Example(
        id=default_id,
        question=read_text(row, "ctx"),
        options=endings,
        labels=letters(_NUM_ENDINGS),
        answer=read_index(row, "label", first=0, count=_NUM_ENDINGS),
    )


TASK = Task(
    name="hellaswag",
    title="HellaSwag",
    hub=HubDataset("Rowan/hellaswag", None, "218ec52e09a7e7462a5400043bb9a69a41d06b76"),
    directory="hellaswag",
    train_split="train",
    eval_split="validation",
    columns={
        "ctx": "a non-empty text",
        "endings": "a list of four non-empty texts",
        "label": '"0", "1", "2" or "3", the right ending\'s place from 0',
    },
    instruction="Choose the most likely continuation of this text.",
    parse=parse,
    lm_eval=LmEvalTask(
        name="hellaswag",
        question="{{ctx.strip()}}",
        options="endings",
        answer="label | int",
    ),
)
