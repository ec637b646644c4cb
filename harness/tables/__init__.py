"""The tables: each is one module of this package that defines `TABLE`, found by being there."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from typing import Protocol

from tasks.names import choose

from .show.data import TableData


class Plan(Protocol):
    """A table as one command asks for it."""

    def listing(self) -> list[str]:
        """Its cells, one a line; nothing is run."""

    def run(self, fresh: bool) -> TableData:
        """Run the cells that have no record, or all if fresh, and render.

        Raises:
            ValueError: A user's mistake; nothing has been run then.
        """

    def stored(self) -> TableData:
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


def table_names() -> tuple[str, ...]:
    """The names of all tables: the modules of this package, not its packages."""
    found = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return tuple(name.replace("_", "-") for name in found)


def get_table(name: str) -> Table:
    """The table of that name.

    Raises:
        ValueError: There is none; the message suggests near names.
    """
    module = choose("table", name, table_names()).replace("-", "_")
    return importlib.import_module(f"{__name__}.{module}").TABLE
