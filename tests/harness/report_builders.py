"""Output directories and a reader of HTML for the tests of `harness.report`."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from harness.report import write_report
from harness.schedule.executor import Outcome
from harness.show.data import COMPARED, MEASURED, REPORTED, Block, Cell, TableData, number

from .builders import make_record
from .test_settings import make_plan

SOURCES = {"measured", "computed", "reported", "compared"}
VOID = {"meta", "input", "img", "br"}
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;![p](http://example.org/p.png)"
)

#: One way out of text each: tags, attributes, a comment, entities, Markdown's links and images.
HOSTILE_TEXTS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "--><svg onload=alert(1)>",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "<https://example.org>",
]

#: Cells that are hard to sort, in their order: ascending, with what is missing last.
_SORTED = [
    Cell("-4.7 (0.106)", -4.7, mark="significant", source=MEASURED),
    Cell("<0.001", 0.0004, source=MEASURED),
    Cell("+3.1 (0.428)", 3.1, source=MEASURED),
    Cell("60.9 ± 4.3", 60.9, mark="collapsed", source=MEASURED),
    Cell("1,234", 1234, source=MEASURED),
    Cell("OOM", mark="OOM", source=MEASURED),
    Cell("-", source=MEASURED),
    Cell("", source=MEASURED),
]
SORTED = [cell.signed for cell in _SORTED]


@dataclass
class PageCell:
    """A cell as the page has it; its source is that of the nearest that states one."""

    text: str
    source: str
    name: str


@dataclass
class Page(HTMLParser):
    """What a page holds.

    Attributes:
        tags: Every tag with its attributes, in order.
        texts: Tag -> the texts right in it.
        tables: Each a list of rows of cells, by section.
        hrefs: Every link and source.
    """

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    tables: dict[str, list[list[list[PageCell]]]] = field(default_factory=dict)
    hrefs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, dict[str, str]]] = []
        self._section = ""

    @classmethod
    def of(cls, output: Path) -> Page:
        page = cls()
        page.feed(write_report(output).read_text(encoding="utf-8"))
        page.close()
        if page._open:
            raise AssertionError(f"not closed: {page._open}")
        return page

    def source(self) -> str:
        for _, attributes in reversed(self._open):
            stated = SOURCES & set(attributes.get("class", "").split())
            if stated:
                return stated.pop()
        return ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        self.hrefs += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag not in VOID:
            self._open.append((tag, attributes))
        if tag == "section":
            self._section = attributes["id"]
        elif tag == "table":
            self.tables.setdefault(self._section, []).append([])
        elif tag == "tr":
            self.tables[self._section][-1].append([])
        elif tag in ("th", "td"):
            self.tables[self._section][-1][-1].append(PageCell("", self.source(), tag))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self._open.pop()
        if opened != tag:
            raise AssertionError(f"<{opened}> is closed by </{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        self.texts.setdefault(self._open[-1][0], []).append(data)
        names = [name for name, _ in self._open]
        labels = [attributes.get("class", "") for _, attributes in self._open]
        if {"th", "td"} & set(names) and not any(
            {"tag", "unseen"} & set(label.split()) for label in labels
        ):
            self.tables[self._section][-1][-1][-1].text += data

    def rows(self, section: int) -> list[list[str]]:
        """Texts of all rows of a section's tables."""
        tables = self.tables.get(f"table-{section}", [])
        return [[" ".join(cell.text.split()) for cell in row] for table in tables for row in table]


def markdown_rows(markdown: str) -> list[list[str]]:
    """Cells of all table rows, emphasis left out."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    rows = [[c.strip().replace("**", "") for c in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not row[0].startswith(":")]


def data_of(uri: str) -> bytes:
    return base64.b64decode(uri.partition("base64,")[2], validate=True)


def measured_and_reported(output: Path) -> TableData:
    """Table 1 of two models of the paper, one cell measured, written to output."""
    options = ["--preset", "paper", "--models", "gemma-2b", "--tasks", "arc-e,boolq"]
    plan = make_plan("--table", "main", *options, "--methods", "lora,mixlora")
    answers = list(itertools.islice(itertools.cycle([0, 1, 2]), 90))
    cells = [cell for cell in plan.cells if cell.method == "lora"]
    records = {cell: make_record(cell, answers, [0] * 30 + answers[30:]) for cell in cells}
    rendered = plan._render(Outcome(records=records))
    rendered.write(output)
    return rendered


def hostile(output: Path) -> None:
    """A table with hostile text in every place that takes any, and one that is hard to sort."""
    block = Block(
        f"{HOSTILE}: measured",
        text=HOSTILE,
        head=[HOSTILE, HOSTILE],
        rows=[[Cell(HOSTILE), number(1.0, ".1f", MEASURED)], [Cell(HOSTILE), Cell(HOSTILE)]],
        notes=[HOSTILE],
    )
    facts = {HOSTILE: {HOSTILE: [HOSTILE, {HOSTILE: None}]}, "command": HOSTILE}
    svg = f"<svg xmlns='http://www.w3.org/2000/svg'>{HOSTILE}<dc:title>{HOSTILE}</dc:title></svg>"
    figures = {'a"><img src=x onerror=alert(3)>.svg': svg.encode()}
    row = {"source": "measured", "task": HOSTILE, "value": 1.0}
    name = 'a"><img src=x onerror=alert(3)>'
    TableData(name, HOSTILE, [block], [row], facts, figures=figures).write(output)


def sortable(output: Path) -> None:
    """A measured table beside the paper's, a wide one, and one reported."""
    shuffled = [_SORTED[i] for i in (4, 6, 3, 0, 5, 2, 7, 1)]
    pairs = [
        [Cell("LoRA"), Cell("paper"), number(72.5, ".1f", REPORTED)],
        [Cell(), Cell("measured - paper"), number(1.5, "+.1f", COMPARED)],
        [Cell("DoRA"), Cell("paper"), number(71.5, ".1f", REPORTED)],
        [Cell(), Cell("measured - paper"), number(-2.5, "+.1f", COMPARED)],
        [Cell("MixLoRA"), Cell(), number(70.5, ".1f", MEASURED)],
    ]
    wide = [
        [
            Cell(f"method-{'x' * 80}-{row}"),
            *[Cell("1,234.5 ± 6.7", 1234.5, {"stderr": 6.7}, source=MEASURED)] * 20,
        ]
        for row in range(3)
    ]
    blocks = [
        Block(
            "tiny: measured",
            head=["method", "value"],
            rows=[[Cell(f"m{i}"), cell] for i, cell in enumerate(shuffled)],
        ),
        Block("tiny: the paper, and measured minus paper", head=["method", "", "%"], rows=pairs),
        Block(
            "Reported by the paper for other models",
            head=["method", "%"],
            rows=[[Cell("LoRA"), number(99.5, ".1f", REPORTED)]],
        ),
        Block(
            "Measured: wide",
            head=["method", *(f"a heading of column {i}" for i in range(20))],
            rows=wide,
        ),
    ]
    numbers = [{"source": "measured", "value": 1.0}]
    TableData("sortable", "Sortable", blocks, numbers, {"commit": "c" * 200}).write(output)
