"""A table in its forms (Markdown, CSV, JSON, figures), and the parts of its Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from harness.store.files import write_atomically

#: What stands where there is no number.
DASH = "-"

#: Heading of the last part of a table's Markdown.
PROVENANCE = "Provenance"


@dataclass(frozen=True)
class Rendered:
    """A table in its forms.

    Attributes:
        name: Of its files.
        markdown: For people.
        rows: Long form, one dict per number, all with the same keys; None where there is none.
        provenance: What the numbers come from.
        figures: File name -> content.
        failed: How many of its cells failed.
    """

    name: str
    markdown: str
    rows: list[dict[str, Any]]
    provenance: dict[str, Any]
    figures: dict[str, bytes] = field(default_factory=dict)
    failed: int = 0

    def write(self, output: Path) -> list[Path]:
        """Write ``tables/<name>.{md,csv,json,provenance.json}`` and ``figures/``; their paths."""
        tables = {
            ".md": self.markdown,
            # As objects: a column of whole numbers with a gap would else be one of floats.
            ".csv": pd.DataFrame(self.rows, dtype=object).to_csv(index=False),
            ".json": json.dumps(self.rows, indent=1) + "\n",
            ".provenance.json": json.dumps(self.provenance, indent=1) + "\n",
        }
        files = {output / "tables" / f"{self.name}{end}": text for end, text in tables.items()}
        contents = {path: text.encode("utf-8") for path, text in files.items()}
        contents |= {output / "figures" / name: data for name, data in self.figures.items()}
        for path, content in contents.items():
            write_atomically(path, content)
        return list(contents)


def long_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as dicts, None where there is no value."""
    return frame.astype(object).where(frame.notna(), None).to_dict(orient="records")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    alignment = ["left" if index == 0 else "right" for index in range(len(head))]
    return tabulate(rows, headers=head, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def number(value: float | None, digits: int = 1) -> str:
    """A number with that many decimals, or the dash where there is none."""
    return DASH if value is None else f"{value:.{digits}f}"


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order of appearance; values need no hash."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def provenance_block(facts: dict[str, Any]) -> str:
    """What the numbers come from, as the last part of a table's Markdown."""
    lines = (f"{key}: {_flat(value)}" for key, value in facts.items())
    return f"## {PROVENANCE}\n\n{bullets(lines)}"


def _flat(value: Any) -> str:
    """A value as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(_flat(item) for item in value) or DASH
    return str(value)
