"""A table that is computed when it is asked for: it has no cells to run and nothing to store."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from harness.run import processes
from harness.tables.show.data import Rendered


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

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """It has none of its own."""

    def plan(self, options: argparse.Namespace) -> ComputedTable:
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
