"""The committed reference tables are what their committed records print."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reproduce import main

SPEED = Path(__file__).resolve().parents[2] / "results" / "reference" / "speed"

#: Table -> the options beside its name, shape and --render-only.
COMMANDS = {
    "efficiency-llama2-7b": [],
    "efficiency-smollm2-135m": [],
    "scaling-llama2-7b": ["--runs", "5"],
    "scaling-smollm2-135m": ["--runs", "5", "--layers", "30"],
}


def test_every_reference_table_is_checked() -> None:
    assert {path.stem for path in (SPEED / "tables").glob("*.md")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reference_table_is_what_its_records_print(name: str, tmp_path: Path) -> None:
    shutil.copytree(SPEED / "measurements", tmp_path / "measurements")
    table, _, shape = name.partition("-")
    arguments = ["--table", table, "--shape", shape, *COMMANDS[name], "--render-only"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    for kind in ("md", "csv", "json", "provenance.json"):
        file = Path("tables") / f"{name}.{kind}"
        assert (tmp_path / file).read_text() == (SPEED / file).read_text(), file
