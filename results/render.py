"""Renders an accuracy table: its blocks, its marks, what it is made of. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from tasks import get_task

from .compare import (
    AVERAGE,
    BASELINE,
    REPORTED_MAJORITY,
    REPORTED_TOLERANCE,
    metrics_of,
)
from .executor import Outcome
from .methods import METHOD_TITLES
from .rendered import (
    DASH,
    Rendered,
    bullets,
    distinct,
    long_rows,
    number,
    provenance_block,
    table,
)
from .request import Request
from .stats import COLLAPSED_SHARE

if TYPE_CHECKING:
    from .accuracy import AccuracyTable

COLLAPSED_MARK = "†"
_SIGNIFICANT = 0.05


def render(
    asked: AccuracyTable, request: Request, outcome: Outcome, frame: pd.DataFrame
) -> Rendered:
    """All forms of a table.

    Args:
        asked: Which table.
        request: What was asked for: its rows and columns, filled or not.
        outcome: What became of its cells.
        frame: `compare.compare`'s numbers.
    """
    provenance = _provenance(asked, request, outcome)
    grid = _Grid(frame, request)
    parts = [f"# {asked.title} (Table {asked.paper_table} of arXiv 2404.15159)"]
    for model in request.models:
        parts += _measured_block(grid, model)
    parts += _reported_block(grid)
    parts += _notes(request, outcome)
    parts += [provenance_block(provenance)]
    markdown = "\n\n".join(parts) + "\n"
    failed = len(outcome.failed)
    return Rendered(asked.name, markdown, long_rows(frame), provenance, failed=failed)


class _Grid:
    """Looks numbers up by (source, model, method, task, metric)."""

    def __init__(self, frame: pd.DataFrame, request: Request) -> None:
        self.request = request
        self._rows: dict[tuple[str, ...], Any] = {
            (row.source, row.model, row.method, row.task, row.metric): row
            for row in frame.itertuples(index=False)
        }
        reported = frame[frame["source"] == "reported"]
        self.reported_models = list(dict.fromkeys(reported["model"]))
        self.average = next((t for t in frame["task"] if t.startswith(AVERAGE)), AVERAGE)

    def value(self, *key: str) -> float | None:
        row = self._rows.get(key)
        return None if row is None else float(row.value)

    def stderr(self, *key: str) -> float | None:
        row = self._rows.get(key)
        return None if row is None or pd.isna(row.stderr) else float(row.stderr)

    @property
    def columns(self) -> list[str]:
        return [*self.request.tasks, self.average]

    @property
    def headings(self) -> list[str]:
        average = self.average.replace(AVERAGE, "AVG")
        return [get_task(name).title for name in self.request.tasks] + [average]


def _measured_block(grid: _Grid, model: str) -> list[str]:
    request = grid.request
    parts = [f"## {model}: measured, {request.scoring} scoring"]
    for metric in metrics_of(request.scoring):
        head = ["method", "parameters", "%", *grid.headings]
        rows = [_measured_row(grid, model, method, metric) for method in request.methods]
        levels = [
            number(grid.value("measured", model, "", task, "majority_class"))
            for task in grid.columns
        ]
        rows.append(["majority class", "", "", *levels])
        parts += [f"{metric} (%) ± standard error over examples", table(head, rows)]
        compared = [method for method in request.methods if method != BASELINE]
        if BASELINE in request.methods and compared:
            head = ["method", *(get_task(name).title for name in request.tasks)]
            rows = [_against_row(grid, model, method, metric) for method in compared]
            parts += [
                f"{metric}, points above LoRA on the same examples (p of a paired test)",
                table(head, rows),
            ]
    if model in grid.reported_models and request.scoring == "label":
        parts += [f"### {model}: the paper, and measured minus paper", _paper_table(grid, model)]
    return parts


def _measured_row(grid: _Grid, model: str, method: str, metric: str) -> list[str]:
    count = grid.value("measured", model, method, "", "trainable_parameters")
    percent = grid.value("measured", model, method, "", "params")
    row = [METHOD_TITLES[method], DASH if count is None else f"{count:,.0f}", number(percent, 2)]
    for task in grid.columns:
        key = ("measured", model, method, task)
        text = number(grid.value(*key, metric))
        stderr = grid.stderr(*key, metric)
        text += "" if stderr is None else f" ± {stderr:.1f}"
        row.append(text + (f" {COLLAPSED_MARK}" if grid.value(*key, f"{metric}_collapsed") else ""))
    return row


def _against_row(grid: _Grid, model: str, method: str, metric: str) -> list[str]:
    row = [METHOD_TITLES[method]]
    for task in grid.request.tasks:
        key = ("measured", model, method, task)
        points = grid.value(*key, f"{metric}_minus_{BASELINE}")
        p_value = grid.value(*key, f"{metric}_minus_{BASELINE}_p")
        if points is None or p_value is None:
            row.append(DASH)
            continue
        text = f"{points:+.1f} ({'<0.001' if p_value < 0.001 else f'{p_value:.3f}'})"
        row.append(f"**{text}**" if p_value < _SIGNIFICANT else text)
    return row


def _paper_table(grid: _Grid, model: str) -> str:
    rows = []
    for method in grid.request.methods:
        paper = [_reported_cell(grid, model, method, task) for task in grid.columns]
        params = number(grid.value("reported", model, method, "", "params"))
        rows.append([METHOD_TITLES[method], "paper", params, *paper])
        minus = [
            grid.value("measured", model, method, t, "accuracy_minus_paper") for t in grid.columns
        ]
        params_minus = grid.value("measured", model, method, "", "params_minus_paper")
        signed = [DASH if value is None else f"{value:+.1f}" for value in minus]
        rows.append(
            [
                "",
                "measured - paper",
                DASH if params_minus is None else f"{params_minus:+.2f}",
                *signed,
            ]
        )
    return table(["method", "", "%", *grid.headings], rows)


def _reported_block(grid: _Grid) -> list[str]:
    """The paper's numbers on models that were not run: a block of their own, nothing subtracted."""
    others = [model for model in grid.reported_models if model not in grid.request.models]
    if not others:
        return []
    columns = [*grid.request.tasks, AVERAGE]
    rows = []
    for model in others:
        for method, title in METHOD_TITLES.items():
            if grid.value("reported", model, method, "", "params") is None:
                continue
            params = number(grid.value("reported", model, method, "", "params"))
            cells = [_reported_cell(grid, model, method, task) for task in columns]
            rows.append([model, title, params, *cells])
    titles = [get_task(name).title for name in grid.request.tasks]
    return [
        "## Reported by the paper for other models (not measured here, not comparable)",
        table(["model", "method", "%", *titles, "AVG of 8"], rows),
    ]


