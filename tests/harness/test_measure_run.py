"""Which measurements are made, kept, tried again and found; what one failure costs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from harness.run import provenance
from harness.speed import profiling
from harness.speed.records import MeasureRecord, MeasureStore
from harness.speed.run import measure_missing
from harness.speed.spec import MeasureSpec, measurement_id
from harness.store import locks

from .measure_builders import make_measure_record, make_measure_spec

SPECS = [make_measure_spec(name) for name in ("lora", "dora", "mixlora/fused")]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names measured, by a stand-in for the process that has no memory for DoRA."""
    names: list[str] = []

    def call(target: str, argument: dict[str, Any], environment: Any) -> dict[str, Any]:
        spec = MeasureSpec.from_json(json.loads(json.dumps(argument)))
        names.append(spec.measured.name)
        if spec.measured.name == "dora":
            raise profiling.OutOfMemory(f"{target}: killed")
        if spec.measured.name == "mixlora/fused":
            raise RuntimeError(f"{target}: ValueError: no such thing")
        reports = make_measure_record(spec, [{"forward": [0.1, 0.2, 0.3]}]).reports
        return {"reports": reports, "load_average": 0.25, "device_name": "a processor"}

    monkeypatch.setattr(profiling, "call_in_fresh_process", call)
    return names


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commit of the code, as a list of one to change."""
    current = ["abc123"]
    monkeypatch.setattr(provenance, "commit", lambda: current[0])
    return current


def measured(tmp_path: Path, fresh: bool = False) -> dict[MeasureSpec, MeasureRecord]:
    return measure_missing(SPECS, MeasureStore(tmp_path), fresh)


def test_every_end_is_recorded_and_only_failures_are_tried_again(
    made: list[str], commit: list[str], tmp_path: Path
) -> None:
    records = measured(tmp_path)
    assert [(r.status, r.reason) for r in records.values()] == [
        ("done", ""),
        ("OOM", "killed"),
        ("failed", "ValueError: no such thing"),
    ]
    assert records[SPECS[0]].load_average == 0.25
    assert records[SPECS[0]].provenance["hardware"]["device_name"] == "a processor"
    assert len(list((tmp_path / "measurements").iterdir())) == 3
    assert list(measured(tmp_path)) == SPECS
    assert made == ["lora", "dora", "mixlora/fused", "mixlora/fused"]


def test_fresh_measures_all_again(made: list[str], commit: list[str], tmp_path: Path) -> None:
    measured(tmp_path)
    measured(tmp_path, fresh=True)
    assert made == ["lora", "dora", "mixlora/fused"] * 2


def test_other_code_measures_all_again_and_both_are_kept(
    made: list[str], commit: list[str], tmp_path: Path
) -> None:
    first = measured(tmp_path)
    commit[0] = "def456"
    assert measured(tmp_path)[SPECS[0]].id != first[SPECS[0]].id
    assert made == ["lora", "dora", "mixlora/fused"] * 2
    assert len(list((tmp_path / "measurements").iterdir())) == 6


@pytest.mark.parametrize("unnamed", ["abc123-dirty", "unknown"])
def test_code_that_is_no_commit_is_never_reused_but_rendered(
    unnamed: str,
    made: list[str],
    commit: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commit[0] = unnamed
    measured(tmp_path)
    measured(tmp_path)
    assert made == ["lora", "dora", "mixlora/fused"] * 2
    assert f"code is {unnamed}" in capsys.readouterr().err
    newest = MeasureStore(tmp_path).newest(SPECS)
    assert [record.provenance["commit"] for record in newest.values()] == [unnamed] * 3


@pytest.mark.parametrize("fresh", [False, True])
def test_what_another_process_measures_meanwhile_is_taken_over(
    fresh: bool,
    made: list[str],
    commit: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other process makes the first of them while this one waits for the lock."""
    store = MeasureStore(tmp_path)
    if fresh:
        measured(tmp_path)
        made.clear()
    theirs = make_measure_record(SPECS[0], [{"forward": [0.7]}])

    def taken(path: Path, wait: bool) -> Any:
        assert wait and path == tmp_path / "locks" / "measurements.lock"
        monkeypatch.setattr("harness.speed.run.taken", locks.taken)
        store.save(theirs)
        return locks.taken(path, wait)

    monkeypatch.setattr("harness.speed.run.taken", taken)
    assert measured(tmp_path, fresh)[SPECS[0]] == theirs
    assert made == ["dora", "mixlora/fused"]


def test_edits_during_a_command_do_not_rename_its_records(
    made: list[str], commit: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter(["abc123", *["abc123-dirty"] * 9])
    monkeypatch.setattr(provenance, "commit", lambda: next(commits))
    assert {r.provenance["commit"] for r in measured(tmp_path).values()} == {"abc123"}


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    store = MeasureStore(tmp_path)
    record = make_measure_record(SPECS[0], [{"forward": [0.1, 0.2]}], peak=(7, 3))
    store.save(record)
    assert store.made_with(SPECS[0], "abc123") == record
    assert store.made_with(SPECS[0], "def456") is None
    assert store.made_with(SPECS[1], "abc123") is None


def test_the_newest_of_any_device_is_found(tmp_path: Path) -> None:
    store = MeasureStore(tmp_path)
    on_gpu = make_measure_spec(device="cuda", threads=16)
    for day, code in ((1, "older"), (3, "newest"), (2, "middle")):
        stamp = f"2026-01-0{day}T00:00:00+00:00"
        store.save(make_measure_record(on_gpu, [{}], commit=code, finished=stamp))
    store.save(make_measure_record(make_measure_spec(layers=2), [{}]))
    anywhere = make_measure_spec(device="auto", threads=0)
    assert store.newest([anywhere])[anywhere].provenance["commit"] == "newest"
    assert store.newest([make_measure_spec(), make_measure_spec(device="cuda")]) == {}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(MeasureSpec)])
def test_every_field_is_part_of_the_id(field: str) -> None:
    spec = make_measure_spec()
    value = getattr(spec, field)
    other: Any = f"{value}x" if isinstance(value, str) else value * 2
    changed = dataclasses.replace(spec, **{field: other})
    assert measurement_id(changed, "abc123") != measurement_id(spec, "abc123")


@pytest.mark.parametrize("text", ["", "[]", '{"id": 1}'])
def test_a_file_that_is_no_record_is_set_aside(text: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "measurements" / f"{measurement_id(SPECS[0], 'abc123')}.json"
    path.parent.mkdir()
    path.write_text(text)
    assert MeasureStore(tmp_path).made_with(SPECS[0], "abc123") is None
    assert [file.name for file in path.parent.iterdir()] == [f"{path.name}.damaged"]
    assert str(path) in capsys.readouterr().err


def test_an_edited_or_renamed_measurement_is_set_aside(tmp_path: Path, capsys: Any) -> None:
    store = MeasureStore(tmp_path)
    store.save(make_measure_record(SPECS[0], [{"forward": [0.1, 0.2]}]))
    (path,) = store.directory.iterdir()
    path.write_text(path.read_text().replace("0.1", "0.3"))
    assert store.newest(SPECS) == {}
    assert "checksum" in capsys.readouterr().err
    store.save(make_measure_record(SPECS[0], [{}]))
    path.rename(store.directory / "0123.json")
    assert store.newest(SPECS) == {}
    assert "0123.json: content does not match its name" in capsys.readouterr().err
