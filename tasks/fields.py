"""Checked reading of one field of a data set's row, shared by the files of `tasks/definitions/`.

Each reader returns a clean value or raises `RowError`, which carries the column's name; the source
that read the row adds file, row number and what the task expects in that column.
"""

from __future__ import annotations

import string
from typing import Any


class RowError(ValueError):
    """A field of a row is missing or has a value that the task cannot use.

    Attributes:
        column: Name of the column.
        problem: What is wrong with it, e.g. `missing` or `got 7`.
    """

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"column {column}: {problem}")
        self.column = column
        self.problem = problem


def show(value: Any) -> str:
    """Returns `value` as it looks in source, on one line and cut to 60 characters."""
    try:
        text = repr(value)
    # Lists in lists, as deep as JSON can just still hold them.
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _field(row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise RowError(column, "missing")
    return row[column]


def _clean(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError(column, f"got {show(value)}")
    # Copies of one data set differ in the spaces at the ends of a text (PIQA's train and validation
    # do), and the prompt puts its own space before an option.
    text = value.strip()
    # A lone surrogate passes json.loads but cannot be tokenised, hashed or written.
    if not text or any("\ud800" <= character <= "\udfff" for character in text):
        raise RowError(column, f"got {show(value)}")
    return text


def read_text(row: dict[str, Any], column: str) -> str:
    """Returns a non-empty text without whitespace at its ends."""
    return _clean(_field(row, column), column)


def read_bool(row: dict[str, Any], column: str) -> bool:
    """Returns a boolean; numbers and words do not count as one."""
    value = _field(row, column)
    if not isinstance(value, bool):
        raise RowError(column, f"got {show(value)}")
    return value


def read_texts(row: dict[str, Any], column: str) -> tuple[str, ...]:
    """Returns a list of two or more non-empty texts."""
    return _clean_list(_field(row, column), column)


def _clean_list(value: Any, column: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not 2 <= len(value) <= len(string.ascii_uppercase):
        raise RowError(column, f"got {show(value)}")
    return tuple(_clean(item, column) for item in value)


def read_index(row: dict[str, Any], column: str, first: int, count: int) -> int:
    """Returns the index, from 0, of an answer that the data set counts from `first`.

    Copies of one data set hold the number as an integer or as its digits; both are read.
    """
    value = _field(row, column)
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        for index in range(count):
            if str(value).strip() == str(first + index):
                return index
    raise RowError(column, f"got {show(value)}")


def read_choices(row: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Returns the options and the answer's index of a row in ARC's columns (choices, answerKey).

    The labels only serve to find the answer: some ARC rows label their choices 1 to 4, and in the
    vocabularies of Llama and Gemma " 1" is two tokens, the first of which (the space) all digits
    share, so that it cannot tell them apart. The prompt therefore letters every row by position.
    """
    choices = _field(row, "choices")
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise RowError("choices", f"got {show(choices)}")
    options = _clean_list(choices["text"], "choices")
    labels = _clean_list(choices["label"], "choices")
    if len(options) != len(labels) or len(set(labels)) != len(labels):
        raise RowError("choices", f"got {len(options)} texts and the labels {show(labels)}")
    key = read_text(row, "answerKey")
    if key not in labels:
        raise RowError("answerKey", f"got {show(key)}, the labels are {show(labels)}")
    return options, labels.index(key)


def letters(count: int) -> tuple[str, ...]:
    """Returns the labels of `count` options: ("A", "B", ...)."""
    return tuple(string.ascii_uppercase[:count])
