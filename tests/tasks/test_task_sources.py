"""Every source gives the same examples, and a missing or broken file is named in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tasks import TASK_NAMES, get_task
from tasks.sources import DataError, HubSource, open_source


def write_split(root: Path, name: str, suffix: str, rows: list[dict[str, Any]]) -> Path:
    task = get_task(name)
    path = root / task.directory / f"{task.eval_split}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(lines) if suffix == ".jsonl.gz" else lines)
    return path


@pytest.mark.parametrize("name", TASK_NAMES)
def test_sources_give_equal_examples(
    name: str, rows: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    task = get_task(name)
    asked = []

    def load_dataset(path: str, config: str | None, *, revision: str | None, split: str) -> Any:
        asked.append((path, config, revision, split))
        return datasets.Dataset.from_list(rows[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = [
        task.parse(row, f"{task.eval_split}-{number}") for number, row in enumerate(rows[name], 1)
    ]
    for suffix in (".jsonl", ".jsonl.gz", ".parquet"):
        root = tmp_path / suffix.strip(".")
        write_split(root, name, suffix, rows[name])
        source = open_source(root)
        assert source.unavailable(task, task.eval_split) is None
        assert source.load(task, task.eval_split) == expected
    assert open_source().load(task, task.eval_split) == expected
    assert asked == [(task.hub.path, task.hub.config, task.hub.revision, task.eval_split)]


def test_labels_of_sources(tmp_path: Path) -> None:
    assert open_source().label == "hub"
    assert open_source(bundled=True).label == "bundled miniature"
    assert open_source(tmp_path).label == f"local directory {tmp_path.name}"


def test_missing_file_names_what_was_expected(tmp_path: Path) -> None:
    task = get_task("hellaswag")
    source = open_source(tmp_path)
    problem = source.unavailable(task, "train")
    assert problem is not None
    assert str(tmp_path / "hellaswag" / "train.jsonl") in problem
    assert problem.startswith("hellaswag: no train split")
    with pytest.raises(DataError, match="no train split"):
        source.load(task, "train")


def test_two_files_of_one_split_are_refused(rows: dict[str, Any], tmp_path: Path) -> None:
    for suffix in (".jsonl", ".parquet"):
        write_split(tmp_path, "piqa", suffix, rows["piqa"])
    with pytest.raises(DataError, match=r"validation\.jsonl and validation\.parquet"):
        open_source(tmp_path).load(get_task("piqa"), "validation")


def test_missing_directory_and_contradiction_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such directory"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="bundled"):
        open_source(tmp_path, bundled=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_bad_row_is_named(suffix: str, rows: dict[str, Any], tmp_path: Path) -> None:
    bad = [rows["piqa"][0], rows["piqa"][0] | {"label": 2}]
    path = write_split(tmp_path, "piqa", suffix, bad)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path).load(get_task("piqa"), "validation")
    assert str(caught.value) == (
        f"{path}, row 2, column label: got 2, expected 0 (sol1 is right) or 1 (sol2 is right)"
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_missing_column_is_named(suffix: str, rows: dict[str, Any], tmp_path: Path) -> None:
    del rows["piqa"][0]["goal"]
    path = write_split(tmp_path, "piqa", suffix, rows["piqa"])
    with pytest.raises(DataError) as caught:
        open_source(tmp_path).load(get_task("piqa"), "validation")
    assert str(caught.value) == f"{path}, row 1, column goal: missing, expected a non-empty text"


GOOD = b'{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (GOOD + b"{oops}\n", "row 2: not JSON"),
        (GOOD + b"\n", "row 2: not JSON"),
        (GOOD + GOOD.replace(b'"g"', b'"\xff"'), "row 2: not UTF-8"),
        (GOOD + b"[1, 2]\n", "row 2: got .* expected columns goal, sol1, sol2, label"),
        (GOOD + b"[" * 200_000 + b"\n", "row 2: .*nested"),
        (GOOD.replace(b"\n", b"") + GOOD, "row 1: not JSON"),
        (
            GOOD + b'{"goal": "g", "sol1": "a", "sol2": "b", "label": 0, "label": 1}',
            "row 2: .*twice",
        ),
        (GOOD.replace(b"}", b', "other": NaN}'), "row 1: .*NaN is no JSON"),
        (GOOD.replace(b"0", b"1" * 5_000), "row 1: not JSON that can be used"),
        (GOOD.replace(b"0", b"1" * 4_000), "row 1, column label: got 1111"),
        (GOOD.replace(b"0", b"[" * 900 + b"]" * 900), "row 1"),
        (GOOD.replace(b'"g"', b'"\\ud800"'), r"row 1, column goal: got '.ud800'"),
        (b"\xef\xbb\xbf" + GOOD, "row 1: not JSON .*BOM"),
    ],
)
def test_broken_lines_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "piqa" / "validation.jsonl"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(tmp_path).load(get_task("piqa"), "validation")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_row_of_an_id_names_both(rows: dict[str, Any], tmp_path: Path) -> None:
    first, second = rows["arc-e"]
    path = write_split(tmp_path, "arc-e", ".jsonl", [first, second, second | {"id": " q-1"}])
    with pytest.raises(DataError) as caught:
        open_source(tmp_path).load(get_task("arc-e"), "test")
    assert str(caught.value) == (
        f"{path}, row 3, column id: got 'q-1', which row 1 has, expected a non-empty text that no "
        "other row has"
    )


@pytest.mark.parametrize("kind", ["not gzip", "cut", "damaged", "not parquet"])
def test_broken_containers_are_named(kind: str, tmp_path: Path) -> None:
    packed = gzip.compress(GOOD * 500)
    content = {
        "not gzip": GOOD,
        "cut": packed[:-20],
        "damaged": packed[:30] + b"\x00" * 20 + packed[50:],
        "not parquet": GOOD,
    }[kind]
    suffix = ".parquet" if kind == "not parquet" else ".jsonl.gz"
    path = tmp_path / "piqa" / f"validation{suffix}"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path).load(get_task("piqa"), "validation")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [ConnectionError("offline\nsecond line"), FileNotFoundError("no data set"), KeyError()]
)
def test_hub_failure_points_to_data_dir(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        HubSource().load(get_task("arc-c"), "test")
    message = str(caught.value)
    assert "allenai/ai2_arc (ARC-Challenge) test" in message
    assert "--data-dir DIR with DIR/arc_challenge/test.jsonl" in message
    assert "\n" not in message


@pytest.mark.network
@pytest.mark.parametrize("name", TASK_NAMES)
def test_hub_delivers(name: str) -> None:
    task = get_task(name)
    assert len(open_source().load(task, task.eval_split)) >= 500
