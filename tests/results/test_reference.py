"""The committed reference tables are what their committed records print."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from reproduce import main

SPEED = Path(__file__).resolve().parents[2] / "results" / "reference" / "speed"

NAMES = sorted(path.stem for path in (SPEED / "tables").glob("*.md"))


def test_there_are_tables_to_check() -> None:
    assert len(NAMES) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_reference_table_is_what_its_records_print(name: str, tmp_path: Path) -> None:
    """By the command that the table itself names."""
    shutil.copytree(SPEED / "measurements", tmp_path / "measurements")
    facts = json.loads((SPEED / "tables" / f"{name}.provenance.json").read_text())
    python, script, *arguments = shlex.split(facts["command"])
    assert (python, script) == ("python", "reproduce.py")
    assert main([*arguments, "--render-only", "--output", str(tmp_path)]) == 0
    for kind in ("md", "csv", "json", "provenance.json"):
        file = Path("tables") / f"{name}.{kind}"
        assert (tmp_path / file).read_text() == (SPEED / file).read_text(), file
