"""--verify: a stored cell that comes out the same is called so, one that does not is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.store.files import save_record
from harness.store.records import RecordStore
from reproduce import main

pytestmark = pytest.mark.long

GRID = ("--tasks", "arc-e,obqa", "--methods", "base,mixlora", "--limit-train", "16")
GRID += ("--limit-eval", "6", "--packed", "2")


def verified(output: Path, capsys: pytest.CaptureFixture[str], count: str = "9") -> tuple[int, str]:
    status = main([*GRID, "--output", str(output), "--verify", count])
    return status, capsys.readouterr().out


def edit(path: Path, change: Any) -> None:
    """Change a record, and its checksum with it."""
    content = json.loads(path.read_text())
    del content["checksum"]
    change(content)
    save_record(path, content)


def test_what_is_stored_is_compared_with_what_comes_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GRID, "--output", str(tmp_path), "--verify", "1"]) == 2
    assert "no cell of the table is stored" in capsys.readouterr().err

    assert main([*GRID, "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    records = RecordStore(tmp_path).all()
    before = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    status, printed = verified(tmp_path, capsys)
    assert status == 0 and "4 of 4 stored cells give the same" in printed
    assert {path: path.read_bytes() for path in (tmp_path / "records").iterdir()} == before
    status, printed = verified(tmp_path, capsys, "1")
    assert status == 0 and "1 of 1 stored cells" in printed

    def other_loss(content: dict[str, Any]) -> None:
        content["training"]["last_loss"] *= 1 + 1e-15
        content["provenance"]["versions"]["torch"] = "1.0"

    (changed, *_) = [record for record in records if record.spec.method == "mixlora"]
    edit(RecordStore(tmp_path).path(changed.id), other_loss)
    status, printed = verified(tmp_path, capsys)
    assert status == 1 and "3 of 4 stored cells give the same" in printed
    (line,) = [line for line in printed.splitlines() if "differs: " in line]
    assert changed.spec.title in line and "training.last_loss: " in line
    assert "was made otherwise: versions.torch: '1.0' -> " in printed
    rows = json.loads((tmp_path / "tables" / "verify-main.json").read_text())
    assert [row["id"] for row in rows if not row["same"]] == [changed.id]


@pytest.mark.parametrize("extra", [["--verify", "0"], ["--verify", "1", "--render-only"]])
def test_impossible_wishes_are_one_line(
    extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GRID, "--output", str(tmp_path), *extra]) == 2
    assert "verify is " in capsys.readouterr().err
