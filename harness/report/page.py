"""Puts the tables and figures of an output directory into one HTML page. Torch-free.

The page is complete in itself: style and script are inlined and allowed by their hashes, figures
are data, and its policy forbids to load anything. The same files give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.show.data import COMPARED, REPORTED, Block, Cell, Source, TableData
from harness.store.files import write_atomically

_FOLDER = Path(__file__).parent

#: The kinds of figures, the preferred first: one kind of each figure is shown.
_IMAGE_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: the name of its file, without the ending.
        title: what is written above it in the file, or its name.
        data: the file as a data URI.
    """

    name: str
    title: str
    data: str


@dataclass(frozen=True)
class Grid:
    """The cells of a block, arranged by source.

    Where every row is of one source, the rows state it; elsewhere the columns and cells do.

    Attributes:
        head: the headings of the columns, each with the source of its column or "".
        rows: the rows, each with its source or "".
        sources: all sources that occur.
    """

    head: list[tuple[str, Source]]
    rows: list[tuple[list[Cell], Source]]
    sources: list[Source]

    @classmethod
    def of(cls, block: Block) -> Grid | None:
        """The cells of a block; None if it has none."""
        if not block.head:
            return None
        by_row = [_sources(row) for row in block.rows]
        if all(len(sources) <= 1 for sources in by_row):
            columns: list[Source] = [""] * len(block.head)
            rows = [_only(sources) for sources in by_row]
        else:
            columns = [
                _only(_sources([row[index] for row in block.rows]))
                for index in range(len(block.head))
            ]
            rows = [""] * len(block.rows)
        return cls(
            head=list(zip(block.head, columns, strict=True)),
            rows=list(zip(block.rows, rows, strict=True)),
            sources=_sources([cell for row in block.rows for cell in row]),
        )

    @property
    def bracketed(self) -> bool:
        """Whether the paper's numbers stand in brackets behind ours."""
        return any(cell.beside is not None for row, _ in self.rows for cell in row)

    @property
    def source(self) -> Source:
        """The one source of all numbers, "" if there are several.

        A difference to the paper's number is shown and hidden together with that number.
        """
        return REPORTED if set(self.sources) == {REPORTED, COMPARED} else _only(self.sources)


def _sources(cells: list[Cell]) -> list[Source]:
    """The sources of these cells, each once, in the order of the legend."""
    found = {cell.source for cell in cells}
    found |= {cell.beside.source for cell in cells if cell.beside is not None}
    return [source for source in get_args(Source) if source and source in found]


def _only(sources: list[Source]) -> Source:
    return sources[0] if len(sources) == 1 else ""


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        name: the name of its files.
        title: its title.
        blocks: its blocks, each with its cells arranged by source or None.
        figures: the figures that belong to it.
        provenance: what its numbers come from.
        csv: all its numbers in long form, as a data URI.
    """

    name: str
    title: str
    blocks: list[tuple[Block, Grid | None]]
    figures: list[Figure]
    provenance: dict[str, Any]
    csv: str

    @property
    def source(self) -> Source:
        """The one source of all its numbers, "" if there are several."""
        found: list[Source] = [s for _, grid in self.blocks if grid for s in grid.sources]
        return _only(list(dict.fromkeys(found)))


def write_report(output: Path) -> Path:
    """Write ``output/report.html`` with all that ``output/tables`` and ``output/figures`` hold.

    Raises:
        ValueError: There is no table, or one of a table's files is missing or broken; it is named.
    """
    sections, others = _read(output)
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (_source(name) for name in ("style.css", "script.js"))
    page = environment.get_template("page.html").render(
        sections=sections,
        others=others,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    path = output / "report.html"
    write_atomically(path, page.encode("utf-8"))
    return path


def _read(output: Path) -> tuple[list[Section], list[Figure]]:
    """The tables by name, and the figures that belong to none of them."""
    folder = output / "tables"
    found = [TableData.read(folder, n) for n in sorted(p.stem for p in folder.glob("*.md"))]
    # A table of all tables repeats what is there by itself.
    tables = [table for table in found if "tables" not in table.provenance]
    if not tables:
        raise ValueError(f"{folder}: no table to report; make one with --table")
    figures: dict[str, list[Figure]] = {}
    for figure in _figures(output / "figures"):
        # A figure is named after its table, perhaps with a part of its own: the longest name wins.
        owners = [t.name for t in tables if f"{figure.name}-".startswith(f"{t.name}-")]
        figures.setdefault(max(owners, key=len, default=""), []).append(figure)
    sections = [_section(folder, table, figures.get(table.name, [])) for table in tables]
    return sections, figures.get("", [])


def _section(folder: Path, table: TableData, figures: list[Figure]) -> Section:
    blocks = [(block, Grid.of(block)) for block in [*table.blocks, *table.appendix]]
    csv = folder / f"{table.name}.csv"
    if not csv.is_file():
        raise ValueError(f"{csv}: no such file, though other files of the table exist")
    data = _data_uri("text/csv", csv.read_bytes())
    return Section(table.name, table.title, blocks, figures, table.provenance, data)


def _figures(folder: Path) -> list[Figure]:
    found = []
    for stem in sorted({path.stem for path in folder.glob("*") if path.suffix in _IMAGE_TYPES}):
        path = next(p for end in _IMAGE_TYPES if (p := folder / f"{stem}{end}").exists())
        data = path.read_bytes()
        title = re.search(r"<dc:title>(.+?)</dc:title>", data.decode("utf-8", errors="replace"))
        words = html.unescape(title[1]) if title else stem
        found.append(Figure(stem, words, _data_uri(_IMAGE_TYPES[path.suffix], data)))
    return found


def _source(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
