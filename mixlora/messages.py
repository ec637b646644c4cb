"""How values and names from outside are written in messages: on one line, and not too long."""

from __future__ import annotations

from typing import Any

_MAX_CHARACTERS = 200


def one_line(text: object) -> str:
    """A message, such as an exception, with spaces in place of its line breaks."""
    return " ".join(str(text).splitlines())


def short_repr(value: Any) -> str:
    """``repr(value)`` on one line of at most 200 characters."""
    try:
        text = repr(value)
    # Python refuses to print whole numbers of thousands of digits and endlessly nested lists.
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to show"
    text = one_line(text)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 3]}..."


def printable_name(name: str) -> str:
    """The name itself, or its `short_repr` if it is long or has characters that do not print."""
    return name if name.isprintable() and len(name) <= _MAX_CHARACTERS else short_repr(name)
