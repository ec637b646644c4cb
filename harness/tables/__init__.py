"""The tables: each is one module of this package that defines `TABLE`, found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol

from harness.options import Option
from harness.show.data import TableData
from tasks.names import choose


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
        """Name on the command line."""

    def options(self) -> list[Option]:
        """The options that it has, those of every table among them."""

    def plan(self, given: Mapping[str, Any]) -> Plan:
        """The table that given options ask for.

        Args:
            given: name of an option's field -> value, of the options that were given.

        Raises:
            ValueError: A name is unknown, a number out of range, or the device not there.
        """


def table_names() -> tuple[str, ...]:
    """The names of all tables."""
    return tuple(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def get_table(name: str) -> Table:
    """The table of that name.

    Raises:
        ValueError: There is none; the message suggests near names.
    """
    module = choose("table", name, table_names()).replace("-", "_")
    return importlib.import_module(f"{__name__}.{module}").TABLE
