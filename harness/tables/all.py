"""Every table of the paper, one after the other, with one preset.

`scaling` is not among them: it is no table of the paper's, and takes longer than most.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.accuracy import AccuracyTable
from harness.cells.presets import get_preset
from harness.rendering.rendered import Rendered, table
from harness.request.options import add_cell_options
from harness.tables import Plan, Table, get_table

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

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Those of the tables of accuracies, but for what differs between them."""
        add_cell_options(parser)

    def plan(self, options: argparse.Namespace) -> _AllPlan:
        """The plans of all tables.

        Raises:
            ValueError: As theirs.
        """
        plans: list[tuple[str, Plan]] = []
        for name in TABLES:
            asked = get_table(name)
            if isinstance(asked, AccuracyTable):
                own = _with(options, methods=None, tasks=None, settings=None, verify=None)
                plans.append((name, asked.plan(own)))
            elif name == "efficiency":
                for arguments in get_preset(options.preset).efficiency:
                    own = _with(options, **vars(_parsed(asked, arguments)))
                    plans.append((" ".join((name, *arguments[:2])), asked.plan(own)))
            else:
                plans.append((name, asked.plan(options)))
        return _AllPlan(plans, options.output)


def _with(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**vars(options) | changes)


def _parsed(asked: Table, arguments: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    asked.add_options(parser)
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class _AllPlan:
    """All tables as one command asks for them.

    Attributes:
        plans: (What the table is called, its plan).
        output: Where each table is written as soon as it is there.
    """

    plans: list[tuple[str, Plan]]
    output: Path

    def listing(self) -> list[str]:
        """The cells of every table; some are in several."""
        lines = []
        for name, plan in self.plans:
            lines += [f"# {name}", *plan.listing(), ""]
        return lines

    def run(self, fresh: bool) -> Rendered:
        """Run what has no record, or all if fresh, table by table.

        Raises:
            ValueError: A table's inputs cannot be used; the tables before it are written.
        """
        return self._written(lambda plan: plan.run(fresh))

    def stored(self) -> Rendered:
        """Render what is stored.

        Raises:
            ValueError: A stored record cannot be read.
        """
        return self._written(lambda plan: plan.stored())

    def _written(self, rendered_of: Callable[[Plan], Rendered]) -> Rendered:
        rows: list[dict[str, Any]] = []
        parts, failed = [], 0
        for number, (name, plan) in enumerate(self.plans, start=1):
            logger.info("table %d/%d: %s", number, len(self.plans), name)
            rendered = rendered_of(plan)
            rendered.write(self.output)
            sources = [row.get("source") for row in rendered.rows]
            rows.append(
                {
                    "table": rendered.name,
                    "measured": sources.count("measured"),
                    "reported": sources.count("reported"),
                    "cells failed": rendered.failed,
                }
            )
            parts.append(rendered.markdown)
            failed += rendered.failed
        head = list(rows[0])
        overview = table(head, [[str(value) for value in row.values()] for row in rows])
        title = "# All tables, and how many numbers each has"
        markdown = "\n\n".join([title, overview, *parts])
        return Rendered(
            "all", markdown, rows, {"tables": [row["table"] for row in rows]}, {}, failed
        )


TABLE = _AllTables()
