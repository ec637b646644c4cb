"""What became of cells: the values that runs and look-ups hand to rendering."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..cells.spec import RunSpec
from .records import Failure, RunRecord


@dataclass
class Outcome:
    """What became of the cells of a table.

    Attributes:
        records: the record of every cell that is done.
        unavailable: the cells that cannot be run because their data is missing, each with the
            reason in one line.
        failed: the cells that failed, each with its failure.
        not_run: the cells without a record that belong to other shards.
        computed: the number of cells that were run now, rather than found done.
        skipped: the number of unusable rows that were left out, by "<task> <split>".
    """

    records: dict[RunSpec, RunRecord] = field(default_factory=dict)
    unavailable: dict[RunSpec, str] = field(default_factory=dict)
    failed: dict[RunSpec, Failure] = field(default_factory=dict)
    not_run: list[RunSpec] = field(default_factory=list)
    computed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verified:
    """The result of running a stored cell again.

    Attributes:
        record: the stored record.
        differences: each difference as "where: stored -> now", or how the cell failed; empty if the
            results are equal.
        made_otherwise: the differences in versions, hardware and code, which can explain others.
    """

    record: RunRecord
    differences: list[str]
    made_otherwise: list[str]
