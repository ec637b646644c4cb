"""Who a number comes from, as the Markdown of a table says it: the words for it, and their meaning.

A file of numbers is measured here or computed here (`Rendered`'s rows have a source or have none).
What the paper reports in it is marked by these words and by nothing else; tables write them and the
report (`harness.report`) reads them, both from here.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Measured or computed by this project, reported by the paper, or a difference of both.
MEASURED, COMPUTED, REPORTED, COMPARED = "measured", "computed", "reported", "compared"

#: A heading that begins so: all of its tables are reported.
REPORTED_BLOCK = "Reported by the paper"

#: In a heading: what its tables have in brackets at a cell's end is reported.
IN_BRACKETS = "in brackets the paper's"

#: A cell that is just this: its row is reported.
PAPER_ROW = "paper"

#: A cell that is just this: its row is a difference of a measured and a reported number.
MINUS_PAPER_ROW = "measured - paper"

#: A cell that ends so: its row is reported.
NOT_MEASURED = "reported, not measured here"

#: A column that is called so, perhaps with a unit after a comma: its cells are reported.
PRINTED = "printed"


def of_row(cells: Sequence[str]) -> str | None:
    """The source that a row's cells state; None where they state none."""
    if MINUS_PAPER_ROW in cells:
        return COMPARED
    if PAPER_ROW in cells or any(cell.endswith(NOT_MEASURED) for cell in cells):
        return REPORTED
    return None


def of_column(heading: str) -> str | None:
    """The source that a column's heading states; None where it states none."""
    return REPORTED if heading.partition(",")[0] == PRINTED else None
