"""Joins what was measured with what the paper reports, in long form. Torch-free.

One row per number, in the columns of ``reported.csv`` plus source, stderr, n and seed. Beside the
paper's metrics, measured rows have, for each accuracy ``m``: ``m_collapsed`` (1 where the
predictions are one answer), ``m_seed_std`` (points, over several seeds), ``m_minus_lora`` (points,
same examples) with ``m_minus_lora_p`` and, adjusted for the number of such tests of the model,
``m_minus_lora_p_holm``, ``m_minus_main`` likewise against the same method in the table's main
setting, and ``m_minus_paper`` (points) for the paper's own models; per task ``majority_class``; per
method ``params`` and ``trainable_parameters``. An accuracy that lm-eval computed is ``lm_eval_m``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.cells.spec import OWN
from harness.models.shapes import SHAPES
from harness.paper.reported import AVERAGE, COLUMNS, REPORTED_CSV, read_reported
from harness.store.records import RunRecord, TaskResult

from .statistics import holm, is_collapsed, majority_level, mean_and_stderr, paired_test, seed_std

LONG_COLUMNS = [*COLUMNS, "source", "stderr", "n", "seed"]

#: The method that every paired test compares with.
BASELINE = "lora"

#: Suffix of what is relative to the same method in the table's main setting.
MAIN = "main"

#: Majority-class levels of whole evaluation splits, in percent, for marking reported cells. A
#: reported accuracy within 0.1 points of its level is marked as collapsed to it.
REPORTED_MAJORITY = {"boolq": 62.17}
REPORTED_TOLERANCE = 0.1

# Before the names of what lm-eval computed.
_LM_EVAL = "lm_eval_"

_Row = dict[str, Any]
_Cell = tuple[str, str, str]  # model, method, task


def load_reported(table: str) -> pd.DataFrame:
    """Every number of one of the paper's tables, in `LONG_COLUMNS`, source "reported".

    Args:
        table: Its number in the paper; all but "3", the settings, hold numbers only.

    Raises:
        ValueError: See `reported.read_reported`.
    """
    rows = [row for row in read_reported(REPORTED_CSV) if row["table"] == table]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})
    return frame.assign(source="reported", stderr=None, n=None, seed="")[LONG_COLUMNS]


def metrics_of(scoring: str, evaluator: str) -> tuple[str, ...]:
    """The accuracies a scoring gives, by their names in the long form.

    Those that lm-eval computed have names of their own, so that no column mixes them with ours.
    """
    names = ("accuracy",) if scoring == "label" else ("acc", "acc_norm")
    return names if evaluator == OWN else tuple(f"{_LM_EVAL}{name}" for name in names)


def _correct(result: TaskResult, metric: str) -> list[bool]:
    return result.correct(metric.removeprefix(_LM_EVAL))


def _metrics(record: RunRecord) -> tuple[str, ...]:
    return metrics_of(record.spec.scoring, record.spec.evaluator)


def compare(
    records: Mapping[str, Sequence[RunRecord]],
    main: str,
    tables: Sequence[str],
    tasks: Sequence[str],
    all_tasks: Sequence[str],
) -> pd.DataFrame:
    """All measured and reported numbers of one table.

    Args:
        records: Setting, as in reported.csv -> the records of its cells; several seeds of a cell
            are averaged.
        main: The setting that the others are compared with.
        tables: Numbers of the paper's tables.
        tasks: The tasks asked for, over which a complete row is averaged.
        all_tasks: The paper's tasks: only their average is compared with the paper's.

    Returns:
        `LONG_COLUMNS`, measured rows first. Percent for unit "%", points for "pp".
    """
    reported = pd.concat([load_reported(table) for table in tables])
    lookup = {
        (row.model, row.method, row.setting, row.task, row.metric): row
        for row in reported.itertuples(index=False)
    }
    table_of = dict(zip(reported["model"], reported["table"], strict=True))
    average = AVERAGE if list(tasks) == list(all_tasks) else f"{AVERAGE} of {len(tasks)}"
    cells = {setting: _cells(found) for setting, found in records.items()}
    rows: list[_Row] = []
    for setting, found in cells.items():
        others = cells[main] if setting != main else {}
        rows += [row | {"setting": setting} for row in _setting_rows(found, others, tasks, average)]
    rows += _adjusted(rows)
    for row in list(rows):
        key = tuple(row[name] for name in ("model", "method", "setting", "task", "metric"))
        if key in lookup and row["metric"] in ("accuracy", "params"):
            name, value = f"{row['metric']}_minus_paper", row["value"] - lookup[key].value
            rows.append(row | {"metric": name, "value": value, "unit": "pp"})
    for row in rows:
        row |= {"table": table_of.get(row["model"], tables[0]), "source": "measured"}
    measured = pd.DataFrame(rows, columns=LONG_COLUMNS)
    frames = [frame for frame in (measured, reported) if len(frame)]
    return pd.concat([frame.astype({"value": float}) for frame in frames], ignore_index=True)


def _cells(records: Sequence[RunRecord]) -> dict[_Cell, list[RunRecord]]:
    """The records of each cell, one per seed, by seed."""
    cells: dict[_Cell, list[RunRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.spec.seed):
        for task in record.tasks:
            cells[record.spec.model, record.spec.method, task].append(record)
    return cells


def _setting_rows(
    cells: dict[_Cell, list[RunRecord]],
    main: dict[_Cell, list[RunRecord]],
    tasks: Sequence[str],
    average: str,
) -> list[_Row]:
    """All measured rows of one setting; main has the cells of the main setting, or none."""
    rows: list[_Row] = []
    for cell, group in cells.items():
        rows += _cell_rows(cell, group)
        baseline = cells.get((cell[0], BASELINE, cell[2]))
        if cell[1] != BASELINE and baseline:
            rows += _paired_rows(cell, group, baseline, BASELINE)
        if cell in main:
            rows += _paired_rows(cell, group, main[cell], MAIN)
    return (
        rows + _average_rows(rows, tasks, average) + _parameter_rows(cells) + _majority_rows(cells)
    )


def _adjusted(rows: list[_Row]) -> list[_Row]:
    """Holm's p-values, over all tests of a model that answer the same question."""
    families: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        if row["unit"] == "p":
            families[row["model"], row["metric"]].append(row)
    return [
        row | {"metric": f"{row['metric']}_holm", "value": value}
        for family in families.values()
        for row, value in zip(family, holm([row["value"] for row in family]), strict=True)
    ]


