"""A loss that is not finite: the cell ends at that step, says so, and nothing else is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.models.weights import MODELS, resolve
from harness.request import single_task
from harness.run.inputs import InputLoader
from harness.schedule.executor import execute
from harness.store.records import RecordStore
from tasks.sources import open_source

from .builders import make_request

pytestmark = pytest.mark.long


@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cell_ends_at_that_step_and_the_grid_goes_on(
    bad: str,
    dtype: str,
    fault: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward: Any = LlamaForCausalLM.forward
    steps: list[torch.dtype] = []

    def broken(self: Any, **kwargs: Any) -> Any:
        outputs = forward(self, **kwargs)
        if self.training:
            steps.append(self.lm_head.weight.dtype)
            if len(steps) == 2:
                fault(f"{bad} loss")
                outputs.loss = outputs.loss * float(bad)
        return outputs

    monkeypatch.setattr(LlamaForCausalLM, "forward", broken)
    request = make_request(
        tasks=["obqa"],
        methods=["lora", "base"],
        scoring="choice",
        limit_train=32,
        limit_eval=4,
        dtype=dtype,
    )
    loader = InputLoader(open_source(None, bundled=True), {"tiny": resolve(MODELS["tiny"])})
    store = RecordStore(tmp_path)
    outcome = execute(single_task()(request), loader, store, fresh=False)
    assert [spec.method for spec in outcome.records] == ["base"]
    (failure,) = outcome.failed.values()
    assert (failure.status, failure.spec.dtype) == ("failed", dtype)
    assert failure.reason.startswith(f"FloatingPointError: training loss is {bad} at step 2 (")
    # Of four steps the second is the last, nothing is tried again in another dtype.
    assert steps == [getattr(torch, dtype)] * 2
    assert [record.spec.method for record in store.all()] == ["base"]
