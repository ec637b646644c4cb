"""Records made up for the tests of `results/`."""

from __future__ import annotations

import dataclasses
from typing import Any

from harness.cells.spec import Fingerprints, RunSpec
from harness.options import options_of
from harness.request import Request
from harness.store.records import RunRecord, TaskResult


def make_request(preset: str = "tiny", **changes: Any) -> Request:
    """A request; what it does not know as an option is a mistake of the test."""
    if unknown := set(changes) - {each.name for each in options_of(Request)}:
        raise TypeError(f"no such option: {unknown}")
    return Request.of({"preset": preset, "scoring": "label", "device": "cpu"} | changes)


def make_spec(
    method: str = "lora", task: str = "arc-e", model: str = "tiny", seed: int = 0, **changes: Any
) -> RunSpec:
    preset = "tiny" if model == "tiny" else "paper"
    spec = make_request(preset).cell(model, method, [task], [task], seed)
    return dataclasses.replace(spec, **changes)


def make_record(
    spec: RunSpec,
    answers: list[int],
    predictions: list[int],
    predictions_norm: list[int] | None = None,
    trainable: int = 1000,
    base: int = 100_000,
    finished: str = "2026-01-01T00:00:00+00:00",
    eval_data: str = "rows",
) -> RunRecord:
    """A record of one task with these predictions."""
    task = TaskResult(
        ids=[f"row-{index}" for index in range(len(answers))],
        answers=answers,
        predictions=predictions,
        predictions_norm=predictions_norm,
        num_options=[4] * len(answers),
        truncated=0,
    )
    return RunRecord(
        spec=spec,
        fingerprints=Fingerprints("train", eval_data, "model", "prompts"),
        trainable_parameters=0 if spec.method == "base" else trainable,
        base_parameters=base,
        tasks={spec.eval_tasks[0]: task},
        training={} if spec.method == "base" else {"rows": 7},
        seconds={"load": 0.5, "score": 1.0},
        provenance={
            "finished": finished,
            "commit": "abc123",
            "python": "3.11.7",
            "versions": {"torch": "2.13.0"},
            "hardware": {"device": "cpu"},
            "data": "bundled miniature",
            "weights": "bundled tiny",
        },
    )
