"""What a task is: a multiple-choice data set, its rows as `Example`s, and where the rows come from.

Every other module of `tasks/` works on these records and knows no single data set. The data sets
themselves are described in `tasks/definitions/`, one file each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Scoring = Literal["label", "choice"]
"""How answers compete: by the label of an option, or by its text; see `tasks.prompts`."""

SCORINGS: tuple[Scoring, ...] = ("label", "choice")


@dataclass(frozen=True)
class Example:
    """One multiple-choice question.

    Attributes:
        id: id of the row in its data set, or `<split>-<row number from 1>` where the data set has
            none; unique within a split.
        question: everything that is asked (context and question, goal, sentence) without the
            options; one or several lines, no whitespace at its ends.
        options: text of every option, no whitespace at its ends.
        labels: word that stands for each option, `("A", "B", ...)` or `("true", "false")`.
        answer: index of the right option.
    """

    id: str
    question: str
    options: tuple[str, ...]
    labels: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hugging Face hub that loads without running code of its own.

    Attributes:
        path: id of the repository, `owner/name`.
        config: name of the configuration (subset); None where the data set has one only.
        revision: full commit hash; None where we know none, and then the newest commit is used.
    """

    path: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class LmEvalTask:
    """The same data set in lm-evaluation-harness (lm-eval).

    lm-eval reads rows by Jinja expressions over their columns. The three below must say the same
    as `Task.parse`; `tests/test_lm_eval.py` compares them row by row.

    Attributes:
        name: name that lm-eval's own task for this data set has, for example `arc_easy`.
        question: Jinja template of `Example.question`.
        options: Jinja expression of the list of the options' texts; spaces at their ends do not
            matter.
        answer: Jinja expression of the right option's index.
    """

    name: str
    question: str
    options: str
    answer: str


@dataclass(frozen=True)
class Task:
    """A data set and how it is asked.

    Attributes:
        name: name on the command line and in `reported.csv`, for example `arc-e`.
        title: name in printed tables, for example `ARC-e`.
        hub: place of the data set on the Hugging Face hub.
        directory: name of its folder in a local data directory.
        train_split: name of the split that models are trained on.
        eval_split: name of the split that is scored.
        columns: each column that is read, and what must stand there, in words for error messages.
        instruction: first line of its prompts, one sentence.
        parse: function that turns a row (a dict from column to value) and the id to use where the
            data set has none into an `Example`; raises `fields.RowError`, which names the column
            that is missing or wrong.
        lm_eval: its name and columns in lm-evaluation-harness.
        lettered: whether the options are listed under letters; False where the labels are the
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
    lm_eval: LmEvalTask
    lettered: bool = True
