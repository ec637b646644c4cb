"""Cells are named by their content; records come back as they were saved, or are refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from results.records import RecordStore, write_atomically
from results.spec import Fingerprints, RunSpec, TrainSettings, cell_id

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


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"seed": 0', '"seed": 5'),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "tasks"}),
    ],
    ids=["cut", "not an object", "edited", "field missing"],
)
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, damage: Any) -> None:
    store = RecordStore(tmp_path)
    path = store.save(make_record(make_spec(), [0], [0]))
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=path.name) as error:
        store.load(path.stem)
    assert "delete it" in str(error.value) and "\n" not in str(error.value)


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
