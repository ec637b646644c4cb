"""What a table is: its cells, and where its reported numbers stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from results.request import Request
from results.spec import RunSpec


@dataclass(frozen=True)
class Table:
    """One table of the paper, measured beside reported.

    Attributes:
        name: As on the command line; also the name of its output files.
        title: Its heading.
        paper_table: Number of the paper's table it reproduces.
        setting: "st" (one task at a time) or "mt" in reported.csv.
        cells: The cells that fill it.
    """

    name: str
    title: str
    paper_table: str
    setting: str
    cells: Callable[[Request], list[RunSpec]]
