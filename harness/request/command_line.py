"""Names and numbers of the command line: read, checked, and written again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from tasks.names import choose


def chosen(
    kind: str,
    names: Sequence[str] | None,
    known: Sequence[str],
    default: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """The names asked for, in the order of the known ones, each once."""
    if names is None:
        return tuple(known if default is None else default)
    wanted = {choose(kind, name, known) for name in names}
    if not wanted:
        raise ValueError(f"no {kind} given; known: {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def name_list(text: str) -> list[str]:
    """An option's comma-separated names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def number_list(text: str) -> list[int]:
    """An option's comma-separated whole numbers."""
    return [int(number) for number in text.split(",")]


def command(name: str, **options: Any) -> str:
    """The command line that makes a table.

    Args:
        name: Of the table.
        options: In the command line's names; several values are joined by commas, True is an option
            without value, None and False are left out.
    """
    words = ["python", "reproduce.py", "--table", name]
    for option, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{option.replace('_', '-')}")
        if value is not True:
            words.append(
                ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            )
    return shlex.join(words)
