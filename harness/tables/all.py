"""Every table of the paper, one after the other, with one preset.

`scaling` is not among them: it is no table of the paper's, and takes longer than most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cells.spec import RunOptions
from harness.options import General, Option, options_of
from harness.request import Request
from harness.show.data import COMPUTED, Block, Cell, TableData, number
from harness.tables import Plan, get_table

logger = logging.getLogger(__name__)

#: What costs nothing comes first.
TABLES = (
    "audit",
    "params",
    "main",
    "multi",
    "rank",
    "router-loss",
    "expert-load",
    "quirks",
    "efficiency",
)


@dataclass(frozen=True)
class _AllTables:
    name: str = "all"

    def options(self) -> list[Option]:
        """The options of the tables of accuracies, but for those in which the tables differ."""
        own = ("methods", "tasks", "settings", "verify")
        return [*options_of(Request, without=own), *options_of(RunOptions), *options_of(General)]

    def plan(self, given: Mapping[str, Any]) -> _AllPlan:
        """The plans of all tables.

        Raises:
            ValueError: One of them has a mistake.
        """
        plans: list[tuple[str, Plan]] = []
        for name in TABLES:
            asked = get_table(name)
            if name == "efficiency":
                for own in Request.of(given).preset_settings.efficiency:
                    title = f"{name} --shape {own['shape']}"
                    plans.append((title, asked.plan({**given, **own})))
            else:
                plans.append((name, asked.plan(given)))
        return _AllPlan(plans, General.make(given).output)


@dataclass(frozen=True)
class _AllPlan:
    """All tables as one command asks for them.

    Attributes:
        plans: (name of the table in messages, its plan) of every table.
        output: folder that each table is written to as soon as it is made.
    """

    plans: list[tuple[str, Plan]]
    output: Path

    def listing(self) -> list[str]:
        """The cells of every table; some are in several."""
        lines = []
        for name, plan in self.plans:
            lines += [f"# {name}", *plan.listing(), ""]
        return lines

    def run(self, fresh: bool) -> TableData:
        """Run what has no record, or all if fresh, table by table.

        Raises:
            ValueError: A table's inputs cannot be used; the tables before it are written.
        """
        return self._written(lambda plan: plan.run(fresh))

    def stored(self) -> TableData:
        """Render what is stored.

        Raises:
            ValueError: A stored record cannot be read.
        """
        return self._written(lambda plan: plan.stored())

    def _written(self, made_by: Callable[[Plan], TableData]) -> TableData:
        rows: list[dict[str, Any]] = []
        parts: list[Block] = []
        for position, (name, plan) in enumerate(self.plans, start=1):
            logger.info("table %d/%d: %s", position, len(self.plans), name)
            table = made_by(plan)
            table.write(self.output)
            sources = [row.get("source") for row in table.numbers]
            rows.append(
                {
                    "table": table.name,
                    "measured": sources.count("measured"),
                    "reported": sources.count("reported"),
                    "cells failed": table.failed,
                }
            )
            parts += [Block(table.title, level=1), *table.sections]
        overview = Block(
            head=list(rows[0]),
            rows=[
                [Cell(name), *(number(count, "d", COMPUTED) for count in counts)]
                for name, *counts in map(dict.values, rows)
            ],
        )
        return TableData(
            name="all",
            title="All tables, and how many numbers each has",
            blocks=[overview],
            numbers=rows,
            provenance={"tables": [row["table"] for row in rows]},
            appendix=parts,
            failed=sum(row["cells failed"] for row in rows),
        )


TABLE = _AllTables()
