"""Measurements made up for the tests of `results/measure` and its tables."""

from __future__ import annotations

from typing import Any

from harness.cells.spec import RESULTS_VERSION
from harness.command_line import parse
from harness.speed.records import DONE, MeasureRecord
from harness.speed.spec import MeasureSpec, Subject
from harness.speed.table import MeasuredPlan

Seconds = dict[str, list[float]]


def make_plan(*arguments: str) -> MeasuredPlan:
    """The plan of a command line."""
    table, options = parse(list(arguments))
    plan = table.plan(options)
    if not isinstance(plan, MeasuredPlan):
        raise TypeError(f"{table.name} measures nothing")
    return plan


def make_measure_spec(name: str = "lora", **changes: Any) -> MeasureSpec:
    subject = Subject(name, name.partition("/")[0], (("r", 4),), 1, 2, 8)
    fields = {
        "quantity": "latency",
        "workload": "inference",
        "shape": "smollm2-135m",
        "layers": 1,
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "runs": 3,
        "subjects": (subject,),
    }
    return MeasureSpec(**fields | changes)


def make_measure_record(
    spec: MeasureSpec,
    seconds: list[Seconds] | None = None,
    peak: tuple[int, int] | None = None,
    status: str = DONE,
    reason: str = "",
    commit: str = "abc123",
    finished: str = "2026-01-01T00:00:00+00:00",
    **memory: tuple[int, int],
) -> MeasureRecord:
    """A record with these times per subject, or this (peak, baseline) of the process.

    Memory sources that are not given are unavailable.
    """
    sources = ("torch_allocated", "torch_reserved", "nvml_device", "nvml_process", "process")
    known = memory if peak is None else memory | {"process": peak}
    found = {
        source: {
            "peak_bytes": known[source][0] if source in known else None,
            "baseline_bytes": known[source][1] if source in known else None,
            "reason": None if source in known else f"unavailable: no {source} here",
        }
        for source in sources
    }
    reports = [
        {
            "latency": {
                phase: {"seconds": times, "source": "perf_counter"}
                for phase, times in subject.items()
            },
            "memory": found,
        }
        for subject in seconds or [{}]
    ]
    return MeasureRecord(
        spec=spec,
        status=status,
        reason=reason,
        reports=reports if status == DONE else [],
        load_average=0.5 if status == DONE else None,
        results_version=RESULTS_VERSION,
        provenance={
            "finished": finished,
            "commit": commit,
            "python": "3.11.7",
            "versions": {"torch": "2.13.0"},
            "hardware": {"device": spec.device},
        },
    )
