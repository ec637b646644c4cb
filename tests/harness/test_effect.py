"""A tuned cell whose adapter does nothing fails: its scores would be the base model's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.models.weights import MODELS, resolve
from harness.request import single_task
from harness.run.inputs import InputLoader
from harness.schedule.executor import execute
from harness.store.records import RecordStore
from tasks.sources import open_source

from .builders import make_request

pytestmark = pytest.mark.long


def test_an_adapter_that_has_not_moved_fails_its_cell(tmp_path: Path) -> None:
    request = make_request(
        tasks=["piqa"], methods=["base", "lora", "mixlora"], limit_train=8, limit_eval=8
    )
    base, lora, mixlora = single_task()(request)
    assert mixlora.train is not None
    still = dataclasses.replace(
        mixlora, train=dataclasses.replace(mixlora.train, learning_rate=0.0)
    )
    loader = InputLoader(open_source(bundled=True), {"tiny": resolve(MODELS["tiny"])})
    outcome = execute([base, lora, still], loader, RecordStore(tmp_path), fresh=False)
    assert list(outcome.records) == [base, lora]
    ((failed, failure),) = outcome.failed.items()
    assert failed == still
    assert failure.reason.startswith(
        "NoEffectError: the adapter leaves the base model's logits unchanged"
    )
