"""Numbers that papers report, read from `results/paper` and checked. Torch-free.

``reported.csv`` holds every number that the MixLoRA paper prints; ``reported_elsewhere.csv`` holds
what other papers and users measured for LoRA and MixLoRA. Both have one row for each number. A row
that was edited so that it no longer makes sense is refused, and its line is named.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.cells.methods import METHOD_TITLES
from harness.models.shapes import SHAPES
from tasks import TASK_NAMES

_FOLDER = Path(__file__).parents[2] / "results" / "paper"

REPORTED_CSV = _FOLDER / "reported.csv"
ELSEWHERE_CSV = _FOLDER / "reported_elsewhere.csv"

#: The columns that say what a number of the MixLoRA paper is of; no two rows agree in all of them.
KEY_COLUMNS = ("table", "model", "method", "setting", "task", "metric")
COLUMNS = (*KEY_COLUMNS, "value", "unit")

#: The columns that say what a number of another paper is of; no two rows agree in all of them.
ELSEWHERE_KEY_COLUMNS = ("paper", *KEY_COLUMNS, "protocol")

#: All columns of ``reported_elsewhere.csv``. "arxiv_checked" says whether the identifier was looked
#: up, "independent" is "no" for numbers of the authors and copies of them, "source" says where the
#: number was read, and "other" holds rivals' numbers of the same row as text.
ELSEWHERE_COLUMNS = (
    *("paper", "arxiv", "arxiv_checked", *COLUMNS),
    *("independent", "source", "protocol", "other"),
)

#: The name in the task column of the mean over all tasks of a table.
AVERAGE = "avg"

_TABLES = (*"123456789", "fig5", "abstract")
_UNITS = ("", "%", "pp", "GB", "us/token", "examples")
#: The table of settings, whose values are not all numbers.
_SETTINGS = "3"
# A number as printed has no exponent, no infinity and no spaces; its digits say how it was rounded.
_NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)

_YES_OR_NO = ("yes", "no")
_ELSEWHERE_NAMES = {
    "arxiv_checked": _YES_OR_NO,
    "method": ("lora", "mixlora"),
    "unit": ("%", "s", "ms", "h", "MiB"),
    "independent": _YES_OR_NO,
    "source": ("full text", "secondary", "model card", "issue"),
}
_ARXIV = re.compile(r"([0-9]{4}\.[0-9]{5})?", re.ASCII)

Row = dict[str, str]

#: By column: what is wrong in it, and what is expected there.
_Problems = dict[str, tuple[str, str]]


def place_of(table: str) -> str:
    """What a name in the table column stands for: "Table 8", "Figure 5", "abstract"."""
    return f"Table {table}" if table.isdigit() else table.replace("fig", "Figure ")


def read_reported(file: Path) -> list[Row]:
    """All numbers of the MixLoRA paper as they are printed.

    Args:
        file: `REPORTED_CSV`, or a file like it.

    Returns:
        The rows by column, with the number of their line (the header is line 1) under "line".

    Raises:
        ValueError: The file cannot be read or lacks a column, or a row has another number of cells,
            a name that is not known, a value that is not a number of its unit, or a key that an
            earlier row has. The message is one line that names file, row and column.
    """
    return _read(file, COLUMNS, KEY_COLUMNS, _problems)


def read_elsewhere(file: Path) -> list[Row]:
    """All numbers that other papers and users report.

    Args:
        file: `ELSEWHERE_CSV`, or a file like it.

    Returns:
        The rows by column, with the number of their line (the header is line 1) under "line".

    Raises:
        ValueError: As for `read_reported`.
    """
    return _read(file, ELSEWHERE_COLUMNS, ELSEWHERE_KEY_COLUMNS, _problems_elsewhere)


def _read(
    file: Path,
    columns: tuple[str, ...],
    key_columns: tuple[str, ...],
    problems: Callable[[Row], _Problems],
) -> list[Row]:
    rows: list[Row] = []
    lines: dict[tuple[str, ...], str] = {}
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise ValueError(f"{file}: column {', '.join(missing)} is missing")
            if header != list(columns):
                raise ValueError(f"{file}, row 1: expected the columns {', '.join(columns)}")
            for cells in reader:
                where = f"{file}, row {reader.line_num}"
                if len(cells) != len(columns):
                    raise ValueError(f"{where}: {len(cells)} cells, expected {len(columns)}")
                row = dict(zip(columns, cells, strict=True))
                for column, (problem, expected) in problems(row).items():
                    raise ValueError(f"{where}, column {column}: {problem}, expected {expected}")
                key = tuple(row[column] for column in key_columns)
                if key in lines:
                    raise ValueError(
                        f"{where}, columns {', '.join(key_columns)}: a cell is there twice, row "
                        f"{lines[key]} is it too"
                    )
                lines[key] = str(reader.line_num)
                rows.append(row | {"line": str(reader.line_num)})
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise ValueError(f"{file}, row {reader.line_num}: not CSV ({error})") from error
    if not rows:
        raise ValueError(f"{file}: no rows, expected reported numbers")
    return rows


def _problems(row: Row) -> _Problems:
    """What is wrong in a row of the MixLoRA paper's numbers."""
    known: dict[str, tuple[str, ...]] = {
        "table": _TABLES,
        "model": ("", *SHAPES),
        "task": ("", AVERAGE, *TASK_NAMES),
        "unit": _UNITS,
    }
    if row["metric"] in ("accuracy", "params"):
        known["method"] = tuple(METHOD_TITLES)
    found = _unknown(row, known) | _unprintable(row, ("method", "setting", "metric", "value"))
    if not row["metric"]:
        found["metric"] = ("got nothing", "what the number is")
    if row["table"] != _SETTINGS and "value" not in found:
        bounded = row["metric"] in ("accuracy", "params")
        points = row["unit"] == "pp"
        least, most = (-100.0, 100.0) if points else (0.0, 100.0 if bounded else 1e12)
        found |= _no_number(row, least, most)
    return found


def _problems_elsewhere(row: Row) -> _Problems:
    """What is wrong in a row of the numbers of other papers."""
    found = _unknown(row, _ELSEWHERE_NAMES) | _unprintable(row, ELSEWHERE_COLUMNS)
    for column in ("paper", "model", "metric"):
        if not row[column]:
            found[column] = ("got nothing", "a text")
    if not _ARXIV.fullmatch(row["arxiv"]):
        found["arxiv"] = (f"got {_shown(row['arxiv'])}", "an identifier as 2404.15159, or nothing")
    if "value" not in found:
        found |= _no_number(row, 0.0, 100.0 if row["unit"] == "%" else 1e12)
    return found


def _unknown(row: Row, known: Mapping[str, tuple[str, ...]]) -> _Problems:
    return {
        column: (f"got {_shown(row[column])}", f"one of {', '.join(filter(None, names))}")
        for column, names in known.items()
        if row[column] not in names
    }


def _unprintable(row: Row, columns: tuple[str, ...]) -> _Problems:
    return {
        column: (f"got {_shown(row[column])}", "a printable text without spaces at its ends")
        for column in columns
        if not row[column].isprintable() or row[column] != row[column].strip()
    }


def _no_number(row: Row, least: float, most: float) -> _Problems:
    """What is wrong in a value that has to be a number between two others."""
    value = float(row["value"]) if _NUMBER.fullmatch(row["value"]) else None
    if value is not None and least <= value <= most:
        return {}
    expected = f"a number from {least:g} to {most:g}, in digits"
    return {"value": (f"got {_shown(row['value'])}", expected)}


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}..."
