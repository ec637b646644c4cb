"""The paper's numbers: reads and checks `results/paper/reported.csv`. Torch-free.

One row per printed number; a row that is edited so that it means nothing is refused by its line.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from harness.cells.methods import METHOD_TITLES
from harness.models.shapes import SHAPES
from tasks import TASK_NAMES

REPORTED_CSV = Path(__file__).parents[2] / "results" / "paper" / "reported.csv"

#: What is printed, where: a cell is there once.
KEY_COLUMNS = ("table", "model", "method", "setting", "task", "metric")
COLUMNS = (*KEY_COLUMNS, "value", "unit")

#: The task name of the mean over all tasks of a table.
AVERAGE = "avg"

_TABLES = (*"123456789", "fig5", "abstract")
_UNITS = ("", "%", "pp", "GB", "us/token", "examples")
#: The table of settings, whose values are not all numbers.
_SETTINGS = "3"
# As printed: no exponent, no infinity, no spaces. The digits say how it was rounded.
_NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)


def place_of(table: str) -> str:
    """What a name in reported.csv's table column stands for: "Table 8", "Figure 5", "abstract"."""
    return f"Table {table}" if table.isdigit() else table.replace("fig", "Figure ")


def read_reported(file: Path) -> list[dict[str, str]]:
    """All rows as they are printed, with the number of their line (the header is 1) under "line".

    Args:
        file: `REPORTED_CSV`, or one like it.

    Raises:
        ValueError: The file cannot be read or lacks a column, or a row has another number of cells,
            a name that is not known, a value that is not a number of its unit, or a key that an
            earlier row has; one line that names file, row and column.
    """
    rows: list[dict[str, str]] = []
    lines: dict[tuple[str, ...], str] = {}
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            missing = [column for column in COLUMNS if column not in header]
            if missing:
                raise ValueError(f"{file}: column {', '.join(missing)} is missing")
            if header != list(COLUMNS):
                raise ValueError(f"{file}, row 1: expected the columns {', '.join(COLUMNS)}")
            for cells in reader:
                where = f"{file}, row {reader.line_num}"
                if len(cells) != len(COLUMNS):
                    raise ValueError(f"{where}: {len(cells)} cells, expected {len(COLUMNS)}")
                row = dict(zip(COLUMNS, cells, strict=True))
                for column, (problem, expected) in _problems(row).items():
                    raise ValueError(f"{where}, column {column}: {problem}, expected {expected}")
                key = tuple(row[column] for column in KEY_COLUMNS)
                if key in lines:
                    raise ValueError(
                        f"{where}, columns {', '.join(KEY_COLUMNS)}: a cell is there twice, row "
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
        raise ValueError(f"{file}: no rows, expected the paper's numbers")
    return rows


def _problems(row: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Column -> (what is wrong in it, what is expected there)."""
    known = {
        "table": _TABLES,
        "model": ("", *SHAPES),
        "task": ("", AVERAGE, *TASK_NAMES),
        "unit": _UNITS,
    }
    if row["metric"] in ("accuracy", "params"):
        known["method"] = tuple(METHOD_TITLES)
    found = {
        column: (f"got {_shown(row[column])}", f"one of {', '.join(filter(None, names))}")
        for column, names in known.items()
        if row[column] not in names
    }
    for column in ("method", "setting", "metric", "value"):
        text = row[column]
        if not text.isprintable() or text != text.strip():
            found[column] = (f"got {_shown(text)}", "a printable text without spaces at its ends")
    if not row["metric"]:
        found["metric"] = ("got nothing", "what the number is")
    if row["table"] != _SETTINGS and "value" not in found:
        least, most = _range(row)
        value = float(row["value"]) if _NUMBER.fullmatch(row["value"]) else None
        if value is None or not least <= value <= most:
            expected = f"a number from {least:g} to {most:g}, in digits"
            found["value"] = (f"got {_shown(row['value'])}", expected)
    return found


def _range(row: dict[str, str]) -> tuple[float, float]:
    """Between which numbers a value of its unit can be."""
    if row["unit"] == "pp":
        return -100.0, 100.0
    return 0.0, 100.0 if row["metric"] in ("accuracy", "params") else 1e12


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}..."
