"""How values and exceptions from outside are written in error messages: on one line, and short."""

from __future__ import annotations

from typing import Any


def short_repr(value: Any, longest: int = 60) -> str:
    """Returns `value` as it looks in source, on one line and cut to `longest` characters."""
    try:
        text = repr(value)
    # Python writes neither lists nested thousands deep nor integers of thousands of digits.
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.splitlines())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def first_line(error: BaseException, longest: int = 200) -> str:
    """Returns the first line of an exception's message, or its type where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:longest] if lines else type(error).__name__
