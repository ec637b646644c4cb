"""Edits of reported.csv: the numbers that the file has, or the row and column that are wrong."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness.numbers import comparison
from harness.paper.reported import COLUMNS, KEY_COLUMNS, REPORTED_CSV, read_reported

from .cases import cases, run
from .mutations import damaged, put_in_place

pytestmark = pytest.mark.long

ROWS = [
    line.split(",")
    for line in REPORTED_CSV.read_text(encoding="utf-8").splitlines()[1:]
    if '"' not in line
]
#: What a cell is replaced by: names of other columns, near misses, numbers that are none.
_CELLS = st.one_of(
    st.sampled_from(sorted({cell for row in ROWS for cell in row})),
    st.sampled_from(
        ["nan", "inf", "1e3", "-1", "100.1", " 5", "5 ", "1_0", "٣", "--1", "5.", "+5"]
    ),
    st.sampled_from(
        ["gemma-2B", "mixlra", "arc", "\x00", "a\u2028b", "\ufeff", "9" * 300, "\u20135"]
    ),
    st.text(st.characters(exclude_characters=',"\r\n', exclude_categories=["Cs"]), max_size=6),
)


def allowed(row: list[str]) -> set[str]:
    """The columns of a row that are not as they can be; apart from `harness.paper.reported`."""
    cells = dict(zip(COLUMNS, row, strict=True))
    wrong = set()
    for column in ("table", "model", "task", "unit"):
        # Every name that is allowed is somewhere in the paper's own rows, or a model that is ours.
        names = {other[COLUMNS.index(column)] for other in ROWS} | {"smollm2-135m"}
        if cells[column] not in names or (cells[column] == "smollm2-135m" and column != "model"):
            wrong.add(column)
    if cells["metric"] in ("accuracy", "params") and cells["method"] not in (
        "base",
        "lora",
        "dora",
        "mixlora",
        "mixdora",
    ):
        wrong.add("method")
    if not cells["metric"]:
        wrong.add("metric")
    for column in ("method", "setting", "metric", "value"):
        if cells[column].strip() != cells[column] or not cells[column].isprintable():
            wrong.add(column)
    if cells["table"] != "3":
        try:
            value = Decimal(cells["value"])
        except InvalidOperation:
            return wrong | {"value"}
        digits = cells["value"].removeprefix("-").replace(".", "", 1)
        plain = set(digits) <= set("0123456789") and cells["value"][-1:] != "."
        small = len(cells["value"]) <= 20 and value.is_finite() and abs(value) <= 10**12
        if not plain or cells["value"].startswith((".", "-.")) or not small:
            return wrong | {"value"}
        if cells["unit"] == "pp":
            fits = -100 <= value <= 100
        else:
            fits = value >= 0 and (value <= 100 or cells["metric"] not in ("accuracy", "params"))
        if not fits:
            wrong.add("value")
    return wrong


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reported") / "reported.csv"


def lines(rows: list[list[str]]) -> bytes:
    return "".join(f"{','.join(row)}\n" for row in [list(COLUMNS), *rows]).encode()


@cases(quick=120, torture=1200)
@given(data=st.data())
def test_edited_cells(file: Path, data: Any) -> None:
    start = data.draw(st.integers(0, len(ROWS) - 6))
    rows = [list(row) for row in ROWS[start : start + 5]]
    for _ in range(data.draw(st.integers(0, 2))):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.integers(0, len(COLUMNS) - 1))] = data.draw(_CELLS)
    if data.draw(st.integers(0, 5)) == 0:
        rows.append(data.draw(st.sampled_from(rows)))
    file.write_bytes(lines(rows))
    ended = run("reported.csv", lambda: read_reported(file), names=[str(file)])
    keys: list[list[str]] = []
    for number, row in enumerate(rows, start=2):
        key = row[: len(KEY_COLUMNS)]
        wrong = allowed(row) or ({"table"} if key in keys else set())
        if wrong:
            assert f"{file}, row {number}, column" in ended.refusal
            named = ended.refusal.partition(", column")[2].removeprefix("s").strip()
            assert named.split(":")[0].split(",")[0] in wrong
            return
        keys.append(key)
    assert [[row[column] for column in COLUMNS] for row in ended.result] == rows
    assert [row["line"] for row in ended.result] == [str(n + 2) for n in range(len(rows))]


@cases(quick=60, torture=800)
@given(data=st.data())
@example(data=None).via("a file of no bytes")
def test_damaged_file(file: Path, data: Any) -> None:
    """Whatever the bytes, every number that is taken from the file stands there."""
    content = lines(ROWS[20:26])
    content = b"" if data is None else data.draw(damaged(content))
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    file.unlink(missing_ok=True)
    readable = True
    if data is None:
        file.write_bytes(content)
    else:
        readable = put_in_place(data.draw, file, content)
    ended = run("reported.csv", lambda: read_reported(file), names=[str(file)])
    if ended.result is not None:
        assert readable
        text = content.decode().replace("\r\n", "\n")
        given_rows = [line.split(",") for line in text.splitlines()[1:]]
        assert [[row[column] for column in COLUMNS] for row in ended.result] == given_rows
        assert not any(map(allowed, given_rows))


def test_a_cell_of_a_megabyte_is_refused(file: Path) -> None:
    rows = [list(row) for row in ROWS[:3]]
    rows[1][6] = "9" * 1_000_000
    file.unlink(missing_ok=True)
    file.write_bytes(lines(rows))
    ended = run("reported.csv", lambda: read_reported(file), names=[f"{file}, row 3"])
    assert ended.refusal


def test_the_papers_own_rows_are_read_as_they_stand() -> None:
    frame = pd.read_csv(REPORTED_CSV, dtype=str, keep_default_na=False)
    assert len(frame) == 600
    for table in sorted({*frame["table"]} - {"3"}):
        rows = frame[frame["table"] == table]
        found = comparison.load_reported(table)
        assert found["value"].tolist() == [float(text) for text in rows["value"]]
        assert all(math.isfinite(value) for value in found["value"])
        assert found["metric"].tolist() == rows["metric"].tolist()
