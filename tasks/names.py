"""One way to look up a name the user typed: exact, or an error that suggests near ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def choose(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is known.

    Raises:
        ValueError: One line: what was typed, the nearest known name, all allowed names.
    """
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    typed = repr(name)
    typed = typed if len(typed) <= 80 else f"{typed[:77]}..."
    raise ValueError(f"unknown {kind} {typed}{hint}; known: {', '.join(names)}")
