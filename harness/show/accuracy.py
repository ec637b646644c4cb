"""An accuracy table as data: its blocks, its marks, its provenance. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from harness.cells.methods import BASE, METHOD_TITLES
from harness.cells.spec import OWN
from harness.numbers.comparison import (
    AVERAGE,
    BASELINE,
    MAIN,
    REPORTED_MAJORITY,
    REPORTED_TOLERANCE,
    metrics_of,
)
from harness.numbers.statistics import COLLAPSED_SHARE
from harness.options import command
from harness.paper.reported import place_of
from harness.request import Request, TableLayout
from harness.store.outcome import Outcome
from harness.store.records import RunRecord
from tasks import get_task

from .data import (
    COLLAPSED_SIGN,
    COMPARED,
    DASH,
    MEASURED,
    REPORTED,
    Block,
    Cell,
    TableData,
    distinct,
    long_rows,
    number,
)

#: The mark of a cell that belongs to another shard and is not done.
NOT_RUN = "not run"

#: A difference is marked as significant if its p-value, adjusted by Holm's method, is below this.
_SIGNIFICANT = 0.05


def render(
    asked: TableLayout,
    request: Request,
    lines: Collection[tuple[str, str]],
    outcome: Outcome,
    frame: pd.DataFrame,
    statuses: Mapping[tuple[str, ...], str] = MappingProxyType({}),
) -> TableData:
    """An accuracy table from its numbers.

    Args:
        asked: the table: its title, settings and the paper's tables that it reproduces.
        request: what the user asked for: the rows and columns, whether they are filled or not.
        lines: the pairs of method and setting that have cells.
        outcome: what became of the cells.
        frame: the numbers, from `harness.numbers.comparison.compare`.
        statuses: for each cell that failed or was left to another shard, "failed", "OOM" or
            "not run", by (model, method, setting, task).
    """
    grid = _Grid(frame, asked, request, lines, statuses)
    places = " and ".join(map(place_of, asked.paper_tables))
    blocks = [block for model in request.models for block in _measured_blocks(grid, model)]
    blocks += _reported_blocks(grid)
    blocks += [Block(notes=_notes(request, outcome))]
    return TableData(
        name=asked.name,
        title=f"{asked.title} ({places} of arXiv 2404.15159)",
        blocks=blocks,
        numbers=long_rows(frame),
        provenance=_provenance(asked, request, outcome),
        failed=len(outcome.failed),
    )


@dataclass(frozen=True)
class _Line:
    """One row of a block: a method in a setting."""

    method: str
    setting: str
    title: str


class _Grid:
    """Looks the numbers up by (source, model, method, setting, task, metric).

    Args:
        frame: the numbers, from `harness.numbers.comparison.compare`.
        asked: the table.
        request: what the user asked for.
        asked_lines: the pairs of method and setting that have cells.
        statuses: why a cell has no number, by (model, method, setting, task).
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        asked: TableLayout,
        request: Request,
        asked_lines: Collection[tuple[str, str]],
        statuses: Mapping[tuple[str, ...], str],
    ) -> None:
        self.asked = asked
        self.statuses = statuses
        self.request = request
        self.settings = [(setting.name, setting.title) for setting in asked.settings]
        self._rows: dict[tuple[str, ...], Any] = {
            (row.source, row.model, row.method, row.setting, row.task, row.metric): row
            for row in frame.itertuples(index=False)
        }
        self.average = next((t for t in frame["task"] if t.startswith(AVERAGE)), AVERAGE)
        self.columns = [*request.tasks, self.average]
        self.headings = [
            *(get_task(name).title for name in request.tasks),
            self.average.replace(AVERAGE, "AVG"),
        ]
        self.lines = [
            line
            for line in _lines(self.settings, request.methods)
            if (line.method, line.setting) in asked_lines
        ]
        # Keys of the accuracies that the paper reports, in its order.
        self.reported = [key for key in self._rows if key[0] == REPORTED and key[-1] == "accuracy"]

    def value(self, *key: str) -> float | None:
        row = self._rows.get(key)
        return None if row is None else float(row.value)

    def stderr(self, *key: str) -> float | None:
        row = self._rows.get(key)
        return None if row is None or pd.isna(row.stderr) else float(row.stderr)


def _lines(settings: Sequence[tuple[str, str]], methods: Sequence[str]) -> list[_Line]:
    """A line for each method in each (setting, its title); the untuned base has only one."""
    return [
        _Line(method, name, ", ".join(filter(None, [METHOD_TITLES[method], title])))
        for method in methods
        for name, title in (settings if method != BASE else settings[:1])
    ]


