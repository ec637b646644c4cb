"""Looking up a name that the user typed: it is known, or an error suggests similar ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tasks.messages import short_repr


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns `name` if it is among the known names.

    Args:
        kind: what the name is of, for the message, for example "task".
        name: name that the user typed.
        known: all allowed names.

    Raises:
        ValueError: `name` is not among them. The message is one line with what was typed, the
            most similar known names and all allowed names.
    """
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(f"unknown {kind} {short_repr(name, 80)}{hint}; known: {', '.join(names)}")
