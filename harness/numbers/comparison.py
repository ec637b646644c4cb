"""Joins what was measured with what the paper reports, in long form. Torch-free.

There is one row for each number, in the columns of ``reported.csv`` plus source, stderr, n and
seed. Beside the paper's metrics, measured rows have for each accuracy ``m``:

- ``m_collapsed``: 1 where (almost) all predictions are one answer, else 0;
- ``m_seed_std``: the standard deviation over several seeds, in points;
- ``m_minus_lora``: the difference to LoRA on the same examples, in points, with its p-value
  ``m_minus_lora_p`` and ``m_minus_lora_p_holm``, which is adjusted for all such tests of the model;
- ``m_minus_main``: the same against the same method in the table's main setting;
- ``m_minus_paper``: the difference to the paper's number, in points, for the paper's own models.

Each task has a ``majority_class``, each method ``params`` and ``trainable_parameters``. The name of
an accuracy that lm-eval computed begins with ``lm_eval_``.
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

#: The suffix of metrics that compare with the same method in the table's main setting.
MAIN = "main"

#: The majority-class levels of whole evaluation splits, in percent. A reported accuracy within 0.1
#: points of its level is marked as collapsed to it.
REPORTED_MAJORITY = {"boolq": 62.17}
REPORTED_TOLERANCE = 0.1

# The beginning of the names of accuracies that lm-eval computed.
_LM_EVAL = "lm_eval_"

_Row = dict[str, Any]
_Cell = tuple[str, str, str]  # model, method, task


def load_reported(table: str) -> pd.DataFrame:
    """Every number of one of the paper's tables, in `LONG_COLUMNS`, with the source "reported".

    Args:
        table: the table's name in reported.csv, any but "3", whose settings are not all numbers.

    Raises:
        ValueError: The file is not as `harness.paper.reported.read_reported` expects it.
    """
    rows = [row for row in read_reported(REPORTED_CSV) if row["table"] == table]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})
    return frame.assign(source="reported", stderr=None, n=None, seed="")[LONG_COLUMNS]


def metrics_of(scoring: str, evaluator: str) -> tuple[str, ...]:
    """The names in the long form of the accuracies that a scoring gives.

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
        records: the records of the cells, by their setting as in reported.csv; several seeds of a
            cell are averaged.
        main: the setting that the others are compared with.
        tables: the names of the paper's tables in reported.csv.
        tasks: the tasks asked for, over which a row is averaged if it has them all.
        all_tasks: the paper's tasks; only an average over just these is compared with the paper's.

    Returns:
        A frame in `LONG_COLUMNS`, measured rows first. Values are in percent where the unit is "%",
        in points where it is "pp".
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
    """The records of each cell, one for each seed, in the order of the seeds."""
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
    """All measured rows of one setting, compared with the cells of the main setting if given."""
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
    """p-values adjusted by Holm's method for all tests of a model that answer one question."""
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
    """A cell's difference to another, with p; no rows if their examples are not the same."""
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
    """A fingerprint of the rows that a task was scored on."""
    # Older records of several tasks have only one fingerprint, for the rows of all of them.
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
    """Means over the tasks asked for, of accuracies and of differences to the main setting.

    A method that lacks one of the tasks has no mean.
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
        # The examples of different tasks are independent, so their variances add.
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
    """The trainable parameters, as a number and in percent of the model's size.

    For the paper's models the size is the paper's nominal one, such as 7.0e9, so that the column
    can be compared; for others it is the exact number of frozen parameters.
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
