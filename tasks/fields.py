"""Checked reading of single fields of a data set's row, for the files of `tasks/definitions/`.

Each function returns a clean value or raises `RowError`, which carries the name of the column. The
source that has read the row adds the file, the row's number and what the task expects there.
"""

from __future__ import annotations

import string
from typing import Any

from tasks.messages import short_repr


class RowError(ValueError):
    """A field of a row is missing, or its value is none that the task can use.

    Attributes:
        column: name of the column.
        problem: what is wrong with the field, for example `missing` or `got 7`.
    """

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"column {column}: {problem}")
        self.column = column
        self.problem = problem


def _field(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise RowError(column, "missing")
    return row[column]


def _clean(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError(column, f"got {short_repr(value)}")
    # The files of one data set differ in the spaces at the ends of a text (PIQA's train and
    # validation files do), and the prompt puts its own space before an option.
    text = value.strip()
    # JSON can hold half of a surrogate pair, but that cannot be tokenised, hashed or written.
    if not text or any("\ud800" <= character <= "\udfff" for character in text):
        raise RowError(column, f"got {short_repr(value)}")
    return text


def _clean_list(value: Any, column: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not 2 <= len(value) <= len(string.ascii_uppercase):
        raise RowError(column, f"got {short_repr(value)}")
    return tuple(_clean(item, column) for item in value)


def read_text(row: dict[str, Any], column: str) -> str:
    """Returns a non-empty text, without whitespace at its ends."""
    return _clean(_field(row, column), column)


def read_texts(row: dict[str, Any], column: str) -> tuple[str, ...]:
    """Returns a list of 2 to 26 non-empty texts, without whitespace at their ends."""
    return _clean_list(_field(row, column), column)


def read_bool(row: dict[str, Any], column: str) -> bool:
    """Returns a boolean; neither numbers nor words count as one."""
    value = _field(row, column)
    if not isinstance(value, bool):
        raise RowError(column, f"got {short_repr(value)}")
    return value


def read_index(row: dict[str, Any], column: str, first: int, count: int) -> int:
    """Returns the index, counted from 0, of an answer that the data set counts from `first`.

    The number may be an integer or a text of its digits: copies of one data set differ in this.

    Args:
        row: the row, a dict from column to value.
        column: name of the column.
        first: number that the data set gives to the first option.
        count: number of options.
    """
    value = _field(row, column)
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        for index in range(count):
            if str(value).strip() == str(first + index):
                return index
    raise RowError(column, f"got {short_repr(value)}")


def read_choices(row: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Returns the options and the index of the answer of a row with the columns of ARC.

    The row's own labels serve to find the answer and nothing else. Some rows of ARC label their
    choices 1 to 4, and in the vocabularies of Llama and Gemma " 1" is two tokens, of which all
    digits share the first (the space), so that label scoring could not tell them apart. Prompts
    therefore letter the options of every row by their position.
    """
    choices = _field(row, "choices")
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise RowError("choices", f"got {short_repr(choices)}")
    options = _clean_list(choices["text"], "choices")
    labels = _clean_list(choices["label"], "choices")
    if len(options) != len(labels) or len(set(labels)) != len(labels):
        raise RowError("choices", f"got {len(options)} texts and the labels {short_repr(labels)}")
    key = read_text(row, "answerKey")
    if key not in labels:
        raise RowError("answerKey", f"got {short_repr(key)}, the labels are {short_repr(labels)}")
    return options, labels.index(key)


def letters(count: int) -> tuple[str, ...]:
    """Returns the labels of `count` options: ("A", "B", ...)."""
    return tuple(string.ascii_uppercase[:count])
