"""Whether what a record's file holds can be a record: what tables count with is there and fits."""

from __future__ import annotations

import math
from typing import Any

# What a table's last part is made of.
_PROVENANCE = ("finished", "commit", "python", "versions", "hardware", "data", "weights")


def check_record(data: dict[str, Any]) -> None:
    """Refuse a cell's record whose numbers do not belong together.

    Args:
        data: As `RunRecord.to_json` gives it.

    Raises:
        ValueError: A field has a value that is not allowed; it is named.
        KeyError: One is missing.
    """
    for name in ("trainable_parameters", "base_parameters"):
        _check(
            _is_count(data[name]) and (data[name] or name[0] == "t"), name, data[name], "a count"
        )
    for name in ("tasks", "training", "seconds", "provenance"):
        _check(isinstance(data[name], dict), name, data[name], "values by name")
    wanted = sorted(data["spec"]["eval_tasks"])
    _check(sorted(data["tasks"]) == wanted, "tasks", sorted(data["tasks"]), _short(wanted))
    for name, task in data["tasks"].items():
        _check_task(f"tasks.{name}", task)
    for name, value in data["seconds"].items():
        known = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
        _check(known, f"seconds.{name}", value, "a number of at least 0")
    for name in ("rows", "accumulation"):
        value = data["training"].get(name, 1)
        _check(_is_count(value), f"training.{name}", value, "a count")
    for name in _PROVENANCE:
        _check(name in data["provenance"], f"provenance.{name}", None, "a value")
    finished = data["provenance"]["finished"]
    _check(isinstance(finished, str), "provenance.finished", finished, "a time")
    _check_counts("provenance.skipped", data["provenance"].get("skipped", {}))


def _check_task(where: str, task: dict[str, Any]) -> None:
    options = task["num_options"]
    count = len(options) if isinstance(options, list) else 0
    several = count > 0 and all(_is_count(each) and each > 1 for each in options)
    _check(several, f"{where}.num_options", options, "a count of two or more for each row")
    chosen = ["answers", "predictions"]
    chosen += ["predictions_norm"] if task["predictions_norm"] is not None else []
    for name in chosen:
        value = task[name]
        fits = (
            isinstance(value, list)
            and len(value) == count
            and all(_is_count(v) and v < n for v, n in zip(value, options, strict=True))
        )
        _check(fits, f"{where}.{name}", value, f"{count} places among the options")
    ids = task["ids"]
    named = isinstance(ids, list) and len(ids) == count and all(isinstance(i, str) for i in ids)
    _check(named, f"{where}.ids", ids, f"{count} texts")
    _check(_is_count(task["truncated"]), f"{where}.truncated", task["truncated"], "a count")
    rows, load = task.get("rows"), task.get("expert_load")
    _check(rows is None or isinstance(rows, str), f"{where}.rows", rows, "a hash")
    if load is not None:
        counted = isinstance(load, list) and all(isinstance(layer, list) for layer in load)
        counted = counted and all(_is_count(each) for layer in load for each in layer)
        _check(counted, f"{where}.expert_load", load, "a list of counts for each layer")


def _check_counts(where: str, value: Any) -> None:
    counts = isinstance(value, dict) and all(map(_is_count, value.values()))
    _check(counts, where, value, "counts by name")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(condition: Any, where: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{where} is {_short(value)}: expected {expected}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