def _measured_blocks(grid: _Grid, model: str) -> list[Block]:
    request, main = grid.request, grid.asked.main
    quirks = f", with {', '.join(request.quirks)}" if request.quirks else ""
    bits = f", {request.quantize} base" if request.quantize else ""
    by = "" if request.evaluator == OWN else f" by {request.evaluator}"
    heading = f"{model}: measured, {request.scoring} scoring{by}{bits}{quirks}"
    blocks: list[Block] = []
    for metric in metrics_of(request.scoring, request.evaluator):
        rows = [_measured_row(grid, model, line, metric) for line in grid.lines]
        levels = [
            number(grid.value(MEASURED, model, "", main, task, "majority_class"), ".1f", MEASURED)
            for task in grid.columns
        ]
        rows.append([Cell("majority class"), Cell(), Cell(), *levels])
        text = f"{metric} (%) ± standard error over examples"
        head = ["method", "parameters", "%", *grid.headings]
        blocks.append(Block("" if blocks else heading, text=text, head=head, rows=rows))
        compared = [line for line in grid.lines if line.method != BASELINE]
        if BASELINE in request.methods and compared:
            text = f"{metric}, points above LoRA on the same examples (p of a paired test)"
            blocks.append(_differences(grid, model, compared, f"{metric}_minus_{BASELINE}", text))
        others = [line for line in grid.lines if line.setting != main]
        if others:
            title = dict(grid.settings)[main]
            text = f"{metric}, points above the same method with {title}, likewise"
            blocks.append(_differences(grid, model, others, f"{metric}_minus_{MAIN}", text))
    comparable = request.scoring == "label" and request.evaluator == OWN
    if comparable and any(key[1] == model for key in grid.reported):
        blocks.append(_paper_block(grid, model))
    return blocks


def _measured_row(grid: _Grid, model: str, line: _Line, metric: str) -> list[Cell]:
    place = (model, line.method, line.setting)
    return [
        Cell(line.title),
        number(grid.value(MEASURED, *place, "", "trainable_parameters"), ",.0f", MEASURED),
        number(grid.value(MEASURED, *place, "", "params"), ".2f", MEASURED),
        *(_accuracy(grid, (*place, task), metric) for task in grid.columns),
    ]


def _accuracy(grid: _Grid, place: tuple[str, ...], metric: str) -> Cell:
    key = (MEASURED, *place)
    value = grid.value(*key, metric)
    if value is None:
        status = grid.statuses.get(place, "")
        return Cell(status or DASH, mark=status, source=MEASURED)
    text, error = f"{value:.1f}", {}
    stderr, spread = grid.stderr(*key, metric), grid.value(*key, f"{metric}_seed_std")
    if stderr is not None:
        text += f" ± {stderr:.1f}"
        error["stderr"] = stderr
    if spread is not None:
        text += f" (s {spread:.1f})"
        error["seed_std"] = spread
    mark = "collapsed" if grid.value(*key, f"{metric}_collapsed") else ""
    return Cell(text, value, error, mark, MEASURED)


def _differences(grid: _Grid, model: str, lines: list[_Line], metric: str, text: str) -> Block:
    """Differences with their p-values, and their mean in a last column if one of them has one."""
    rows = [
        [
            _difference(grid, (MEASURED, model, line.method, line.setting, task), metric)
            for task in grid.columns
        ]
        for line in lines
    ]
    if all(row[-1].missing for row in rows):
        rows = [row[:-1] for row in rows]
    return Block(
        text=text,
        head=["method", *grid.headings][: 1 + len(rows[0])],
        rows=[[Cell(line.title), *row] for line, row in zip(lines, rows, strict=True)],
    )


def _difference(grid: _Grid, key: tuple[str, ...], metric: str) -> Cell:
    points, p, adjusted = (grid.value(*key, f"{metric}{end}") for end in ("", "_p", "_p_holm"))
    if points is None or p is None or adjusted is None:
        return number(points, "+.1f", MEASURED)
    text = f"{points:+.1f} ({'<0.001' if p < 0.001 else f'{p:.3f}'})"
    mark = "significant" if adjusted < _SIGNIFICANT else ""
    return Cell(text, points, {"p": p, "p_holm": adjusted}, mark, MEASURED)


def _paper_block(grid: _Grid, model: str) -> Block:
    """The paper's numbers for a model that was run, each line above what ours is beyond it."""
    rows = []
    for line in grid.lines:
        place = (model, line.method, line.setting)
        ours = [
            number(grid.value(MEASURED, *place, "", "params_minus_paper"), "+.2f", COMPARED),
            *(
                number(grid.value(MEASURED, *place, task, "accuracy_minus_paper"), "+.1f", COMPARED)
                for task in grid.columns
            ),
        ]
        rows += [
            [Cell(line.title), Cell("paper"), *_reported_cells(grid, place, grid.columns)],
            [Cell(), Cell("measured - paper"), *ours],
        ]
    heading = f"{model}: the paper, and measured minus paper"
    return Block(heading, level=3, head=["method", "", "%", *grid.headings], rows=rows)


