"""A table that is computed when it is asked for: it has no cells to run and nothing to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .options import General, Option, options_of
from .rendering.rendered import Rendered
from .run import processes


@dataclass(frozen=True)
class ComputedTable:
    """One such table; it is its own plan.

    Attributes:
        name: As on the command line.
        lines: What it computes, one a line.
        render: Computes it.
    """

    name: str
    lines: Callable[[], list[str]]
    render: Callable[[], Rendered]

    def options(self) -> list[Option]:
        """The options of the command line that this table has: none of its own."""
        return options_of(General)

    def plan(self, given: Mapping[str, Any]) -> ComputedTable:
        """Itself: nothing about it can be chosen.

        Raises:
            ValueError: This is one of several processes.
        """
        processes.one_only(f"table {self.name}")
        return self

    def listing(self) -> list[str]:
        """What it computes, one a line."""
        return self.lines()

    def run(self, fresh: bool) -> Rendered:
        """The table."""
        return self.render()

    def stored(self) -> Rendered:
        """The table, computed all the same."""
        return self.render()
