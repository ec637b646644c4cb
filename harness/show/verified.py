"""What ``--verify`` found, as a table: which stored cells came out the same when run again."""

from __future__ import annotations

from collections.abc import Sequence

from harness.store.outcome import Verified

from .data import Block, Cell, TableData

#: How many of a record's differences are shown.
_SHOWN = 3


def render_verified(name: str, results: Sequence[Verified]) -> TableData:
    """The results of `harness.schedule.verify.verify` as a table.

    Args:
        name: the name of the table that the cells belong to.
        results: one for each cell that was run again.
    """
    numbers, rows = [], []
    for result in results:
        record, differences = result.record, "; ".join(_shown(result.differences))
        numbers.append(
            {
                "id": record.id,
                "cell": record.spec.title,
                "same": not differences,
                "differences": differences,
                "made otherwise": "; ".join(_shown(result.made_otherwise)),
            }
        )
        end = f"differs: {differences}" if differences else "same"
        rows.append([Cell(record.spec.title), Cell(record.id), Cell(end)])
    notes = [
        "same: every prediction, loss and count equals the stored one, bit for bit",
        *(
            f"{row['cell']} was made otherwise: {row['made otherwise']}"
            for row in numbers
            if row["made otherwise"]
        ),
    ]
    differ = sum(not row["same"] for row in numbers)
    return TableData(
        name=f"verify-{name}",
        title=f"Verified: {len(results) - differ} of {len(results)} stored cells give the same",
        blocks=[Block(head=["cell", "record", "run again"], rows=rows), Block(notes=notes)],
        numbers=numbers,
        provenance={"table": name, "verified": len(results), "differ": differ},
        failed=differ,
    )


def _shown(differences: Sequence[str]) -> list[str]:
    more = len(differences) - _SHOWN
    return [*differences[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
