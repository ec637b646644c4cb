"""Cells are named by their content; records come back as they were saved, or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cells.spec import Fingerprints, RunSpec, TrainSettings, cell_id
from harness.store.files import save_record, write_atomically
from harness.store.records import RecordStore

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


def test_a_record_without_checksum_is_refused_and_kept(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    record = make_record(make_spec(), [0], [0])
    path = store.save(record)
    path.write_text(json.dumps(record.to_json()) + "\n")
    with pytest.raises(ValueError, match=f"{path.name}: has no checksum.*delete it"):
        store.load(record.id)
    assert path.exists()


def wrong(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value where the dots of a name lead; what begins with a digit is a place in a list."""

    def change(content: Any) -> None:
        *path, last = [int(part) if part.isdigit() else part for part in name.split(".")]
        for part in path:
            content = content[part]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong("trainable_parameters", True), "trainable_parameters is True: "),
        (wrong("base_parameters", 0), "base_parameters is 0: "),
        (wrong("seconds.score", -1.0), "seconds.score is -1.0: "),
        (wrong("seconds.score", "1"), "seconds.score is '1': "),
        (wrong("training.rows", 0.5), "training.rows is 0.5: "),
        (wrong("training.other", 1), "training.other is 1: "),
        (wrong("provenance.finished", "a\nb"), "provenance.finished: expected a text of one line"),
        (wrong("provenance.skipped", {"arc-e test": -2}), "provenance.skipped.arc-e test is -2: "),
        (wrong("tasks.arc-e.truncated", None), "tasks.arc-e.truncated is None: "),
        (wrong("tasks.arc-e.num_options", []), "tasks.arc-e.num_options is []: "),
        (wrong("tasks.arc-e.num_options.1", 1), "tasks.arc-e.num_options.1 is 1: "),
        (wrong("tasks.arc-e.answers.1", 4), "tasks.arc-e: answers: expected 2 places"),
        (wrong("tasks.arc-e.predictions", [0]), "tasks.arc-e: predictions: expected 2 places"),
        (wrong("tasks.arc-e.ids", ["a"]), "tasks.arc-e: 1 ids: expected 2"),
        (wrong("tasks.arc-e.expert_load", [[-1]]), "tasks.arc-e.expert_load.0.0 is -1: "),
        (wrong("tasks.piqa", None), "tasks.piqa is None: "),
        (wrong("spec.later", 1), "spec: TypeError: "),
        (lambda content: content["tasks"].clear(), "tasks are []: expected ['arc-e']"),
        (lambda content: content["provenance"].pop("commit"), "provenance.commit: Field required"),
        (lambda content: content.pop("seconds"), "seconds: Field required"),
    ],
)
def test_what_is_wrong_in_a_record_is_named(change: Any, said: str, tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    path = store.save(make_record(make_spec(), [0, 3], [0, 1]))
    content = json.loads(path.read_text())
    del content["checksum"]
    change(content)
    save_record(path, content)
    with pytest.raises(ValueError, match=path.name) as error:
        store.all()
    assert f"not a record of this version ({said}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert path.exists()


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
