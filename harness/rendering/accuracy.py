"""Renders an accuracy table: its blocks, its marks, what it is made of. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd

from tasks import get_task

from ..cells.methods import BASE, METHOD_TITLES
from ..cells.spec import OWN
from ..request import Request, TableLayout
from ..schedule.executor import Outcome
from .compare import (
    AVERAGE,
    BASELINE,
    MAIN,
    REPORTED_MAJORITY,
    REPORTED_TOLERANCE,
    metrics_of,
    place_of,
)
from .made_of import provenance_of
from .rendered import (
    DASH,
    Rendered,
    bullets,
    long_rows,
    number,
    provenance_block,
    table,
)
from .sources import MINUS_PAPER_ROW, PAPER_ROW, REPORTED_BLOCK
from .stats import COLLAPSED_SHARE

COLLAPSED_MARK = "†"
#: What stands where a cell is another shard's, and not done.
NOT_RUN = "not run"
_SIGNIFICANT = 0.05


def render(
    asked: TableLayout,
    request: Request,
    lines: Collection[tuple[str, str]],
    outcome: Outcome,
    frame: pd.DataFrame,
    statuses: Mapping[tuple[str, ...], str] = MappingProxyType({}),
) -> Rendered:
    """All forms of a table.

    Args:
        asked: Which table.
        request: What was asked for: its rows and columns, filled or not.
        lines: The (method, setting) that have cells.
        outcome: What became of its cells.
        frame: `compare.compare`'s numbers.
        statuses: (model, method, setting, task) -> "failed", "OOM" or "not run", of the cells that
            failed or are left to other shards.
    """
    provenance = provenance_of(asked, request, outcome)
    grid = _Grid(frame, asked, request, lines, statuses)
    places = " and ".join(map(place_of, asked.paper_tables))
    parts = [f"# {asked.title} ({places} of arXiv 2404.15159)"]
    for model in request.models:
        parts += _measured_block(grid, model)
    parts += _reported_block(grid)
    parts += _notes(request, outcome)
    parts += [provenance_block(provenance)]
    markdown = "\n\n".join(parts) + "\n"
    failed = len(outcome.failed)
    return Rendered(asked.name, markdown, long_rows(frame), provenance, failed=failed)


@dataclass(frozen=True)
class _Line:
    """One row of a block: a method in a setting."""

    method: str
    setting: str
    title: str


class _Grid:
    """Looks numbers up by (source, model, method, setting, task, metric).

    Args:
        frame: `compare.compare`'s numbers.
        asked: Which table.
        request: What was asked for.
        asked_lines: The (method, setting) that have cells.
        statuses: (model, method, setting, task) -> how it failed, or that it was not run.
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
        self._asked_lines = asked_lines
        self._rows: dict[tuple[str, ...], Any] = {
            (row.source, row.model, row.method, row.setting, row.task, row.metric): row
            for row in frame.itertuples(index=False)
        }
        reported = frame[frame["source"] == "reported"]
        self.reported_models = list(dict.fromkeys(reported["model"]))
        self.reported_lines = {
            (row.model, row.method, row.setting)
            for row in reported.itertuples(index=False)
            if row.metric == "accuracy"
        }
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

    def lines(self, settings: Sequence[tuple[str, str]], methods: Sequence[str]) -> list[_Line]:
        """A line for each method in each (setting, its title), the untuned base once."""
        return [
            _Line(method, name, ", ".join(filter(None, [METHOD_TITLES[method], title])))
            for method in methods
            for name, title in (settings if method != BASE else settings[:1])
        ]

    @property
    def asked_lines(self) -> list[_Line]:
        settings = [(setting.name, setting.title) for setting in self.asked.settings]
        lines = self.lines(settings, self.request.methods)
        return [line for line in lines if (line.method, line.setting) in self._asked_lines]


def _measured_block(grid: _Grid, model: str) -> list[str]:
    request, main = grid.request, grid.asked.main
    quirks = f", with {', '.join(request.quirks)}" if request.quirks else ""
    bits = f", {request.quantize} base" if request.quantize else ""
    by = "" if request.evaluator == OWN else f" by {request.evaluator}"
    parts = [f"## {model}: measured, {request.scoring} scoring{by}{bits}{quirks}"]
    for metric in metrics_of(request.scoring, request.evaluator):
        head = ["method", "parameters", "%", *grid.headings]
        rows = [_measured_row(grid, model, line, metric) for line in grid.asked_lines]
        levels = [
            number(grid.value("measured", model, "", main, task, "majority_class"))
            for task in grid.columns
        ]
        rows.append(["majority class", "", "", *levels])
        parts += [f"{metric} (%) ± standard error over examples", table(head, rows)]
        compared = [line for line in grid.asked_lines if line.method != BASELINE]
        if BASELINE in request.methods and compared:
            what = f"{metric}, points above LoRA on the same examples (p of a paired test)"
            parts += [what, _against(grid, model, compared, f"{metric}_minus_{BASELINE}")]
        others = [line for line in grid.asked_lines if line.setting != main]
        if others:
            title = next(s.title for s in grid.asked.settings if s.name == main)
            what = f"{metric}, points above the same method with {title}, likewise"
            parts += [what, _against(grid, model, others, f"{metric}_minus_{MAIN}")]
    comparable = request.scoring == "label" and request.evaluator == OWN
    if model in grid.reported_models and comparable:
        parts += [f"### {model}: the paper, and measured minus paper", _paper_table(grid, model)]
    return parts


