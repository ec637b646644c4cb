"""From stored measurements to numbers: medians, quartiles, ratios, and their cells. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness.numbers.comparison import LONG_COLUMNS
from harness.show.data import DASH, MEASURED, Cell, Source

from .records import DONE, MeasureRecord
from .spec import Subject

#: The columns of the long form beside `LONG_COLUMNS`: quartiles over the runs; what was read (a
#: clock, a memory source); why there is no value ("OOM", "failed: ...", "unavailable: ..."), else
#: ""; and the model, batch and device that ran.
MEASURE_COLUMNS = [
    *LONG_COLUMNS,
    "q25",
    "q75",
    "meter",
    "status",
    *("layers", "batch", "length", "dtype", "device", "threads"),
]

#: Workload -> metric -> the phases it adds up.
LATENCIES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "forward_latency": ("forward",),
        "backward_latency": ("backward",),
        "step_latency": ("forward", "backward"),
    },
    "inference": {"forward_latency": ("forward",)},
    "decode": {"forward_latency": ("forward",)},
}

#: The memory source behind ``peak_memory``, by kind of device.
MAIN_SOURCE = {"cpu": "process", "cuda": "torch_allocated"}

_GB = 1e9

Row = dict[str, Any]


def cell_of(row: Row | None, source: Source = MEASURED, spread: bool = False) -> Cell:
    """The cell of one number.

    Args:
        row: the number in long form; None prints a dash.
        source: whose number it is.
        spread: whether the quartiles over the runs are printed, where there are runs.
    """
    if row is None or (row["value"] is None and not row["status"]):
        return Cell(DASH, source=source)
    if row["status"]:
        mark = row["status"].partition(":")[0]
        return Cell(mark, mark=mark, source=source)
    unit, error = row["unit"], {}
    text = _digits(row["value"], unit)
    if row["q25"] is not None:
        error = {"q25": row["q25"], "q75": row["q75"]}
        if spread:
            text += f" [{_digits(row['q25'], unit)}-{_digits(row['q75'], unit)}]"
    return Cell(text, row["value"], error, source=source)


def _digits(value: float, unit: str) -> str:
    if unit == "GB":
        return f"{value:.3f}"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def setting_of(workload: str, subject: Subject) -> str:
    """The setting as in reported.csv ("train", "inference"), or "decode-b8" by rows per adapter."""
    return f"decode-b{subject.batch}" if workload == "decode" else workload


def latency_rows(record: MeasureRecord, index: int, references: Mapping[str, int]) -> list[Row]:
    """The latency of one subject in microseconds per token, and its ratios to others.

    A ratio is the median over runs of this subject's time over the reference's in the same turn.

    Args:
        record: the measurement of a latency.
        index: the position of the subject among the measurement's subjects.
        references: the position of each reference, by the suffix of the metric that its ratio gets,
            such as "ratio_to_dora".
    """
    spec = record.spec
    row = _row(record, spec.subjects[index])
    rows: list[Row] = []
    for metric, phases in LATENCIES[spec.workload].items():
        if record.status != DONE:
            rows += _without_value(row, metric, "us/token", references)
            continue
        times = [_us_per_token(record, which, phases) for which in range(len(spec.subjects))]
        clock = record.reports[index]["latency"][phases[0]]["source"]
        row = row | {"meter": clock, "n": len(times[index])}
        rows.append(row | {"metric": metric, "unit": "us/token"} | _summary(times[index]))
        for name, reference in references.items():
            ratios = _summary(100 * times[index] / times[reference])
            rows.append(row | {"metric": f"{metric}_{name}", "unit": "%"} | ratios)
    return rows


def memory_rows(record: MeasureRecord, references: Mapping[str, MeasureRecord | None]) -> list[Row]:
    """The peak memory per adapter in GB by every source, and its ratios to others.

    ``peak_memory`` is all that the process holds at the peak, by the device's main source;
    ``peak_memory_above_weights`` is what the run added to it; ``peak_memory_<source>`` are the
    other sources. Ratios are by the main source.

    Args:
        record: the measurement of a peak.
        references: the measurement of each reference, or None if it has none, by the suffix of the
            metric that its ratio gets.
    """
    row = _row(record, record.spec.measured) | {"n": 1}
    main = MAIN_SOURCE[record.spec.device.partition(":")[0]]
    if record.status != DONE:
        metrics = ("peak_memory", "peak_memory_above_weights")
        return [r for metric in metrics for r in _without_value(row, metric, "GB", references)]
    rows: list[Row] = []
    for metric, value in _peaks(record, main).items():
        row = row | {"meter": main, "status": _reason(record, main)}
        rows.append(row | {"metric": metric, "value": value, "unit": "GB"})
        for name, reference in references.items():
            other = None if reference is None else _peaks(reference, main)[metric]
            ratio = 100 * value / other if value is not None and other else None
            rows.append(row | {"metric": f"{metric}_{name}", "value": ratio, "unit": "%"})
    for source, memory in record.reports[0]["memory"].items():
        if source != main:
            value = _gigabytes(record, memory["peak_bytes"])
            row = row | {"meter": source, "status": _reason(record, source)}
            rows.append(row | {"metric": f"peak_memory_{source}", "value": value, "unit": "GB"})
    return rows


def frame_of(rows: list[Row], columns: list[str]) -> pd.DataFrame:
    """These rows as a frame in long form, None where a column has no value."""
    return pd.DataFrame(rows, columns=columns).astype({"value": float})


def _row(record: MeasureRecord, subject: Subject) -> Row:
    """What all numbers of a measured subject have in common."""
    spec = record.spec
    status = record.status if not record.reason else f"{record.status}: {record.reason}"
    return {
        "table": "",
        "model": spec.shape,
        "method": subject.name,
        "setting": setting_of(spec.workload, subject),
        "task": "",
        "source": MEASURED,
        "seed": "0",
        "meter": "",
        "status": "" if record.status == DONE else status,
        "layers": spec.layers,
        "batch": subject.batch,
        "length": subject.length,
        "dtype": spec.dtype,
        "device": spec.device,
        "threads": spec.threads,
    }


def _without_value(row: Row, metric: str, unit: str, references: Mapping[str, Any]) -> list[Row]:
    ratios = [row | {"metric": f"{metric}_{name}", "unit": "%"} for name in references]
    return [row | {"metric": metric, "unit": unit}, *ratios]


def _us_per_token(record: MeasureRecord, index: int, phases: tuple[str, ...]) -> np.ndarray:
    latency = record.reports[index]["latency"]
    tokens = record.spec.subjects[index].tokens(record.spec.workload)
    seconds = np.sum([latency[phase]["seconds"] for phase in phases], axis=0)
    return seconds / tokens * 1e6


def _summary(values: np.ndarray) -> Row:
    q25, median, q75 = np.percentile(values, [25, 50, 75])
    return {"value": float(median), "q25": float(q25), "q75": float(q75)}


def _peaks(record: MeasureRecord, source: str) -> dict[str, float | None]:
    """Metric -> GB per adapter, None where it could not be read or was not measured."""
    memory = record.reports[0]["memory"][source] if record.status == DONE else {}
    peak, baseline = memory.get("peak_bytes"), memory.get("baseline_bytes")
    above = None if peak is None or baseline is None else peak - baseline
    return {
        "peak_memory": _gigabytes(record, peak),
        "peak_memory_above_weights": _gigabytes(record, above),
    }


def _gigabytes(record: MeasureRecord, count: int | None) -> float | None:
    return None if count is None else count / record.spec.measured.adapters / _GB


def _reason(record: MeasureRecord, source: str) -> str:
    return record.reports[0]["memory"][source]["reason"] or ""
