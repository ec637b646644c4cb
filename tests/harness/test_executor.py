"""Running cells: what is skipped, what a failure costs, what is read before the first cell runs."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cells import methods
from harness.cells.spec import RunSpec
from harness.models.weights import ResolvedWeights
from harness.request import single_task
from harness.run.inputs import InputLoader, Job
from harness.schedule.executor import execute, stored
from harness.store import locks
from harness.store.files import OutputError
from harness.store.records import FailureStore, OutOfMemory, RecordStore, RunRecord
from mixlora.config import FORWARDS
from tasks.sources import open_source

from .builders import make_record, make_request

ROW = {"goal": "open it", "sol1": "pull", "sol2": "push", "label": 0}


def loader(data_dir: Path | None = None, **templates: Any) -> InputLoader:
    weights = ResolvedWeights("bundled", Path("nowhere"), None, "hash of the weights", "weights")
    source = open_source(data_dir, bundled=data_dir is None)
    return InputLoader(source, {"tiny": weights}, templates)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The cells that are run, by a stand-in that fails for DoRA."""
    cells: list[RunSpec] = []

    def run_job(job: Job) -> Iterator[RunRecord]:
        cells.extend(cell.spec for cell in job.cells)
        if any(cell.spec.method == "dora" for cell in job.cells):
            raise FloatingPointError("training loss is nan at step 3\nmore")
        for cell in job.cells:
            if cell.spec in (job.wanted or ()):
                record = make_record(cell.spec, [0, 1], [0, 1])
                yield RunRecord(**vars(record) | {"fingerprints": cell.fingerprints})

    monkeypatch.setattr("harness.run.cell.run_job", run_job)
    return cells


def cells(**changes: Any) -> list[RunSpec]:
    return single_task()(make_request(tasks=["piqa"], **changes))


def test_done_cells_are_not_run_again(ran: list[RunSpec], tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    wanted = cells(methods=["base", "lora"])
    assert execute(wanted, loader(), store, fresh=False).computed == 2
    again = execute(wanted, loader(), store, fresh=False)
    assert (again.computed, len(again.records), len(ran)) == (0, 2, 2)
    more = execute(cells(methods=["base", "lora", "mixlora"]), loader(), store, fresh=False)
    assert (more.computed, len(more.records)) == (1, 3)
    assert execute(wanted, loader(), store, fresh=True).computed == 2


def test_a_failure_costs_its_own_cell_only(ran: list[RunSpec], tmp_path: Path) -> None:
    wanted = cells(methods=["lora", "dora", "mixlora"])
    outcome = execute(wanted, loader(), RecordStore(tmp_path), fresh=False)
    assert [spec.method for spec in outcome.records] == ["lora", "mixlora"]
    ((spec, failure),) = outcome.failed.items()
    assert spec.method == "dora"
    (log,) = (tmp_path / "logs").iterdir()
    assert log.name == f"{failure.id}.log"
    assert failure.status == "failed"
    told = f"FloatingPointError: training loss is nan at step 3 (traceback in logs/{log.name})"
    assert failure.reason == told
    assert "run_job" in log.read_text()
    assert len(list((tmp_path / "records").iterdir())) == 2


def test_inputs_are_loaded_once(
    ran: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell's, whether it fails or not, and the rows of a split for all cells together."""
    cells_loaded: list[RunSpec] = []
    splits_loaded: list[tuple[str, str]] = []
    ours = loader()
    load, load_split = ours.load, ours.source.load

    def counted(spec: RunSpec) -> Any:
        cells_loaded.append(spec)
        return load(spec)

    def counted_split(task: Any, split: str, *rest: Any) -> Any:
        splits_loaded.append((task.name, split))
        return load_split(task, split, *rest)

    monkeypatch.setattr(ours, "load", counted)
    monkeypatch.setattr(ours.source, "load", counted_split)
    wanted = cells(methods=["base", "lora", "dora", "mixlora"], limit_train=40)
    outcome = execute(wanted, ours, RecordStore(tmp_path), fresh=False)
    assert [spec.method for spec in outcome.failed] == ["dora"]
    assert cells_loaded == wanted
    assert sorted(splits_loaded) == [("piqa", "train"), ("piqa", "validation")]


def test_logs_of_cells_of_one_title_are_two(ran: list[RunSpec], tmp_path: Path) -> None:
    for limit in (3, 4):  # no part of the title
        execute(cells(methods=["dora"], limit_train=limit), loader(), RecordStore(tmp_path), False)
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_a_failure_is_known_until_the_cell_succeeds(
    ran: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, wanted = RecordStore(tmp_path), cells(methods=["lora", "dora"])
    failed = execute(wanted, loader(), store, fresh=False).failed
    assert stored(wanted, store).failed == failed != {}
    # It is tried again, and what it was trained to is not.
    again = execute(wanted, loader(), store, fresh=False)
    assert [spec.method for spec in ran] == ["lora", "dora", "dora"]
    assert again.failed.keys() == failed.keys()

    def run_job(job: Job) -> Iterator[RunRecord]:
        (cell,) = job.cells
        record = make_record(cell.spec, [0, 1], [0, 1])
        yield RunRecord(**vars(record) | {"fingerprints": cell.fingerprints})

    monkeypatch.setattr("harness.run.cell.run_job", run_job)
    assert execute(wanted, loader(), store, fresh=False).failed == {}
    after = stored(wanted, store)
    assert (after.failed, len(after.records)) == ({}, 2)


def test_the_newer_of_record_and_failure_is_rendered(ran: list[RunSpec], tmp_path: Path) -> None:
    """They can be of different data or code; of the same, the record has removed the failure."""
    store = RecordStore(tmp_path)
    wanted = cells(methods=["dora"])
    old, new = "2020-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"
    store.save(make_record(wanted[0], [0], [0], eval_data="old", finished=old))
    execute(wanted, loader(), store, fresh=False)
    assert stored(wanted, store).failed.keys() == set(wanted)
    assert stored(wanted, store).records == {}
    store.save(make_record(wanted[0], [0], [0], eval_data="new", finished=new))
    assert stored(wanted, store).failed == {}


def test_a_damaged_record_is_run_again(ran: list[RunSpec], tmp_path: Path) -> None:
    store, wanted = RecordStore(tmp_path), cells(methods=["base", "lora"])
    first = execute(wanted, loader(), store, fresh=False)
    path = store.path(first.records[wanted[1]].id)
    path.write_bytes(path.read_bytes()[:-9])
    again = execute(wanted, loader(), store, fresh=False)
    assert [spec.method for spec in ran] == ["base", "lora", "lora"]
    assert again.records == first.records
    assert path.exists() and path.with_name(f"{path.name}.damaged").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_what_another_process_has_settled_meanwhile_is_taken_over(
    fresh: bool, ran: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process runs both cells between this one's plan and its first lock."""
    store, wanted = RecordStore(tmp_path), cells(methods=["lora", "dora"])
    if fresh:
        execute(wanted, loader(), store, fresh=False)
        ran.clear()
    (lora, dora) = wanted

    def taken(path: Path, wait: bool = False) -> Any:
        monkeypatch.undo()
        spec, prints = lora, loader().load(lora).fingerprints
        other = make_record(spec, [0, 1], [1, 1])
        store.save(RunRecord(**vars(other) | {"fingerprints": prints}))
        FailureStore(tmp_path).note(dora, prints, OutOfMemory("elsewhere"))
        return locks.taken(path)

    monkeypatch.setattr("harness.schedule.work.taken", taken)
    outcome = execute(wanted, loader(), store, fresh=fresh)
    assert ran == [] and outcome.computed == 0
    assert outcome.records[lora].tasks["piqa"].predictions == [1, 1]
    assert outcome.failed[dora].status == "OOM"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "disk full"),
        (errno.EROFS, "output not writable"),
        (errno.EIO, "disk broken"),
    ],
)
def test_what_cannot_be_saved_is_said_and_stops_the_run(
    number: int,
    kind: str,
    ran: list[RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    fault: Callable[[str], None],
) -> None:
    store, wanted = RecordStore(tmp_path), cells(methods=["base", "lora", "mixlora"])
    execute(wanted[:1], loader(), store, fresh=False)

    def full(handle: int) -> None:
        fault(kind)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=rf"cannot write .*json: {os.strerror(number)}"):
        execute(wanted, loader(), store, fresh=False)
    assert [spec.method for spec in ran] == ["base", "lora"]
    assert f"computed, but not saved: {wanted[1].title}" in capsys.readouterr().err
    assert len(store.all()) == 1 == len(list(store.directory.iterdir()))


def test_bad_data_stops_before_anything_runs(ran: list[RunSpec], tmp_path: Path) -> None:
    for split, rows in (("train", [ROW]), ("validation", [ROW, {**ROW, "label": 2}])):
        path = tmp_path / "data" / "piqa" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"validation.jsonl, row 2, column label: got 2"):
        execute(cells(), loader(tmp_path / "data"), RecordStore(tmp_path), fresh=False)
    assert ran == []


