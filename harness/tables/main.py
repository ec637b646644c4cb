"""Table 1: every method tuned and scored on one task at a time."""

from __future__ import annotations

from harness.accuracy import AccuracyTable
from harness.request import Setting, single_task

TABLE = AccuracyTable(
    name="main",
    title="Single-task accuracy",
    paper_tables=("1",),
    settings=(Setting("st", "", single_task()),),
    main="st",
)