def _row(cell: _Cell, group: list[RunRecord]) -> _Row:
    model, method, task = cell
    return {
        "model": model,
        "method": method,
        "task": task,
        "n": len(group[0].tasks[task].answers),
        "seed": ",".join(str(record.spec.seed) for record in group),
    }


def _paired_rows(
    cell: _Cell, group: list[RunRecord], others: list[RunRecord], suffix: str
) -> list[_Row]:
    """What a cell is above another, and p; nothing if they were not scored on the same examples."""
    row, task = _row(cell, group), cell[2]
    if len({_scored_rows(record, task) for record in [*group, *others]}) != 1:
        return []
    rows = []
    for metric in _metrics(group[0]):
        ours = [_correct(record.tasks[task], metric) for record in group]
        theirs = [_correct(record.tasks[task], metric) for record in others]
        difference, p_value = paired_test(ours, theirs)
        name = f"{metric}_minus_{suffix}"
        rows.append(row | {"metric": name, "value": 100 * difference, "unit": "pp"})
        rows.append(row | {"metric": f"{name}_p", "value": p_value, "unit": "p"})
    return rows


def _scored_rows(record: RunRecord, task: str) -> str:
    """What tells the rows that a task was scored on from others."""
    # A cell of several tasks has one fingerprint for the rows of all.
    return record.tasks[task].rows or record.fingerprints.eval_data


def _cell_rows(cell: _Cell, group: list[RunRecord]) -> list[_Row]:
    task = cell[2]
    results = [record.tasks[task] for record in group]
    row = _row(cell, group)
    rows = []
    for metric in _metrics(group[0]):
        correct = [_correct(result, metric) for result in results]
        mean, stderr = mean_and_stderr(correct)
        percent = None if stderr is None else 100 * stderr
        rows.append(row | {"metric": metric, "value": 100 * mean, "unit": "%", "stderr": percent})
        if len(correct) > 1:
            spread = 100 * seed_std(correct)
            rows.append(row | {"metric": f"{metric}_seed_std", "value": spread, "unit": "pp"})
        chosen = [result.chosen(metric.removeprefix(_LM_EVAL)) for result in results]
        collapsed = any(map(is_collapsed, chosen))
        rows.append(row | {"metric": f"{metric}_collapsed", "value": int(collapsed), "unit": ""})
    return rows


def _average_rows(rows: list[_Row], tasks: Sequence[str], average: str) -> list[_Row]:
    """Means over the tasks asked for, of accuracies and of differences to the main setting; a row
    that lacks a task has none.
    """
    values: dict[tuple[str, str, str], dict[str, _Row]] = defaultdict(dict)
    for row in rows:
        if row["unit"] == "%" or row["metric"].endswith(f"_minus_{MAIN}"):
            values[row["model"], row["method"], row["metric"]][row["task"]] = row
    means = []
    for (model, method, metric), by_task in values.items():
        if set(by_task) != set(tasks):
            continue
        chosen = list(by_task.values())
        errors = [row["stderr"] for row in chosen if row.get("stderr") is not None]
        # The tasks' examples are independent, so variances add.
        all_known = len(errors) == len(chosen)
        stderr = sum(e**2 for e in errors) ** 0.5 / len(errors) if all_known else None
        means.append(
            {
                "model": model,
                "method": method,
                "task": average,
                "metric": metric,
                "value": sum(row["value"] for row in chosen) / len(chosen),
                "unit": chosen[0]["unit"],
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
