"""Shards of a table: each cell is one shard's, whatever is done already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cells.spec import RunOptions, RunSpec
from harness.request import single_task
from harness.run.inputs import Job
from harness.schedule.executor import execute, stored
from harness.store.records import FailureStore, RecordStore, RunRecord
from reproduce import main

from .builders import make_record, make_request
from .test_executor import loader

pytestmark = pytest.mark.long


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The cells that are run, by a stand-in that fails for DoRA."""
    cells: list[RunSpec] = []

    def run_job(job: Job) -> Iterator[RunRecord]:
        cells.extend(cell.spec for cell in job.cells)
        for cell in job.cells:
            if cell.spec.method == "dora":
                raise FloatingPointError("training loss is nan at step 3")
            record = make_record(cell.spec, [0, 1], [0, 1], [0, 1])
            yield RunRecord(**vars(record) | {"fingerprints": cell.fingerprints})

    monkeypatch.setattr("harness.run.cell.run_job", run_job)
    return cells


def cells(*methods: str) -> list[RunSpec]:
    return single_task()(make_request(tasks=["piqa", "obqa"], methods=methods, seeds=[0, 1, 2]))


@pytest.mark.parametrize(("shards", "packed"), [(2, 1), (3, 2), (7, 1)])
def test_shards_run_every_cell_once(
    shards: int, packed: int, ran: list[RunSpec], tmp_path: Path
) -> None:
    wanted, store = cells("base", "mixlora"), RecordStore(tmp_path)
    sizes = []
    for shard in range(1, shards + 1):
        before = len(ran)
        options = RunOptions(packed=packed, shard=(shard, shards))
        outcome = execute(wanted, loader(), store, fresh=False, options=options)
        sizes.append(len(ran) - before)
        assert outcome.computed == sizes[-1]
        assert len(outcome.records) + len(outcome.not_run) == len(wanted)
    assert outcome.not_run == [] and len(stored(wanted, store).records) == len(wanted)
    assert Counter(spec.title for spec in ran) == Counter(spec.title for spec in wanted)
    if packed == 1:  # they go round
        assert max(sizes) - min(sizes) <= 1


def test_what_a_shard_has_depends_on_no_record(ran: list[RunSpec], tmp_path: Path) -> None:
    wanted, store = cells("base", "lora"), RecordStore(tmp_path)
    execute(wanted[:3], loader(), store, fresh=False)
    ran.clear()
    second = RunOptions(shard=(2, 4))
    execute(wanted, loader(), store, fresh=False, options=second)
    assert ran == [wanted[5]]
    execute(wanted, loader(), store, fresh=True, options=second)
    assert ran == [wanted[5], wanted[1], wanted[5]]


def test_another_shards_failure_is_not_this_ones(
    ran: list[RunSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--tasks", "piqa", "--methods", "lora,dora,mixlora", "--output", str(tmp_path)]
    assert main([*grid, "--shard", "2/3"]) == 1
    assert len(FailureStore(tmp_path).all()) == 1
    first = row_of("DoRA", capsys.readouterr().out)
    assert first.split("|")[4].strip() == "failed"
    assert main([*grid, "--shard", "1/3"]) == 0
    printed = capsys.readouterr().out
    for method in ("DoRA", "MixLoRA"):
        assert row_of(method, printed).split("|")[4].strip() == "not run"
    assert "- not run: 2 cells of other shards" in printed
    assert "- cells: 1 done, 0 failed, 0 unavailable, 2 not run" in printed
    assert [spec.method for spec in ran] == ["dora", "lora"]


def row_of(method: str, printed: str) -> str:
    return next(line for line in printed.splitlines() if line.startswith(f"| {method} "))


@pytest.mark.parametrize("text", ["0/3", "4/3", "x/y", "3", "1/0", "1/2/3", "-1/3", ""])
def test_a_shard_that_is_none_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--shard", text, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("reproduce.py: argument --shard: ") and len(said.splitlines()) == 1
    assert "expected" in said