def _reported_cell(grid: _Grid, model: str, method: str, task: str) -> str:
    value = grid.value("reported", model, method, task, "accuracy")
    level = REPORTED_MAJORITY.get(task)
    collapsed = value is not None and level is not None and abs(value - level) <= REPORTED_TOLERANCE
    return number(value) + (f" {COLLAPSED_MARK}" if collapsed else "")


def _notes(request: Request, outcome: Outcome) -> list[str]:
    levels = ", ".join(f"{name} {level} %" for name, level in REPORTED_MAJORITY.items())
    notes = [
        f"{COLLAPSED_MARK} collapsed: at least {100 * COLLAPSED_SHARE:.0f} % of the predictions "
        f"are one answer; for reported cells, accuracy within {REPORTED_TOLERANCE} of the "
        f"majority-class level ({levels})",
        f"bold: p < {_SIGNIFICANT} in a sign-flip test on the same examples, not corrected for the "
        "number of comparisons",
        f"{DASH} no number",
    ]
    notes += [f"unavailable: {spec.title}: {why}" for spec, why in outcome.unavailable.items()]
    notes += [f"failed: {spec.title}: {why}" for spec, why in outcome.failed.items()]
    return [bullets(notes)]


def _provenance(asked: AccuracyTable, request: Request, outcome: Outcome) -> dict[str, Any]:
    """What the measured numbers come from; a list where cells differ."""
    records = list(outcome.records.values())
    rows = {
        task: {
            "train": sorted(
                {r.training.get("rows", 0) for r in records if task in r.spec.train_tasks}
            ),
            "evaluation": sorted({len(r.tasks[task].answers) for r in records if task in r.tasks}),
        }
        for task in request.tasks
    }
    settings = [
        record.spec.to_json()["train"] for record in records if record.spec.train is not None
    ]
    adapters = {
        record.spec.method: dict(record.spec.adapter) for record in records if record.spec.adapter
    }
    facts: dict[str, Any] = {
        "table": asked.name,
        "preset": request.preset.name,
        "models": list(request.models),
        "weights": distinct(record.provenance["weights"] for record in records),
        "data": distinct(record.provenance["data"] for record in records),
        "rows": rows,
        "scoring": request.scoring,
        "seeds": list(request.seeds),
        "dtype": distinct(record.spec.dtype for record in records),
        "training": distinct(settings),
        "adapters": adapters,
        "commit": distinct(record.provenance["commit"] for record in records),
        "python": distinct(record.provenance["python"] for record in records),
        "versions": distinct(record.provenance["versions"] for record in records),
        "hardware": distinct(record.provenance["hardware"] for record in records),
        "seconds": round(sum(sum(record.seconds.values()) for record in records), 1),
        "cells": f"{len(records)} done, {len(outcome.failed)} failed, "
        f"{len(outcome.unavailable)} unavailable",
    }
    return facts
