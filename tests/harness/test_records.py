"""Cells are named by their content; records come back as they were saved, or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.cells.spec import Fingerprints, RunSpec, TrainSettings, cell_id
from harness.store.files import save_record, write_atomically
from harness.store.records import RecordStore
from harness.store.stamp import stamp

from .builders import make_record, make_spec


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for record in (
        make_record(make_spec("mixlora"), [0, 1, 2], [0, 1, 1], [2, 1, 0]),
        make_record(make_spec("base", "boolq"), [0, 1], [1, 1]),
    ):
        path = store.save(record)
        assert path.name == f"{record.id}.json"
        assert store.load(record.id) == record
    assert len(store.all()) == 2
    store.delete(record.id)
    assert store.load(record.id) is None
    assert len(store.all()) == 1


def changed(value: Any) -> Any:
    """A value of the same kind that differs."""
    if value is None or isinstance(value, int):
        return 7
    return f"{value}x" if isinstance(value, str) else (*value, ("other", 1))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(RunSpec)])
def test_every_field_of_a_spec_names_another_cell(name: str) -> None:
    spec, fingerprints = make_spec("mixlora"), Fingerprints("a", "b", "c", "d")
    value = TrainSettings(epochs=9) if name == "train" else changed(getattr(spec, name))
    other = dataclasses.replace(spec, **{name: value})
    assert cell_id(other, fingerprints) != cell_id(spec, fingerprints)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Fingerprints)])
def test_every_fingerprint_names_another_cell(name: str) -> None:
    spec, fingerprints = make_spec(), Fingerprints("a", "b", "c", "d")
    other = dataclasses.replace(fingerprints, **{name: changed(getattr(fingerprints, name))})
    assert cell_id(spec, other) != cell_id(spec, fingerprints)


def test_the_id_is_the_same_in_every_process() -> None:
    # A literal, so that an unstable hash cannot pass; change it with the fields of a spec only.
    spec = RunSpec("m", "base", (), ("t",), 0, "label", "hub", None, 3, "float32", "cpu", (), None)
    assert cell_id(spec, Fingerprints("a", "b", "c", "d", 1)) == "57ae62c77b246cf90cd5"


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not an object": lambda text: "[]",
    "not text": lambda text: text.replace("lora", "l\udcffra"),
    "another cell": lambda text: text.replace('"seed": 0', '"seed": 5'),
    "another result": lambda text: text.replace('"predictions": [0', '"predictions": [1'),
    "another number": lambda text: text.replace('"score": 1.0', '"score": 1.5'),
    "field missing": lambda text: json.dumps(
        {k: v for k, v in json.loads(text).items() if k != "tasks"}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_set_aside(tmp_path: Path, capsys: Any, damage: str) -> None:
    store = RecordStore(tmp_path)
    record = make_record(make_spec(), [0], [0])
    path = store.save(record)
    written = path.read_bytes()
    path.write_bytes(DAMAGES[damage](path.read_text()).encode("utf-8", "surrogateescape"))
    assert path.read_bytes() != written
    assert (store.load(path.stem) if damage != "cut" else store.all() or None) is None
    (left,) = path.parent.iterdir()
    assert left.name == f"{path.name}.damaged"
    (warning,) = capsys.readouterr().err.splitlines()
    assert str(path) in warning and left.name in warning
    assert store.all() == []
    assert store.save(record).read_bytes() == written


def test_a_renamed_record_is_set_aside(tmp_path: Path, capsys: Any) -> None:
    store = RecordStore(tmp_path)
    path = store.save(make_record(make_spec(), [0], [0]))
    path.rename(path.with_name("0123.json"))
    assert store.all() == []
    assert "does not match its name" in capsys.readouterr().err


def test_the_layout_of_the_file_does_not_matter(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    record = make_record(make_spec(), [0, 3], [1, 3])
    path = store.save(record)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=3))
    assert store.load(record.id) == record


def test_a_record_of_other_code_is_kept_and_refused(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.save(make_record(make_spec(), [0], [0]))
    content = json.loads(path.read_text())
    del content["checksum"]
    save_record(path, content | {"later": 1})
    with pytest.raises(ValueError, match=rf"{path.name}: not a record of this version") as error:
        store.all()
    assert "delete it" in str(error.value) and "\n" not in str(error.value)
    assert path.exists()


def test_a_record_that_lacks_the_codes_version_has_no_other(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.save(make_record(make_spec(), [0], [0]))
    content = json.loads(path.read_text())
    del content["checksum"], content["fingerprints"]["results_version"]
    save_record(path, content)
    with pytest.raises(ValueError, match="fingerprints: expected train_data, eval_data"):
        store.all()


def test_what_is_wrong_is_not_repeated_at_length(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.save(make_record(make_spec(), [0], [0]))
    content = json.loads(path.read_text())
    del content["checksum"]
    content["spec"]["eval_tasks"] = ["x" * 100_000]
    save_record(path, content)
    with pytest.raises(ValueError, match=path.name) as error:
        store.all()
    assert len(str(error.value)) < 3_000


def test_old_records_are_read_once_they_are_stamped(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    old, new = make_record(make_spec(), [0], [0]), make_record(make_spec(seed=1), [0], [1])
    path = store.save(old)
    # As they were written before.
    path.write_text(json.dumps(old.to_json()) + "\n")
    damaged = store.save(new)
    damaged.write_text(damaged.read_text().replace('"predictions": [1]', '"predictions": [0]'))
    with pytest.raises(ValueError, match=r"no checksum.*python -m harness.store.stamp"):
        store.load(old.id)
    assert stamp(store.directory) == 1
    assert store.all() == [old]
    assert stamp(store.directory) == 0
    with pytest.raises(ValueError, match="no records"):
        stamp(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.save(make_record(make_spec(), [0], [0]))
    remains = path.with_name(f".{path.name}.k3s9")
    remains.write_text("{")
    assert len(store.all()) == 1
    store.save(make_record(make_spec(), [0], [0]))
    assert list(store.directory.iterdir()) == [path]
