"""Puts the tables and figures of an output directory into one HTML page. Torch-free.

The page is complete in itself: style and script are inlined and allowed by their hashes, figures
are data, and its policy forbids to load anything. The same files give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.store.files import write_atomically
from harness.tables.show.sources import COMPUTED, MEASURED

from .blocks import Block, read_blocks

_FOLDER = Path(__file__).parent

#: Kinds of figures, the preferred first: one kind of each figure is shown.
_IMAGE_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: Of its file, without the ending.
        title: What is written above it, or its name.
        data: The file as a data URI.
    """

    name: str
    title: str
    data: str


@dataclass(frozen=True)
class Section:
    """One table file.

    Attributes:
        name: Of its files.
        title: Its heading.
        blocks: Its tables and texts.
        figures: That belong to it.
        provenance: What its numbers come from.
        csv: All its numbers, in long form, as a data URI.
    """

    name: str
    title: str
    blocks: list[Block]
    figures: list[Figure]
    provenance: dict[str, Any]
    csv: str

    @property
    def source(self) -> str:
        """The one source of all its numbers; "" where it has several."""
        sources = {source for block in self.blocks if block.grid for source in block.grid.sources}
        return sources.pop() if len(sources) == 1 else ""


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
    found = {p.stem: _json(folder / f"{p.stem}.provenance.json") for p in folder.glob("*.md")}
    # A table of tables repeats what is there by itself.
    names = sorted(name for name, provenance in found.items() if "tables" not in provenance)
    if not names:
        raise ValueError(f"{folder}: no table to report; make one with --table")
    figures: dict[str, list[Figure]] = {}
    for figure in _figures(output / "figures"):
        # A figure is named after its table, perhaps with a part of its own: the longest name wins.
        owners = [name for name in names if f"{figure.name}-".startswith(f"{name}-")]
        figures.setdefault(max(owners, key=len, default=""), []).append(figure)
    sections = [_section(folder, name, figures.get(name, []), found[name]) for name in names]
    return sections, figures.get("", [])


def _section(folder: Path, name: str, figures: list[Figure], provenance: dict[str, Any]) -> Section:
    rows = _json(folder / f"{name}.json")
    # Where numbers are measured, the long form says of each that it is, or that it is reported.
    own = MEASURED if all("source" in row for row in rows) else COMPUTED
    title, blocks = read_blocks((folder / f"{name}.md").read_text(encoding="utf-8"), own)
    csv = _data_uri("text/csv", _bytes(folder / f"{name}.csv"))
    return Section(name, title or name, blocks, figures, provenance, csv)


def _figures(folder: Path) -> list[Figure]:
    found = []
    for stem in sorted({path.stem for path in folder.glob("*") if path.suffix in _IMAGE_TYPES}):
        path = next(p for end in _IMAGE_TYPES if (p := folder / f"{stem}{end}").exists())
        data = path.read_bytes()
        title = re.search(r"<dc:title>(.+?)</dc:title>", data.decode("utf-8", errors="replace"))
        words = html.unescape(title[1]) if title else stem
        found.append(Figure(stem, words, _data_uri(_IMAGE_TYPES[path.suffix], data)))
    return found


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
        raise ValueError(f"{path}: no such file, though the table's Markdown is there") from None


def _source(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
