"""Table 1: every method tuned and scored on one task at a time."""

from __future__ import annotations

from results.accuracy import AccuracyTable
from results.methods import BASE
from results.request import Request
from results.spec import RunSpec


def cells(request: Request) -> list[RunSpec]:
    """One cell per model, method, task and seed; the untuned base knows no seeds."""
    return [
        request.cell(model, method, [task], [task], seed)
        for model in request.models
        for task in request.tasks
        for method in request.methods
        for seed in (request.seeds if method != BASE else request.seeds[:1])
    ]


TABLE = AccuracyTable(
    name="main",
    title="Single-task accuracy",
    paper_table="1",
    setting="st",
    cells=cells,
)
