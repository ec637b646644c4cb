"""The effect of each quirk of the released code on accuracy, one at a time and all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from harness.accuracy import AccuracyTable
from harness.cells.quirks import QUIRKS
from harness.cells.spec import RunSpec
from harness.request import Request, Setting, single_task
from harness.show.data import Block, TableData
from harness.store.records import RunRecord

# The name of this setting in reported.csv, so that the paper's numbers stand beside it.
_CLEAN = "st"


def _with(*quirks: str) -> Callable[[Request], list[RunSpec]]:
    """The cells that one of these quirks concerns; all other cells equal the clean ones."""

    def cells(request: Request) -> list[RunSpec]:
        if request.quirks:
            raise ValueError(
                f"quirk {', '.join(request.quirks)}: the table has the quirks for rows; choose "
                "rows with --settings"
            )
        return [cell for cell in single_task(quirks=quirks)(request) if cell.quirks]

    return cells


def _explained(table: TableData, records: Mapping[str, Sequence[RunRecord]]) -> TableData:
    """The table with an explanation of its rows below it."""
    lines = [f"{quirk.name} ({quirk.needs}): {quirk.effect}" for quirk in QUIRKS.values()]
    cut = {
        record.spec.eval_tasks[0]: record.training["truncated"]
        for record in records.get("truncate-answer", ())
    }
    if cut:
        counts = ", ".join(f"{task} {count}" for task, count in cut.items())
        lines.append(f"training rows that truncate-answer cut: {counts}")
    block = Block("The quirks, and which cells each concerns", notes=lines)
    return dataclasses.replace(table, appendix=[block])


TABLE = AccuracyTable(
    name="quirks",
    title="Accuracy with the quirks of the released code",
    paper_tables=("1",),
    settings=(
        Setting(_CLEAN, "clean", single_task()),
        *(Setting(name, name, _with(name)) for name in QUIRKS),
        Setting("upstream", "all of them", _with(*QUIRKS)),
    ),
    main=_CLEAN,
    methods=("lora", "dora", "mixlora", "mixdora"),
    tasks=("arc-e", "arc-c", "boolq", "obqa"),
    finish=_explained,
)
