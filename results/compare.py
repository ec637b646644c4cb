"""Joins what was measured with what the paper reports, in long form. Torch-free.

One row per number, in the columns of ``reported.csv`` plus source, stderr, n and seed. Beside the
paper's metrics, measured rows have, for each accuracy ``m``: ``m_collapsed`` (1 where the
predictions are one answer), ``m_minus_lora`` (points, same examples) with ``m_minus_lora_p``, and
``m_minus_paper`` (points) for the paper's own models; per task ``majority_class``; per method
``params`` and ``trainable_parameters``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .records import RunRecord, TaskResult
from .shapes import SHAPES
from .stats import is_collapsed, majority_level, mean_and_stderr, paired_test

REPORTED_CSV = Path(__file__).parent / "paper" / "reported.csv"

_PAPER_COLUMNS = ["table", "model", "method", "setting", "task", "metric", "value", "unit"]
LONG_COLUMNS = [*_PAPER_COLUMNS, "source", "stderr", "n", "seed"]

#: The method that every paired test compares with.
BASELINE = "lora"

#: The task name of the mean over all tasks of a table.
AVERAGE = "avg"

#: Majority-class levels of whole evaluation splits, in percent, for marking reported cells. A
#: reported accuracy within 0.1 points of its level is marked as collapsed to it.
REPORTED_MAJORITY = {"boolq": 62.17}
REPORTED_TOLERANCE = 0.1

_Row = dict[str, Any]
_Cell = tuple[str, str, str]  # model, method, task


def load_reported(table: str) -> pd.DataFrame:
    """Every number of one of the paper's tables, in `LONG_COLUMNS`, source "reported".

    Args:
        table: Its number in the paper; all but "3", the settings, hold numbers only.

    Raises:
        ValueError: The file lacks a column, or a value is not a number; it is named.
    """
    frame = pd.read_csv(REPORTED_CSV, dtype=str, keep_default_na=False)
    missing = [column for column in _PAPER_COLUMNS if column not in frame.columns]
    if missing:
        raise ValueError(f"{REPORTED_CSV}: column {', '.join(missing)} is missing")
    frame = frame[frame["table"] == table]
    values = pd.to_numeric(frame["value"], errors="coerce")
    if values.isna().any():
        row = values.index[values.isna()][0] + 2  # counted from 1, after the header
        raise ValueError(f"{REPORTED_CSV}, row {row}, column value: expected a number")
    frame = frame.assign(value=values)
    return frame.assign(source="reported", stderr=None, n=None, seed="")[LONG_COLUMNS]


def metrics_of(scoring: str) -> tuple[str, ...]:
    """The accuracies a scoring gives, by their names in the long form."""
    return ("accuracy",) if scoring == "label" else ("acc", "acc_norm")


def compare(
    records: Sequence[RunRecord],
    table: str,
    setting: str,
    tasks: Sequence[str],
    all_tasks: Sequence[str],
) -> pd.DataFrame:
    """All measured and reported numbers of one table.

    Args:
        records: Of the table's cells; several seeds of a cell are averaged.
        table: Its number in the paper.
        setting: "st" (single-task) or "mt".
        tasks: The tasks asked for, over which a complete row is averaged.
        all_tasks: The paper's tasks: only their average is compared with the paper's.

    Returns:
        `LONG_COLUMNS`, measured rows first. Percent for unit "%", points for "pp".
    """
    reported = load_reported(table)
    reported = reported[reported["setting"] == setting]
    lookup = {
        (row.model, row.method, row.task, row.metric): row.value
        for row in reported.itertuples(index=False)
    }
    cells: dict[_Cell, list[RunRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.spec.seed):
        for task in record.tasks:
            cells[record.spec.model, record.spec.method, task].append(record)

    rows: list[_Row] = []
    for cell, group in cells.items():
        rows += _cell_rows(cell, group, cells.get((cell[0], BASELINE, cell[2])))
    average = AVERAGE if list(tasks) == list(all_tasks) else f"{AVERAGE} of {len(tasks)}"
    rows += _average_rows(rows, tasks, average)
    rows += _parameter_rows(cells)
    rows += _majority_rows(cells)
    for row in list(rows):
        paper = lookup.get((row["model"], row["method"], row["task"], row["metric"]))
        if paper is not None and row["metric"] in ("accuracy", "params"):
            name = f"{row['metric']}_minus_paper"
            rows.append(row | {"metric": name, "value": row["value"] - paper, "unit": "pp"})
    for row in rows:
        row |= {"table": table, "setting": setting, "source": "measured"}
    measured = pd.DataFrame(rows, columns=LONG_COLUMNS)
    frames = [frame for frame in (measured, reported) if len(frame)]
    return pd.concat([frame.astype({"value": float}) for frame in frames], ignore_index=True)


def _cell_rows(cell: _Cell, group: list[RunRecord], baseline: list[RunRecord] | None) -> list[_Row]:
    model, method, task = cell
    results = [record.tasks[task] for record in group]
    row = {
        "model": model,
        "method": method,
        "task": task,
        "n": len(results[0].answers),
        "seed": ",".join(str(record.spec.seed) for record in group),
    }
    rows = []
    for metric in metrics_of(group[0].spec.scoring):
        correct = [result.correct(metric) for result in results]
        mean, stderr = mean_and_stderr(correct)
        percent = None if stderr is None else 100 * stderr
        rows.append(row | {"metric": metric, "value": 100 * mean, "unit": "%", "stderr": percent})
        collapsed = any(is_collapsed(result.chosen(metric)) for result in results)
        rows.append(row | {"metric": f"{metric}_collapsed", "value": int(collapsed), "unit": ""})
        if baseline is not None and method != BASELINE and _same_rows(group, baseline):
            theirs = [record.tasks[task].correct(metric) for record in baseline]
            difference, p_value = paired_test(correct, theirs)
            name = f"{metric}_minus_{BASELINE}"
            rows.append(row | {"metric": name, "value": 100 * difference, "unit": "pp"})
            rows.append(row | {"metric": f"{name}_p", "value": p_value, "unit": "p"})
    return rows


def _same_rows(ours: list[RunRecord], theirs: list[RunRecord]) -> bool:
    return len({record.fingerprints.eval_data for record in [*ours, *theirs]}) == 1


def _average_rows(rows: list[_Row], tasks: Sequence[str], average: str) -> list[_Row]:
    """Means over the tasks asked for; a row that lacks one has none."""
    values: dict[tuple[str, str, str], dict[str, _Row]] = defaultdict(dict)
    for row in rows:
        if row["unit"] == "%":
            values[row["model"], row["method"], row["metric"]][row["task"]] = row
    means = []
    for (model, method, metric), by_task in values.items():
        if set(by_task) != set(tasks):
            continue
        chosen = list(by_task.values())
        errors = [row["stderr"] for row in chosen]
        # The tasks' examples are independent, so variances add.
        stderr = None if None in errors else sum(e**2 for e in errors) ** 0.5 / len(errors)
        means.append(
            {
                "model": model,
                "method": method,
                "task": average,
                "metric": metric,
                "value": sum(row["value"] for row in chosen) / len(chosen),
                "unit": "%",
                "stderr": stderr,
                "n": sum(row["n"] for row in chosen),
                "seed": chosen[0]["seed"],
            }
        )
    return means


def _parameter_rows(cells: dict[_Cell, list[RunRecord]]) -> list[_Row]:
    """Trainable parameters, and in percent of the model's size.

    For the paper's models the size is the paper's nominal one (7.0e9, ...), so that the column can
    be compared; for others the exact number of frozen parameters.
    """
    rows = []
    for (model, method), record in {(c[0], c[1]): group[0] for c, group in cells.items()}.items():
        nominal = SHAPES[model].nominal_parameters if model in SHAPES else None
        size = nominal or record.base_parameters
        row = {"model": model, "method": method, "task": "", "seed": str(record.spec.seed)}
        count = record.trainable_parameters
        rows.append(row | {"metric": "trainable_parameters", "value": count, "unit": "parameters"})
        rows.append(row | {"metric": "params", "value": 100 * count / size, "unit": "%"})
    return rows


def _majority_rows(cells: dict[_Cell, list[RunRecord]]) -> list[_Row]:
    results: dict[tuple[str, str], TaskResult] = {
        (model, task): group[0].tasks[task] for (model, _, task), group in cells.items()
    }
    return [
        {
            "model": model,
            "method": "",
            "task": task,
            "metric": "majority_class",
            "value": 100 * majority_level(result.answers),
            "unit": "%",
            "n": len(result.answers),
            "seed": "",
        }
        for (model, task), result in results.items()
    ]
