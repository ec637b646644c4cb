"""What other papers report: the file is read as it stands, and edits of it are refused by row."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pandas as pd
import pytest

from harness.paper.reported import (
    ELSEWHERE_COLUMNS,
    ELSEWHERE_CSV,
    ELSEWHERE_KEY_COLUMNS,
    read_elsewhere,
)


def edited(file: Path, line: int, column: str, text: str) -> Path:
    """A copy of the file in which one cell is another."""
    with ELSEWHERE_CSV.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    rows[line - 1][ELSEWHERE_COLUMNS.index(column)] = text
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return file


def test_the_rows_are_read_as_they_stand() -> None:
    frame = pd.read_csv(ELSEWHERE_CSV, dtype=str, keep_default_na=False)
    rows = read_elsewhere(ELSEWHERE_CSV)
    assert len(rows) == len(frame) == 201
    found = pd.DataFrame(rows)[list(frame.columns)]
    assert found.equals(frame) and list(frame.columns) == list(ELSEWHERE_COLUMNS)
    assert not frame.duplicated(list(ELSEWHERE_KEY_COLUMNS)).any()
    # By hand, from the paper: LoRA and MixLoRA on ARC-c in S'MoRE's Table 2, LLaMA-3.2-1B.
    assert [(row["method"], row["value"]) for row in rows[:2]] == [
        ("lora", "36.27"),
        ("mixlora", "38.98"),
    ]


@pytest.mark.parametrize(
    ("column", "text"),
    [
        *(("value", text) for text in ("-1", "100.1", "1e1", "nan", "forty", " 5", "")),
        *(("arxiv", text) for text in ("2404", "2404.151590", "arXiv:2404.15159", " ")),
        *(("unit", text) for text in ("", "pp", "GB", "percent")),
        *(("method", text) for text in ("", "dora", "MixLoRA")),
        *(("source", text) for text in ("", "full-text", "blog")),
        *(("independent", text) for text in ("", "maybe", "Yes")),
        *(("arxiv_checked", text) for text in ("", "recalled")),
        *(("paper", text) for text in ("", "a\nb")),
        *(("model", text) for text in ("", " x")),
        *(("metric", text) for text in ("", "accuracy ")),
        *(("other", text) for text in (" x", "a\u2028b", "\x00")),
    ],
)
def test_an_edit_that_means_nothing_is_refused(column: str, text: str, tmp_path: Path) -> None:
    line = random.Random(f"{column} {text}").randrange(2, 120)  # accuracies in percent
    file = edited(tmp_path / "elsewhere.csv", line, column, text)
    with pytest.raises(ValueError, match=f"column {column}") as raised:
        read_elsewhere(file)
    said = str(raised.value)
    # A cell that holds a line break makes the rows after it begin one line later.
    assert said.startswith(f"{file}, row {line + text.count(chr(10))}, ") and "\n" not in said


def test_a_number_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.csv"
    lines = ELSEWHERE_CSV.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join([*lines, lines[6]]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"row 203, columns .*there twice, row 7 is it too"):
        read_elsewhere(file)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.csv"
    file.write_text("paper,table,model\nx,1,y\n")
    with pytest.raises(ValueError, match=r"column arxiv, arxiv_checked, .* is missing"):
        read_elsewhere(file)