def _reported_blocks(grid: _Grid) -> list[Block]:
    """The paper's numbers for models that were not run: in a block of their own, not compared."""
    found = {key[1:4] for key in grid.reported}
    lines = _lines([*grid.settings, ("delta", "difference as printed")], list(METHOD_TITLES))
    tasks = [*grid.request.tasks, AVERAGE]
    rows = []
    for model in dict.fromkeys(key[1] for key in grid.reported):
        for line in lines:
            place = (model, line.method, line.setting)
            if model not in grid.request.models and place in found:
                labels = [Cell(model), Cell(line.title)]
                rows.append([*labels, *_reported_cells(grid, place, tasks)])
    if not rows:
        return []
    titles = [*grid.headings[:-1], f"AVG of {len(grid.asked.tasks)}"]
    heading = "Reported by the paper for other models (not measured here, not comparable)"
    return [Block(heading, head=["model", "method", "%", *titles], rows=rows)]


def _reported_cells(grid: _Grid, place: tuple[str, ...], tasks: Sequence[str]) -> list[Cell]:
    """What the paper reports of a method: its parameters in percent, and its accuracies."""
    cells = [number(grid.value(REPORTED, *place, "", "params"), ".1f", REPORTED)]
    for task in tasks:
        value = grid.value(REPORTED, *place, task, "accuracy")
        level = REPORTED_MAJORITY.get(task)
        collapsed = (
            value is not None and level is not None and abs(value - level) <= REPORTED_TOLERANCE
        )
        cell = number(value, ".1f", REPORTED)
        cells.append(dataclasses.replace(cell, mark="collapsed") if collapsed else cell)
    return cells


def _notes(request: Request, outcome: Outcome) -> list[str]:
    levels = ", ".join(f"{name} {level} %" for name, level in REPORTED_MAJORITY.items())
    notes = [
        f"{COLLAPSED_SIGN} collapsed: at least {100 * COLLAPSED_SHARE:.0f} % of the predictions "
        f"are one answer; for reported cells, accuracy within {REPORTED_TOLERANCE} of the "
        f"majority-class level ({levels})",
        "p: of a sign-flip test on the same examples, as it is; bold: better or worse with p < "
        f"{_SIGNIFICANT} after Holm's correction for all such tests of the model",
        f"{DASH}: no number",
    ]
    if len(request.seeds) > 1:
        notes.append("accuracies are means over seeds; s: standard deviation over them, in points")
    notes += [f"unavailable: {spec.title}: {why}" for spec, why in outcome.unavailable.items()]
    notes += [str(failure) for failure in outcome.failed.values()]
    if outcome.not_run:
        notes.append(f"{NOT_RUN}: {len(outcome.not_run)} cells of other shards")
    return notes


def _provenance(asked: TableLayout, request: Request, outcome: Outcome) -> dict[str, Any]:
    """What the measured numbers come from: command, settings, versions, hardware.

    A value is a list of all the values that occur, because the cells can differ in it.
    """
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
        # With the accumulation that --auto-batch came to, if it changed it.
        {**record.spec.to_json()["train"], **_accumulation(record)}
        for record in records
        if record.spec.train is not None
    ]
    # Both the rows that this run left out and those that the stored records were made without: a
    # file of rows can have changed in between.
    counts = [record.provenance.get("skipped", {}) for record in records] + [outcome.skipped]
    skipped = {
        name: distinct(count[name] for count in counts if name in count)
        for name in dict.fromkeys(name for count in counts for name in count)
    }
    adapters = {
        method: found
        for method in request.methods
        if (found := distinct(dict(r.spec.adapter) for r in records if r.spec.method == method))
        and method != BASE
    }
    return {
        "table": asked.name,
        "command": command(asked.name, request),
        "preset": request.preset,
        "models": list(request.models),
        "weights": distinct(record.provenance["weights"] for record in records),
        "data": distinct(record.provenance["data"] for record in records),
        "rows": rows,
        # Named only where there are some, so that the files of older tables stay as they are.
        **({"bad rows left out": skipped} if skipped else {}),
        "scoring": request.scoring,
        "evaluator": request.evaluator,
        "quirks of the released code": list(request.quirks),
        "seeds": list(request.seeds),
        "quantize": request.quantize,
        "dtype": distinct(record.spec.dtype for record in records),
        "training": distinct(settings),
        "adapters": adapters,
        "commit": distinct(record.provenance["commit"] for record in records),
        "python": distinct(record.provenance["python"] for record in records),
        "versions": distinct(record.provenance["versions"] for record in records),
        "hardware": distinct(record.provenance["hardware"] for record in records),
        "seconds": round(sum(sum(record.seconds.values()) for record in records), 1),
        "cells": f"{len(records)} done, {len(outcome.failed)} failed, "
        f"{len(outcome.unavailable)} unavailable"
        + (f", {len(outcome.not_run)} not run" if outcome.not_run else ""),
    }


def _accumulation(record: RunRecord) -> dict[str, int]:
    used = record.training.get("accumulation")
    return {} if used is None else {"accumulation": used}