def _measured_row(grid: _Grid, model: str, line: _Line, metric: str) -> list[str]:
    place = ("measured", model, line.method, line.setting)
    count = grid.value(*place, "", "trainable_parameters")
    percent = grid.value(*place, "", "params")
    row = [line.title, DASH if count is None else f"{count:,.0f}", number(percent, 2)]
    for task in grid.columns:
        value = grid.value(*place, task, metric)
        text = number(value) if value is not None else grid.statuses.get((*place[1:], task), DASH)
        stderr = grid.stderr(*place, task, metric)
        text += "" if stderr is None else f" ± {stderr:.1f}"
        spread = grid.value(*place, task, f"{metric}_seed_std")
        text += "" if spread is None else f" (s {spread:.1f})"
        collapsed = grid.value(*place, task, f"{metric}_collapsed")
        row.append(text + (f" {COLLAPSED_MARK}" if collapsed else ""))
    return row


def _against(grid: _Grid, model: str, lines: list[_Line], metric: str) -> str:
    """Differences and their p; with a mean where they have one."""
    place = ("measured", model)
    columns = list(grid.request.tasks)
    if any(
        grid.value(*place, e.method, e.setting, grid.average, metric) is not None for e in lines
    ):
        columns.append(grid.average)
    rows = []
    for line in lines:
        row = [line.title]
        for task in columns:
            key = (*place, line.method, line.setting, task)
            row.append(
                _difference(*(grid.value(*key, f"{metric}{e}") for e in ("", "_p", "_p_holm")))
            )
        rows.append(row)
    return table(["method", *grid.headings[: len(columns)]], rows)


def _difference(points: float | None, p_value: float | None, adjusted: float | None) -> str:
    if points is None:
        return DASH
    if p_value is None or adjusted is None:
        return f"{points:+.1f}"
    text = f"{points:+.1f} ({'<0.001' if p_value < 0.001 else f'{p_value:.3f}'})"
    return f"**{text}**" if adjusted < _SIGNIFICANT else text


def _paper_table(grid: _Grid, model: str) -> str:
    rows = []
    for line in grid.asked_lines:
        place = (model, line.method, line.setting)
        paper = [_reported_cell(grid, *place, task) for task in grid.columns]
        params = number(grid.value("reported", *place, "", "params"))
        rows.append([line.title, PAPER_ROW, params, *paper])
        minus = [grid.value("measured", *place, t, "accuracy_minus_paper") for t in grid.columns]
        params_minus = grid.value("measured", *place, "", "params_minus_paper")
        signed = [DASH if value is None else f"{value:+.1f}" for value in minus]
        rows.append(
            [
                "",
                MINUS_PAPER_ROW,
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
    settings = [(setting.name, setting.title) for setting in grid.asked.settings]
    rows = []
    for model in others:
        for line in grid.lines(
            [*settings, ("delta", "difference as printed")], list(METHOD_TITLES)
        ):
            place = (model, line.method, line.setting)
            if place in grid.reported_lines:
                params = number(grid.value("reported", *place, "", "params"))
                cells = [_reported_cell(grid, *place, task) for task in columns]
                rows.append([model, line.title, params, *cells])
    if not rows:
        return []
    titles = [get_task(name).title for name in grid.request.tasks]
    return [
        f"## {REPORTED_BLOCK} for other models (not measured here, not comparable)",
        table(["model", "method", "%", *titles, f"AVG of {len(grid.asked.tasks)}"], rows),
    ]


def _reported_cell(grid: _Grid, model: str, method: str, setting: str, task: str) -> str:
    value = grid.value("reported", model, method, setting, task, "accuracy")
    level = REPORTED_MAJORITY.get(task)
    collapsed = value is not None and level is not None and abs(value - level) <= REPORTED_TOLERANCE
    return number(value) + (f" {COLLAPSED_MARK}" if collapsed else "")


def _notes(request: Request, outcome: Outcome) -> list[str]:
    levels = ", ".join(f"{name} {level} %" for name, level in REPORTED_MAJORITY.items())
    notes = [
        f"{COLLAPSED_MARK} collapsed: at least {100 * COLLAPSED_SHARE:.0f} % of the predictions "
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
    return [bullets(notes)]
