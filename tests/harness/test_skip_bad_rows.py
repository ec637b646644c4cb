"""`--skip-bad-rows`: what is left out, what is said of it, and that a cell is its rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.store.records import RecordStore
from harness.tables import get_table, table_names
from reproduce import main
from tests.test_cli import mistake

ARGUMENTS = ("--tasks", "obqa", "--methods", "base", "--limit-eval", "6")


def good(number: int) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "question_stem": f"How many legs have {number} dogs?",
        "choices": {"text": [str(4 * number), "none"], "label": ["A", "B"]},
        "answerKey": "A",
    }


def write(root: Path, lines: list[Any]) -> Path:
    folder = root / "openbookqa"
    folder.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(f"{text}\n" for text in texts))
    return folder / "test.jsonl"


def command(root: Path, output: str, *more: str) -> list[str]:
    return [*ARGUMENTS, "--data-dir", str(root), "--output", str(root / output), *more]


BAD = [good(1) | {"answerKey": "C"}, "{oops", [7], good(2) | {"question_stem": ""}, good(0)]


def test_bad_rows_are_left_out_counted_and_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [good(0), *BAD, good(3), good(4)]
    file = write(tmp_path, rows)
    line = mistake(capsys, *command(tmp_path, "refused"))
    assert f"{file}, row 2, column answerKey: got 'C'" in line
    assert not (tmp_path / "refused" / "records").exists()

    assert main(command(tmp_path, "skipped", "--skip-bad-rows")) == 0
    captured = capsys.readouterr()
    assert f"left out: {file}, row 2, column answerKey: got 'C'" in captured.err
    assert "and 4 more" in captured.err
    assert "- bad rows left out: obqa test 5" in captured.out
    (record,) = RecordStore(tmp_path / "skipped").all()
    assert record.provenance["skipped"] == {"obqa test": 5}
    assert record.tasks["obqa"].ids == ["q0", "q3", "q4"]
    facts = json.loads((tmp_path / "skipped/tables/main.provenance.json").read_text())
    assert facts["bad rows left out"] == {"obqa test": [5]}
    assert facts["rows"] == {"obqa": {"train": [], "evaluation": [3]}}
    assert facts["command"].endswith(
        "--data-dir DIR --skip-bad-rows --scoring choice --dtype float32 --forward fused"
    )

    # The table of the stored record says so too.
    assert main(command(tmp_path, "skipped", "--render-only")) == 0
    assert "- bad rows left out: obqa test 5" in capsys.readouterr().out


def test_a_cell_is_the_rows_that_are_left(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write(tmp_path, [good(0), good(1)])
    assert main(command(tmp_path, "output")) == 0
    (record,) = RecordStore(tmp_path / "output").all()
    assert "skipped" not in record.provenance
    assert "left out" not in capsys.readouterr().out
    # The option by itself changes nothing, and neither does a bad row after the same good ones:
    # the record is found, and the table counts the row all the same.
    for rows, count in (([good(0), good(1)], 0), ([good(0), good(1), "{"], 1)):
        write(tmp_path, rows)
        assert main(command(tmp_path, "output", "--skip-bad-rows")) == 0
        assert ("left out: obqa test 1" in capsys.readouterr().out) == bool(count)
        assert RecordStore(tmp_path / "output").all() == [record]
    # Other rows are another cell.
    write(tmp_path, [good(0), "{", good(1), good(2)])
    assert main(command(tmp_path, "output", "--skip-bad-rows")) == 0
    assert len(RecordStore(tmp_path / "output").all()) == 2
    # Of a file of which nothing is left there is no cell.
    write(tmp_path, BAD[:3])
    capsys.readouterr()
    line = mistake(capsys, *command(tmp_path, "output", "--skip-bad-rows"))
    assert f"{file}: no rows, expected at least one; left out: {file}, row 1, column" in line


def test_a_file_that_ends_too_early_is_refused_all_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import gzip

    file = write(tmp_path, [])
    file.unlink()
    lines = "".join(f"{json.dumps(good(n))}\n" for n in range(50)).encode()
    file.with_suffix(".jsonl.gz").write_bytes(gzip.compress(lines)[:-40])
    line = mistake(capsys, *command(tmp_path, "output", "--skip-bad-rows"))
    assert "test.jsonl.gz, row" in line and "cannot be read" in line


def test_every_table_that_runs_cells_has_the_option() -> None:
    having = {
        name
        for name in table_names()
        if "--skip-bad-rows" in [option.flag for option in get_table(name).options()]
    }
    without = {"audit", "params", "efficiency", "scaling"}
    assert having == set(table_names()) - without
