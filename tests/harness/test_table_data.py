"""Tables as data: what is printed is the number, and files are read as they were written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.report import write_report
from harness.show.data import (
    COMPUTED,
    MEASURED,
    REPORTED,
    Block,
    Cell,
    TableData,
    number,
)

RESULTS = Path(__file__).resolve().parents[2] / "results"
COMMITTED = sorted(path for path in RESULTS.glob("*/tables/*.table.json"))


def example() -> TableData:
    rows = [
        [
            Cell("LoRA"),
            Cell("71.9 ± 4.3", 71.94, {"stderr": 4.31}, "collapsed", MEASURED),
            Cell("-4.7 (0.001)", -4.69, {"p": 0.0008, "p_holm": 0.0024}, "significant", MEASURED),
        ],
        [
            Cell(),
            Cell("99.5", 99.46, source=MEASURED, beside=number(103.2, ".1f", REPORTED)),
            Cell("OOM", mark="OOM", source=MEASURED),
        ],
    ]
    return TableData(
        name="example",
        title="An example",
        blocks=[
            Block(text="What it is."),
            Block("tiny: measured", text="accuracy", head=["method", "a", "b"], rows=rows),
            Block("Apart", level=3, notes=["one note", "and another"]),
        ],
        numbers=[{"source": "measured", "value": 71.94}, {"source": "reported", "value": None}],
        provenance={"command": "python reproduce.py", "seeds": [0, 1], "versions": {"torch": "2"}},
        appendix=[Block("After", notes=["the provenance"])],
    )


def test_markdown_by_hand() -> None:
    assert (
        example().markdown
        == """# An example

What it is.

## tiny: measured

accuracy

| method   |            a |                b |
|:---------|-------------:|-----------------:|
| LoRA     | 71.9 ± 4.3 † | **-4.7 (0.001)** |
|          | 99.5 (103.2) |              OOM |

### Apart

- one note
- and another

## Provenance

- command: python reproduce.py
- seeds: 0; 1
- versions: torch 2

## After

- the provenance
"""
    )


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = example()
    table.write(tmp_path)
    assert TableData.read(tmp_path / "tables", "example") == table
    empty = TableData("empty", "", [Block()], [], {})
    empty.write(tmp_path)
    assert TableData.read(tmp_path / "tables", "empty") == empty


def test_a_number_keeps_what_it_does_not_print() -> None:
    assert number(71.94, ".1f", COMPUTED, low=71.0, high=None) == Cell(
        "71.9", 71.94, {"low": 71.0}, source=COMPUTED
    )
    assert number(None, ".1f", COMPUTED) == Cell("-", source=COMPUTED)
    assert number(None, ".1f", COMPUTED).missing and not number(0.0, ".1f", COMPUTED).missing
    assert Cell().missing and not Cell("OOM", mark="OOM").missing


@pytest.mark.parametrize(
    "path", COMMITTED, ids=lambda path: f"{path.parents[1].name}/{path.name.partition('.')[0]}"
)
def test_what_is_printed_is_the_number(path: Path) -> None:
    """Of every committed cell: the printed digits are those of the value and of its error."""
    table = TableData.read(path.parent, path.name.removesuffix(".table.json"))
    known = {row["value"] for row in table.numbers}
    checked = 0
    for cell in (c for block in table.blocks for row in block.rows for c in row):
        if cell.value is None:
            assert not re.match(r"[<+-]?\d", cell.text), cell
            continue
        printed = re.match(r"[+-]?[\d,]+(?:\.(\d+))?", cell.text)
        assert printed, cell
        half = 0.5 * 10.0 ** -len(printed[1] or "") + 1e-9
        assert abs(float(printed[0].replace(",", "")) - cell.value) <= half, cell
        if "stderr" in cell.error:
            assert f"± {cell.error['stderr']:.1f}" in cell.text
        if "p" in cell.error:
            assert (cell.mark == "significant") == (cell.error["p_holm"] < 0.05)
            low = cell.error["p"] < 0.001
            assert f"({'<0.001' if low else format(cell.error['p'], '.3f')})" in cell.text
        if cell.source in (MEASURED, REPORTED):
            checked += cell.value in known
    assert checked > 30


EDITS: dict[str, tuple[Any, str]] = {
    "no json": (None, "Invalid JSON"),
    "a list": ([], "content"),
    "no title": ({"blocks": []}, "title"),
    "a source that there is not": (
        {"title": "", "blocks": [{"head": ["a"], "rows": [[{"text": "1", "source": "x' y='"}]]}]},
        r"blocks\.0\.rows\.0\.0\.source",
    ),
    "a heading of another level": (
        {"title": "", "blocks": [{"heading": "a", "level": 9}]},
        r"blocks\.0\.level",
    ),
    "a text that is none": ({"title": "", "blocks": [{"notes": [{"a": 1}]}]}, r"blocks\.0\.notes"),
    "a value that is no number": (
        {"title": "", "blocks": [{"head": ["a"], "rows": [[{"value": "much"}]]}]},
        r"rows\.0\.0\.value",
    ),
    "a ragged row": (
        {"title": "", "blocks": [{"head": ["a", "b"], "rows": [[{"text": "1"}]]}]},
        "as many cells as there are columns",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_broken_file_is_named_with_the_place(edit: str, tmp_path: Path) -> None:
    example().write(tmp_path)
    path = tmp_path / "tables" / "example.table.json"
    content, words = EDITS[edit]
    path.write_text("{" if content is None else json.dumps(content))
    with pytest.raises(ValueError, match=words) as raised:
        write_report(tmp_path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("ending", [".provenance.json", ".json", ".table.json", ".csv"])
def test_a_missing_file_is_named(ending: str, tmp_path: Path) -> None:
    example().write(tmp_path)
    path = tmp_path / "tables" / f"example{ending}"
    path.unlink()
    with pytest.raises(ValueError, match="no such file") as raised:
        write_report(tmp_path)
    assert str(raised.value).startswith(f"{path}: ")


def test_data_of_another_table_changes_the_page(tmp_path: Path) -> None:
    """The report is made from the cells, not from the Markdown beside them."""
    table = example()
    table.write(tmp_path)
    (tmp_path / "tables" / "example.md").write_text("# Something else\n\n| a |\n|--|\n| 1 |\n")
    page = write_report(tmp_path).read_text()
    assert "Something else" not in page and "71.9 ± 4.3 †" in page
    other = dataclasses.replace(table, blocks=[Block(head=["a"], rows=[[Cell("12.5", 12.5)]])])
    other.write(tmp_path)
    page = write_report(tmp_path).read_text()
    assert 'data-number="12.5"' in page and "71.9" not in page
