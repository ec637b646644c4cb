"""What a task is: one multiple-choice data set, its rows as `Example`s, and where they come from.

Every other module of `tasks/` works on these three records and knows nothing of a single data set;
the data sets themselves are the files of `tasks/definitions/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Scoring = Literal["label", "choice"]

SCORINGS: tuple[Scoring, ...] = ("label", "choice")


@dataclass(frozen=True)
class Example:
    """One multiple-choice question.

    Attributes:
        id: The data set's own id, or `<split>-<row number from 1>` where it has none; unique within
            a split.
        question: Everything that is asked (context and question, goal, sentence), without the
            options; one or several lines, no whitespace at its ends.
        options: The text of every option, no whitespace at its ends.
        labels: The word that stands for each option, `("A", "B", ...)` or `("true", "false")`.
        answer: Index of the right option.
    """

    id: str
    question: str
    options: tuple[str, ...]
    labels: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hugging Face hub that loads without a script.

    Attributes:
        path: Repository id, `owner/name`.
        config: Configuration (subset) name, None where the data set has one only.
        revision: Full commit hash, None where we know none and the newest is taken.
    """

    path: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Task:
    """A data set and how it is asked.

    Attributes:
        name: The name used on the command line and in `reported.csv`, e.g. `arc-e`.
        title: The name printed in tables, e.g. `ARC-e`.
        hub: Where the hub keeps it.
        directory: Name of its folder in a local data directory.
        train_split: Split that is trained on.
        eval_split: Split that is scored.
        columns: Column that is read -> what must stand there, in words for error messages.
        instruction: The first line of its prompts, one sentence.
        parse: Turns a row (column -> value) and the id to use where the data set has none into an
            `Example`; raises `fields.RowError` naming the column that is missing or wrong.
        lm_eval_task: Name of the task in lm-evaluation-harness.
        lettered: Whether the options are listed under letters; False where the labels are the
            options themselves (true, false).
    """

    name: str
    title: str
    hub: HubDataset
    directory: str
    train_split: str
    eval_split: str
    columns: dict[str, str]
    instruction: str
    parse: Callable[[dict[str, Any], str], Example]
    lm_eval_task: str
    lettered: bool = True
