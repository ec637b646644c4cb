"""Tables 2 and 5: tuned on five tasks at once against one at a time, and what each task loses."""

from __future__ import annotations

from harness.accuracy import AccuracyTable
from harness.request import Setting, all_tasks, single_task

TABLE = AccuracyTable(
    name="multi",
    title="Multi-task against single-task accuracy",
    paper_tables=("2", "5"),
    settings=(
        Setting("st", "one task", single_task()),
        Setting("mt", "all tasks", all_tasks()),
    ),
    main="st",
    tasks=("arc-e", "arc-c", "boolq", "obqa", "piqa"),
)
