"""Stored records, failures and checkpoints: used as they are, set aside, or refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.run.checkpoint import Checkpoint
from harness.store.files import checksum
from harness.store.records import Failure, FailureStore, RecordStore, RunRecord
from reproduce import main
from tests.harness.builders import make_record, make_request, make_spec

from .cases import ENDED, cases, run, run_command
from .mutations import damaged, dumps, mutate, put_in_place

pytestmark = pytest.mark.long

RENDER = ("--render-only", "--scoring", "label", "--tasks", "arc-e", "--methods", "base,lora")


def record() -> RunRecord:
    spec = make_request(tasks=["arc-e"]).cell("tiny", "lora", ["arc-e"], ["arc-e"], 0)
    made = make_record(spec, [0, 1, 1, 2], [0, 1, 0, 3], [0, 1, 1, 2])
    tasks = {"arc-e": dataclasses.replace(made.tasks["arc-e"], expert_load=[[3, 1], [2, 2]])}
    provenance = made.provenance | {"skipped": {"arc-e test": 2}}
    return dataclasses.replace(made, tasks=tasks, provenance=provenance)


def failure() -> Failure:
    return Failure(
        spec=make_spec("lora"),
        fingerprints=record().fingerprints,
        status="failed",
        reason="FloatingPointError: training loss is nan at step 3",
        finished="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "output"


def write_mutated(data: Any, file: Path, content: dict[str, Any]) -> bool:
    """Mutate a file's content, mostly with a checksum that fits; whether its own still is there."""
    shutil.rmtree(file.parents[1], ignore_errors=True)
    file.parent.mkdir(parents=True)
    # As it would be read.
    content = json.loads(json.dumps(content))
    before = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(0, 2))):
        mutate(data.draw, content)
    stamped = data.draw(st.sampled_from([True, True, True, False]))
    try:
        content["checksum"] = checksum(json.loads(dumps(content))) if stamped else "0"
    except (ValueError, RecursionError):
        content["checksum"] = "0"
    raw = dumps(content)
    if data.draw(st.integers(0, 3)) == 0:
        raw = data.draw(damaged(raw))
    is_file = put_in_place(data.draw, file, raw)
    try:
        now = json.loads(raw.decode()) if is_file else None
    except (ValueError, RecursionError):
        return False
    # A missing checksum is refused, so that equal content alone is not enough.
    return isinstance(now, dict) and now == before | {"checksum": checksum(before)}


@cases(quick=60, torture=900)
@given(data=st.data())
def test_records(output: Path, data: Any) -> None:
    made = record()
    store = RecordStore(output)
    same = write_mutated(data, store.path(made.id), made.to_json())
    loaded = run("records", lambda: store.load(made.id), names=[made.id])
    if same:
        assert loaded.result == made
    elif loaded.result is not None:
        # Edited, with a checksum that fits: it is what the file says.
        assert json.loads(json.dumps(loaded.result.to_json())) == {
            key: value
            for key, value in json.loads(store.path(made.id).read_bytes()).items()
            if key != "checksum"
        }
        assert loaded.result.spec == made.spec
    ended = run_command("records", main, [*RENDER, "--output", str(output)])
    if ended.refusal:
        assert loaded.refusal and made.id in ended.refusal
    elif loaded.result is not None:
        answers = loaded.result.tasks["arc-e"]
        right = sum(a == p for a, p in zip(answers.answers, answers.predictions, strict=True))
        assert f"{100 * right / len(answers.answers):.1f}" in ended.result


@cases(quick=60, torture=500)
@given(data=st.data())
def test_failures(output: Path, data: Any) -> None:
    made, store = failure(), FailureStore(output)
    same = write_mutated(data, output / "failures" / f"{made.id}.json", made.to_json())
    loaded = run("failures", lambda: store.load(made.id), names=[made.id])
    if same:
        assert loaded.result == made
    elif loaded.result is not None:
        assert loaded.result.spec == made.spec
        assert loaded.result.status in ("failed", "OOM")
        assert len(str(loaded.result).splitlines()) == 1
    every = run("failures", store.all, names=[made.id])
    if loaded.result is not None:
        assert every.result == [loaded.result]


class Counts:
    """Something that is kept in a checkpoint."""

    def state_dict(self) -> Any:
        return {"seen": [1, 2, 3]}

    def load_state_dict(self, state: Any) -> None:
        raise NotImplementedError


@cases(quick=40, torture=600)
@given(data=st.data())
def test_checkpoints(tmp_path_factory: pytest.TempPathFactory, output: Path, data: Any) -> None:
    """A file that is not a whole checkpoint is removed and said to be; training begins anew."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    made = output / "made.pt"
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    versions = {"torch": "2", "accumulation": 1}
    Checkpoint(made, 1, versions, {"counts": Counts()}).save(
        3, model, optimizer, torch.device("cpu")
    )
    state = torch.load(made, weights_only=True)
    if data.draw(st.booleans()):
        content = data.draw(damaged(made.read_bytes()))
    else:
        odd = st.sampled_from([None, 3, {}, [], "x", torch.zeros(2), {"accumulation": 2}])
        for name in data.draw(st.lists(st.sampled_from(sorted(state)), max_size=2, unique=True)):
            del state[name]
            if data.draw(st.booleans()):
                state["made_by" if data.draw(st.booleans()) else name] = data.draw(odd)
        torch.save(data.draw(st.sampled_from([state, state, state, [state], 7])), made)
        content = made.read_bytes()
    file = output / "checkpoints" / "pack.pt"
    file.parent.mkdir()
    put_in_place(data.draw, file, content)
    checkpoint = Checkpoint(file, 1, versions)
    ended = run("checkpoints", checkpoint.load)
    assert not ended.refusal
    if ended.result is None:
        assert not file.is_file()
        ENDED["checkpoints"].subtract(["result"])
        ENDED["checkpoints"].update(["refusal"])
    else:
        assert ended.result.keys() == state.keys() and ended.result["made_by"] == versions
        # As it was saved, in bytes that are damaged as well.
        assert repr(ended.result) == repr(state)
