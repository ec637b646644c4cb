"""A table's Markdown as blocks, in which every row, column and cell knows its source. Torch-free.

Of Markdown only what tables are made of is read (headings, paragraphs, lists, tables, emphasis): no
HTML, no links and no images, so that text from data stays text and nothing is ever fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from markupsafe import Markup

from harness.tables.show.data import DASH, PROVENANCE
from harness.tables.show.sources import (
    COMPARED,
    IN_BRACKETS,
    REPORTED,
    REPORTED_BLOCK,
    of_column,
    of_row,
)

_MARKDOWN = MarkdownIt("zero", {"html": False}).enable(["heading", "list", "table", "emphasis"])

#: Levels that headings are lowered by: the page and the table's own title are above them.
_LOWERED = 1

#: A number at the beginning of a cell: "1,234", "60.9 ± 4.3 †", "+3.1 (0.428)", "<0.001".
_NUMBER = re.compile(r"<?([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)", re.IGNORECASE)

_BRACKETS = re.compile(r"(.*) (\([^()]*\))")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        html: Its content.
        source: Whose number it is; "" for a label, or where its row says it.
        number: What it is sorted by; None for text.
        missing: Whether nothing stands there; sorted last in either direction.
        bracket: What stands after it in brackets and is reported; "" for nothing.
    """

    html: Markup
    source: str = ""
    number: float | None = None
    missing: bool = False
    bracket: str = ""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        cells: In the order of the columns.
        source: Of its numbers; "" where they have several.
        continues: Whether it has no name and belongs to the row above.
    """

    cells: list[Cell]
    source: str
    continues: bool


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        label: Its title in words.
        head: Headings of the columns; a source where the column is of one source of several.
        rows: In order.
        sources: All that occur, in order of appearance.
        bracketed: Whether what stands in brackets is reported.
    """

    label: str
    head: list[Cell]
    rows: list[Row]
    sources: list[str]
    bracketed: bool


@dataclass(frozen=True)
class Block:
    """A table with the headings and paragraphs right before it, or text without a table.

    Attributes:
        lead: The text.
        grid: The table, if any.
        source: Of the whole; "" where it has several, or no table.
    """

    lead: Markup
    grid: Grid | None = None
    source: str = ""


def read_blocks(markdown: str, own: str) -> tuple[str, list[Block]]:
    """Title and blocks of a table's Markdown, its provenance left out.

    Args:
        markdown: As `Rendered` has it.
        own: Source of what is not marked by the words of `harness.tables.show.sources`.
    """
    title, heading, in_provenance = "", "", False
    blocks: list[Block] = []
    lead: list[SyntaxTreeNode] = []
    for node in SyntaxTreeNode(_MARKDOWN.parse(markdown)).children:
        text = _text(node)
        if node.type == "heading":
            in_provenance = node.tag == "h2" and text == PROVENANCE
            if node.tag == "h1" and not title:
                title = text
                continue
            heading = text
        if in_provenance:
            continue
        if node.type == "table":
            grid = _grid(node, heading, _text(lead[-1]) if lead else title, own)
            blocks.append(Block(_html(lead), grid, _whole(grid)))
            lead = []
        elif node.type in ("heading", "paragraph"):
            lead.append(node)
        else:
            blocks.append(Block(_html([*lead, node])))
            lead = []
    if lead:
        blocks.append(Block(_html(lead)))
    return title, blocks


def _grid(node: SyntaxTreeNode, heading: str, label: str, own: str) -> Grid:
    head_row, *rows = [row for part in node.children for row in part.children]
    headings = [_text(cell) for cell in head_row.children]
    texts = [[_text(cell) for cell in row.children] for row in rows]
    block = REPORTED if heading.startswith(REPORTED_BLOCK) else None
    bracketed = IN_BRACKETS in heading
    row_sources = [block or of_row(cells) for cells in texts]
    columns = [of_column(name) for name in headings]
    # Only a table whose columns differ needs a source for each of them: rows say it otherwise.
    differ = bracketed or any(columns)
    column_sources = [(column or own) if differ else "" for column in columns]
    # The first column names the rows, whoever the numbers come from.
    column_sources[0] = ""
    for index in range(1, len(headings)):
        if bracketed and any(_split(cells[index])[1] for cells in texts):
            column_sources[index] = ""
    found = []
    for row, cells, stated in zip(rows, texts, row_sources, strict=True):
        # What a row states holds for all of its cells.
        sources = [""] * len(cells) if stated else column_sources
        filled = [
            _cell(inner, text, source, bracketed and inner is not row.children[0])
            for inner, text, source in zip(row.children, cells, sources, strict=True)
        ]
        found.append(Row(filled, stated or ("" if differ else own), continues=not cells[0]))
    sources = [row.source for row in found if row.source]
    sources += [own] if differ else []
    sources += [REPORTED] if bracketed else [source for source in column_sources if source]
    head = [
        Cell(_inline(inner), source)
        for inner, source in zip(head_row.children, column_sources, strict=True)
    ]
    return Grid(label, head, found, list(dict.fromkeys(sources)) or [own], bracketed)


def _cell(node: SyntaxTreeNode, text: str, source: str, bracketed: bool) -> Cell:
    match = _NUMBER.match(text)
    number = float(match[1].replace(",", "")) if match else None
    missing = text in ("", DASH)
    shown, bracket = _split(text) if bracketed else (text, "")
    # A bracket is split off plain text; cells of such tables have no emphasis.
    html = Markup.escape(shown) if bracket else _inline(node)
    return Cell(html, source, number, missing, bracket)


def _split(text: str) -> tuple[str, str]:
    match = _BRACKETS.fullmatch(text)
    return (match[1], match[2]) if match else (text, "")


def _whole(grid: Grid) -> str:
    """The one source that a table has; a difference to the paper's goes with what it reports."""
    sources = set(grid.sources)
    if sources == {REPORTED, COMPARED}:
        return REPORTED
    return grid.sources[0] if len(sources) == 1 else ""


def _text(node: SyntaxTreeNode) -> str:
    """The words alone, without emphasis."""
    words = [
        each.content if each.type == "text" else " " for each in node.walk() if not each.children
    ]
    return "".join(words).strip()


def _inline(node: SyntaxTreeNode) -> Markup:
    """Content of a table cell."""
    tokens = [token for token in node.to_tokens() if token.type == "inline"]
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))


def _html(nodes: Sequence[SyntaxTreeNode]) -> Markup:
    tokens = [token for node in nodes for token in node.to_tokens()]
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + _LOWERED}"
    return Markup(_MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {}))
