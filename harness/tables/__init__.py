"""The tables, one file each; adding a table is adding a file that defines `TABLE`."""

from __future__ import annotations

import importlib
import pkgutil

from tasks.names import choose

from .base import Plan, Table


def table_names() -> tuple[str, ...]:
    """Names of all tables."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(name.replace("_", "-") for name in modules if name != "base")


def get_table(name: str) -> Table:
    """The table of that name.

    Raises:
        ValueError: There is none; the message suggests near names.
    """
    module = choose("table", name, table_names()).replace("-", "_")
    return importlib.import_module(f"{__name__}.{module}").TABLE


__all__ = ["Plan", "Table", "get_table", "table_names"]
