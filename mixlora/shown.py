"""How values and names from outside are written in messages: on one line, and not too long."""

from __future__ import annotations

from typing import Any

_LONGEST = 200


def one_line(text: object) -> str:
    """A message, such as an exception, with spaces for its line breaks."""
    return " ".join(str(text).splitlines())


def shown(value: Any) -> str:
    """A value as it looks in source, on one line of at most 200 characters."""
    try:
        text = repr(value)
    # Python writes no whole number of thousands of digits, and no list in lists without end.
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} too large to show"
    text = one_line(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def named(name: str) -> str:
    """A name as it is; as in source where it has other than printable characters, or is long."""
    return name if name.isprintable() and len(name) <= _LONGEST else shown(name)
