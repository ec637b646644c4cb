"""Running out of memory: which batch it was, what goes on, and what --auto-batch makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from harness.cells.spec import RunOptions, RunSpec
from harness.models.weights import MODELS, resolve
from harness.request import single_task
from harness.run.inputs import InputLoader
from harness.schedule.executor import Outcome, execute
from harness.store.records import RecordStore
from tasks.sources import open_source

from .builders import make_request

pytestmark = pytest.mark.long

Limit = Callable[[int], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, fault: Callable[[str], None]) -> Limit:
    """Has a training forward of more rows than that ask for what no machine has."""
    forward: Any = LlamaForCausalLM.forward

    def limit(rows: int, training: bool = True) -> None:
        def limited(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
            if self.training == training and len(input_ids) > rows:
                fault("out of memory")
                torch.empty(1 << 55)
            return forward(self, input_ids, **kwargs)

        monkeypatch.setattr(LlamaForCausalLM, "forward", limited)

    return limit


def cells(*methods: str) -> list[RunSpec]:
    request = make_request(
        tasks=["obqa"], methods=methods, scoring="choice", limit_train=16, limit_eval=6
    )
    return single_task()(request)


def run(output: Path, *methods: str, **options: Any) -> Outcome:
    loader = InputLoader(open_source(None, bundled=True), {"tiny": resolve(MODELS["tiny"], None)})
    how = RunOptions(**options)
    return execute(cells(*methods), loader, RecordStore(output), fresh=False, options=how)


def test_the_batch_is_named_and_the_grid_goes_on(limit: Limit, tmp_path: Path) -> None:
    limit(4)
    outcome = run(tmp_path, "base", "lora")
    assert [spec.method for spec in outcome.records] == ["base"]
    ((spec, failure),) = outcome.failed.items()
    assert (spec.method, failure.status) == ("lora", "OOM")
    assert failure.reason.startswith("training step 1, micro-batch of 8 rows of ")
    assert "can't allocate memory" in failure.reason
    assert "\n" not in failure.reason


def test_scoring_names_its_batch_too(limit: Limit, tmp_path: Path) -> None:
    limit(5, training=False)
    ((_, failure),) = run(tmp_path, "base").failed.items()
    assert failure.status == "OOM"
    # Six prompts of four options.
    assert failure.reason.startswith("scoring, batch of 24 rows of ")


def test_auto_batch_gives_the_result_of_the_accumulation_it_comes_to(
    limit: Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The preset has no dropout and LoRA no auxiliary loss: all but rounding is the same."""
    whole = run(tmp_path / "whole", "lora").records
    limit(3)
    (halved,) = run(tmp_path / "halved", "lora", auto_batch=True).records.values()
    (record,) = whole.values()
    assert (record.training["accumulation"], halved.training["accumulation"]) == (1, 4)
    assert halved.id == record.id
    for name in ("first_loss", "last_loss"):
        assert halved.training[name] == pytest.approx(record.training[name], rel=1e-4)
    # And bit for bit what was asked for as such.
    monkeypatch.undo()
    (spec,) = cells("lora")
    assert spec.train is not None
    asked = dataclasses.replace(spec, train=dataclasses.replace(spec.train, accumulation=4))
    loader = InputLoader(open_source(None, bundled=True), {"tiny": resolve(MODELS["tiny"], None)})
    outcome = execute([asked], loader, RecordStore(tmp_path / "asked"), fresh=False)
    (same,) = outcome.records.values()
    assert same.training == halved.training
    assert same.tasks == halved.tasks


def test_auto_batch_ends_at_one_row(limit: Limit, tmp_path: Path) -> None:
    limit(0)
    ((_, failure),) = run(tmp_path, "lora", auto_batch=True).failed.items()
    assert failure.reason.startswith("training step 1, micro-batch of 1 rows of ")


def test_a_resumed_auto_batch_keeps_its_micro_batches(
    limit: Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(4)
    options = {"auto_batch": True, "checkpoint_steps": 1}
    (whole,) = run(tmp_path / "whole", "lora", **options).records.values()

    def kill(*arguments: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.run.scoring.score", kill)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", "lora", **options)
    monkeypatch.undo()
    limit(0)  # no step is left to be trained, so that there is none to fail
    (resumed,) = run(tmp_path / "killed", "lora", **options).records.values()
    assert resumed.training == whole.training
    assert resumed.tasks == whole.tasks
