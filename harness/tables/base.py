"""What a table is to the command line, whatever fills it."""

from __future__ import annotations

import argparse
from typing import Protocol

from harness.rendering.rendered import Rendered


class Plan(Protocol):
    """A table as one command asks for it."""

    def listing(self) -> list[str]:
        """Its cells, one a line; nothing is run."""

    def run(self, fresh: bool) -> Rendered:
        """Run the cells that have no record, or all if fresh, and render.

        Raises:
            ValueError: A user's mistake; nothing has been run then.
        """

    def stored(self) -> Rendered:
        """Render what is stored; nothing is run.

        Raises:
            ValueError: A stored record cannot be read.
        """


class Table(Protocol):
    """One table, chosen by name on the command line."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that this table has beside those of all tables."""

    def plan(self, options: argparse.Namespace) -> Plan:
        """What a command line asks of this table.

        Raises:
            ValueError: A name is unknown, a number out of range, or the device not there.
        """
