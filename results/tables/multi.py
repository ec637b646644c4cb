"""Tables 2 and 5: tuned on five tasks at once against one at a time, and what each task loses."""

from __future__ import annotations

from results.accuracy import AccuracyTable, Setting, single_task
from results.methods import BASE
from results.request import Request
from results.spec import RunSpec


def _multi_task(request: Request) -> list[RunSpec]:
    """One cell per model, method and seed, tuned on all tasks mixed; not of the untuned base."""
    return [
        request.cell(model, method, request.tasks, request.tasks, seed)
        for model in request.models
        for method in request.methods
        for seed in request.seeds
        if method != BASE
    ]


TABLE = AccuracyTable(
    name="multi",
    title="Multi-task against single-task accuracy",
    paper_tables=("2", "5"),
    settings=(
        Setting("st", "one task", single_task()),
        Setting("mt", "all tasks", _multi_task),
    ),
    main="st",
    tasks=("arc-e", "arc-c", "boolq", "obqa", "piqa"),
)
