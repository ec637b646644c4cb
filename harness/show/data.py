"""A table as data: blocks of cells, in which every number knows its error, mark and source.

A `TableData` has four views. Markdown, csv and json are written here, together with a file of the
blocks themselves, from which `harness.report` makes the HTML view.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import TypeAdapter, ValidationError
from tabulate import tabulate

from harness.store.files import write_atomically

Source = Literal["", "measured", "computed", "reported", "compared"]

#: Whose number a cell holds: measured or computed by this project, reported by a paper, or a
#: measured number less a reported one.
MEASURED: Source = "measured"
COMPUTED: Source = "computed"
REPORTED: Source = "reported"
COMPARED: Source = "compared"

#: What is printed where there is no number.
DASH = "-"

#: The sign printed behind a cell that is marked as collapsed.
COLLAPSED_SIGN = "†"


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a number with its error, mark and source, or a label.

    Attributes:
        text: what is printed: the number with its error, a label, or the reason why there is no
            number, such as "-", "OOM" or "not run".
        value: the number with all its digits, in the unit that its heading names; None for a label
            and where there is no number.
        error: what is known of the number's uncertainty, by name: "stderr", "seed_std", "q25" and
            "q75", "low" and "high", or the p-values "p" and "p_holm" of a difference.
        mark: "collapsed" (the predictions are one answer), "significant" (printed bold), or the
            reason why there is no number; "" for none.
        source: whose number it is; "" for a label.
        beside: the paper's number that is printed in brackets behind this one, if any.
    """

    text: str = ""
    value: float | None = None
    error: dict[str, float] = field(default_factory=dict)
    mark: str = ""
    source: Source = ""
    beside: Cell | None = None

    @property
    def signed(self) -> str:
        """The text with the sign of its mark."""
        return f"{self.text} {COLLAPSED_SIGN}" if self.mark == "collapsed" else self.text

    @property
    def missing(self) -> bool:
        """Whether nothing stands there."""
        return self.value is None and self.text in ("", DASH)


@dataclass(frozen=True)
class Block:
    """A part of a table. Any of its parts may be missing.

    Attributes:
        heading: its heading, in plain text.
        level: the level of the heading; the table's own title has level 1.
        text: one paragraph above the cells that says what they are.
        head: the headings of the columns, as many as each row has cells.
        rows: the cells, row by row; the first of a row names it, and is "" in a row that belongs to
            the one above it.
        notes: the lines of a list below the cells.
    """

    heading: str = ""
    level: Literal[1, 2, 3] = 2
    text: str = ""
    head: list[str] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def markdown(self) -> str:
        """The Markdown view of the block."""
        parts = [
            f"{'#' * self.level} {self.heading}" if self.heading else "",
            self.text,
            self._grid() if self.head else "",
            "\n".join(f"- {note}" for note in self.notes),
        ]
        return "\n\n".join(filter(None, parts))

    def _grid(self) -> str:
        rows = [[_markdown(cell) for cell in row] for row in self.rows]
        align = ["left", *["right"] * (len(self.head) - 1)]
        return tabulate(
            rows, headers=self.head, tablefmt="pipe", colalign=align, disable_numparse=True
        )


@dataclass(frozen=True)
class TableData:
    """One table.

    Attributes:
        name: the name of its files.
        title: its title, in plain text.
        blocks: what it shows, in order.
        numbers: all its numbers in long form, one dict each, all with the same keys; None where
            there is no value.
        provenance: what the numbers come from.
        appendix: what is shown after the provenance.
        figures: the content of each figure, by the name of its file.
        failed: how many of its cells failed.
    """

    name: str
    title: str
    blocks: list[Block]
    numbers: list[dict[str, Any]]
    provenance: dict[str, Any]
    appendix: list[Block] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)
    failed: int = 0

    @property
    def sections(self) -> list[Block]:
        """All blocks in their order, the provenance as one of them."""
        return [*self.blocks, _provenance_block(self.provenance), *self.appendix]

    @property
    def markdown(self) -> str:
        """The Markdown view of the table."""
        parts = [f"# {self.title}", *(block.markdown for block in self.sections)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def write(self, output: Path) -> list[Path]:
        """Write all files of the table.

        Args:
            output: the directory under which they are written: ``tables/<name>`` with ``.md``,
                ``.csv`` and ``.json`` for the views, ``.provenance.json`` for the provenance and
                ``.table.json`` for the blocks, and the figures into ``figures/``.

        Returns:
            The paths of the files.
        """
        shown = _Shown(self.title, self.blocks, self.appendix)
        tables = {
            ".md": self.markdown,
            # As objects, because a column of whole numbers with a gap would become one of floats.
            ".csv": pd.DataFrame(self.numbers, dtype=object).to_csv(index=False),
            ".json": json.dumps(self.numbers, indent=1) + "\n",
            ".provenance.json": json.dumps(self.provenance, indent=1) + "\n",
            ".table.json": _SHOWN.dump_json(shown, indent=1, exclude_defaults=True).decode() + "\n",
        }
        files = {output / "tables" / f"{self.name}{end}": text for end, text in tables.items()}
        contents = {path: text.encode("utf-8") for path, text in files.items()}
        contents |= {output / "figures" / name: data for name, data in self.figures.items()}
        for path, content in contents.items():
            write_atomically(path, content)
        return list(contents)

    @classmethod
    def read(cls, folder: Path, name: str) -> TableData:
        """A table as `write` wrote it, without its figures.

        Args:
            folder: the folder of its files.
            name: its name.

        Raises:
            ValueError: One of the files is missing or broken; the message names it.
        """
        facts, numbers = (_json(folder / f"{name}{end}") for end in (".provenance.json", ".json"))
        path = folder / f"{name}.table.json"
        try:
            shown = _SHOWN.validate_json(_bytes(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{path}: {where or 'content'}: {first['msg']}") from error
        for block in [*shown.blocks, *shown.appendix]:
            if any(len(row) != len(block.head) for row in block.rows):
                raise ValueError(f"{path}: a row has not as many cells as there are columns")
        return cls(name, shown.title, shown.blocks, numbers, facts, shown.appendix)


@dataclass(frozen=True)
class _Shown:
    """The part of a table that none of its other files holds."""

    title: str
    blocks: list[Block]
    appendix: list[Block] = field(default_factory=list)


_SHOWN = TypeAdapter(_Shown)


def _json(path: Path) -> Any:
    content = _bytes(path)
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file, though the table's Markdown is there; make the table again"
        ) from None


def _markdown(cell: Cell) -> str:
    text = cell.signed
    if cell.beside is not None:
        text += f" ({cell.beside.signed})"
    return f"**{text}**" if cell.mark == "significant" else text


def number(value: float | None, spec: str, source: Source, **error: float | None) -> Cell:
    """A cell of one number.

    Args:
        value: the number; None prints a dash.
        spec: its format, for example ".1f".
        source: whose number it is.
        error: what is known of its uncertainty, by name; it is kept, not printed.
    """
    if value is None:
        return Cell(DASH, source=source)
    known = {name: found for name, found in error.items() if found is not None}
    return Cell(format(value, spec), value, known, source=source)


def long_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dicts, None where there is no value."""
    return frame.astype(object).where(frame.notna(), None).to_dict(orient="records")


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order of appearance; the values need not be hashable."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _provenance_block(facts: dict[str, Any]) -> Block:
    return Block("Provenance", notes=[f"{key}: {_flat(value)}" for key, value in facts.items()])


def _flat(value: Any) -> str:
    """A value as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(_flat(item) for item in value) or DASH
    return str(value)
