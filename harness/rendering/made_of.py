"""What an accuracy table was made of: its command, its cells' settings, versions, hardware."""

from __future__ import annotations

from typing import Any

from ..cells.methods import BASE
from ..options import command
from ..request import Request, TableLayout
from ..schedule.executor import Outcome
from ..store.records import RunRecord
from .rendered import distinct


def provenance_of(asked: TableLayout, request: Request, outcome: Outcome) -> dict[str, Any]:
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
        # What --auto-batch made of it, where it did.
        {**record.spec.to_json()["train"], **_accumulation(record)}
        for record in records
        if record.spec.train is not None
    ]
    # Of this run, and of those that the records are from: the same rows can be what is left of a
    # file in another state.
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
    facts: dict[str, Any] = {
        "table": asked.name,
        "command": command(asked.name, request),
        "preset": request.preset,
        "models": list(request.models),
        "weights": distinct(record.provenance["weights"] for record in records),
        "data": distinct(record.provenance["data"] for record in records),
        "rows": rows,
        # Not where there are none, so that tables from before this could be asked for stay.
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
    return facts


def _accumulation(record: RunRecord) -> dict[str, int]:
    used = record.training.get("accumulation")
    return {} if used is None else {"accumulation": used}