def test_a_task_without_data_is_unavailable_by_name(ran: list[RunSpec], tmp_path: Path) -> None:
    path = tmp_path / "data" / "piqa"
    path.mkdir(parents=True)
    (path / "validation.jsonl").write_text(json.dumps(ROW) + "\n")
    wanted = cells(methods=["base", "lora"])
    outcome = execute(wanted, loader(tmp_path / "data"), RecordStore(tmp_path), fresh=False)
    assert [spec.method for spec in outcome.records] == ["base"]  # it needs no training rows
    ((_, reason),) = outcome.unavailable.items()
    assert reason.startswith("piqa: no train split") and "train.jsonl" in reason


def test_other_prompts_are_another_cell() -> None:
    spec = cells(methods=["lora"], scoring="choice")[0]
    ours = loader().load(spec)
    theirs = loader(piqa={"choice": "Goal: {question}"}).load(spec)
    assert ours.fingerprints.prompts != theirs.fingerprints.prompts
    assert theirs.eval_set("piqa").prompts[0].text.startswith("Goal: ")


def test_all_methods_see_the_same_rows_in_the_same_order() -> None:
    first, *others = [
        loader().load(spec) for spec in cells(methods=["lora", "dora", "mixlora"], limit_train=50)
    ]
    for other in others:
        assert other.training_prompts() == first.training_prompts()
        assert other.fingerprints == first.fingerprints


def test_the_newest_record_is_rendered_whatever_its_device(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    (spec,) = cells(methods=["lora"], device="cuda")
    for day, data in ((2, "newer"), (1, "older")):
        stamp = f"2026-01-0{day}T00:00:00+00:00"
        store.save(make_record(spec, [0, 1], [0, 1], finished=stamp, eval_data=data))
    (asked,) = cells(methods=["lora"], device="auto")
    assert stored([asked], store).records[asked].fingerprints.eval_data == "newer"
    assert stored(cells(methods=["lora"], device="cpu"), store).records == {}


def test_forwards_are_named_alike() -> None:
    assert tuple(FORWARDS) == methods.FORWARDS
