"""A table that is computed when it is asked for: there are no cells to run and nothing to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.options import General, Option, options_of
from harness.run import processes
from harness.show.data import TableData


@dataclass(frozen=True)
class ComputedTable:
    """One such table, which is also its own plan.

    Attributes:
        name: name on the command line.
        lines: function that returns what the table computes, one text each.
        render: function that computes the table.
    """

    name: str
    lines: Callable[[], list[str]]
    render: Callable[[], TableData]

    def options(self) -> list[Option]:
        """The options of the command line that the table has: none of its own."""
        return options_of(General)

    def plan(self, given: Mapping[str, Any]) -> ComputedTable:
        """The table itself, because nothing about it can be chosen.

        Raises:
            ValueError: This is one of several processes.
        """
        processes.one_only(f"table {self.name}")
        return self

    def listing(self) -> list[str]:
        """What it computes, one text each."""
        return self.lines()

    def run(self, fresh: bool) -> TableData:
        """The table."""
        return self.render()

    def stored(self) -> TableData:
        """The table; it is computed here too, because nothing is stored."""
        return self.render()
