"""The committed reference tables are what their committed records print."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from harness.report import write_report
from reproduce import main

pytestmark = pytest.mark.long

REFERENCE = Path(__file__).resolve().parents[2] / "results"

#: Folder of tables -> the folder of records that they are made from.
RECORDS = {"speed": "measurements", "small": "records", "small-192-rows": "records"}

TABLES = sorted(REFERENCE.glob("*/tables/*.md"))


def test_there_are_tables_to_check() -> None:
    assert {table.parents[1].name for table in TABLES} == set(RECORDS)
    assert len(TABLES) >= 8


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.parents[1].name}/{table.stem}")
def test_a_reference_table_is_what_its_records_print(table: Path, tmp_path: Path) -> None:
    """By the command that the table itself names."""
    folder = table.parents[1]
    records = RECORDS[folder.name]
    shutil.copytree(folder / records, tmp_path / records)
    facts = json.loads(table.with_suffix(".provenance.json").read_text())
    python, script, *arguments = shlex.split(facts["command"])
    assert (python, script) == ("python", "reproduce.py")
    assert main([*arguments, "--render-only", "--output", str(tmp_path)]) == 0
    for kind in ("md", "csv", "json", "provenance.json", "table.json"):
        file = Path("tables") / f"{table.stem}.{kind}"
        assert (tmp_path / file).read_text() == (folder / file).read_text(), file


def test_the_studys_report_is_of_its_tables_and_figures(tmp_path: Path) -> None:
    study = REFERENCE / "small"
    for folder in ("tables", "figures"):
        shutil.copytree(study / folder, tmp_path / folder)
    assert write_report(tmp_path).read_bytes() == (study / "report.html").read_bytes()


def test_the_study_is_small_enough_to_be_committed() -> None:
    files = [path for path in REFERENCE.glob("small*/**/*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
