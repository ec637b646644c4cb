"""The report: complete, self-contained, escaped, and each number under its source."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from harness.accuracy import AccuracyPlan
from harness.cells.spec import Fingerprints
from harness.command_line import parse
from harness.report import write_report
from harness.schedule.executor import Outcome
from harness.show.data import TableData
from harness.show.figures import Line, Panel, draw
from harness.speed.table import MeasuredPlan
from harness.store.records import Failure
from harness.tables import get_table
from reproduce import main

from .builders import make_record
from .report_builders import (
    HOSTILE,
    HOSTILE_TEXTS,
    Page,
    data_of,
    hostile,
    markdown_rows,
    measured_and_reported,
    sortable,
)
from .test_settings import make_plan

ROOT = Path(__file__).resolve().parents[2]
SPEED = ROOT / "results" / "speed"
#: All that a report is made of; text from data makes no others.
TAGS = {
    *("html", "head", "meta", "title", "style", "script", "body", "header", "nav", "main"),
    *("section", "h1", "h2", "h3", "h4", "p", "ul", "ol", "li", "div", "span", "a", "code"),
    *("fieldset", "legend", "label", "input", "table", "thead", "tbody", "tr", "th", "td"),
    *("strong", "em", "figure", "img", "figcaption", "details", "summary", "dl", "dt", "dd"),
}


def test_all_cells_figures_and_numbers_are_there(tmp_path: Path) -> None:
    shutil.copytree(SPEED, tmp_path, dirs_exist_ok=True)
    measured_and_reported(tmp_path)
    page = Page.of(tmp_path)
    names = sorted(path.stem for path in (tmp_path / "tables").glob("*.md"))
    assert names[2] == "main" and len(names) == 5
    for number, name in enumerate(names, start=1):
        rows = markdown_rows((tmp_path / "tables" / f"{name}.md").read_text())
        assert page.rows(number) == rows, name
    csv = [data_of(href) for href in page.hrefs if href.startswith("data:text/csv")]
    assert csv == [(tmp_path / "tables" / f"{name}.csv").read_bytes() for name in names]
    images = [data_of(href) for href in page.hrefs if href.startswith("data:image/svg")]
    assert sorted(images) == sorted(p.read_bytes() for p in (tmp_path / "figures").glob("*.svg"))
    assert not any(href.startswith("data:image/png") for href in page.hrefs)  # the same figures


def numbers(cells: set[str]) -> set[str]:
    """Without marks; what is no number left out."""
    bare = {cell.strip("()").removesuffix(" †") for cell in cells}
    return {cell for cell in bare if re.fullmatch(r"[\d,.]+", cell)}


def test_every_reported_number_is_marked_and_no_other(tmp_path: Path) -> None:
    rendered = measured_and_reported(tmp_path)
    cells = [cell for table in Page.of(tmp_path).tables["table-1"] for row in table for cell in row]
    expected = {
        f"{row['value']:.1f}"
        for row in rendered.numbers
        if row["source"] == "reported"
        and row["task"] in ("arc-e", "boolq", "avg", "")
        and (row["model"] != "gemma-2b" or row["method"] in ("lora", "mixlora"))
        # The paper has no average of two tasks to stand beside the measured one.
        and (row["model"] != "gemma-2b" or row["task"] != "avg")
        and row["metric"] in ("accuracy", "params")
    }
    assert numbers({c.text for c in cells if c.source == "reported"}) == expected
    differences = {c.text for c in cells if c.source == "compared"}
    assert {text for text in differences if re.fullmatch(r"[+-][\d.]+", text)} == {
        f"{row['value']:+.{2 if row['metric'].startswith('params') else 1}f}"
        for row in rendered.numbers
        if row["metric"].endswith("_minus_paper")
    }
    measured = {c.text for c in cells if c.source == "measured"}
    assert "77.8 ± 4.4" in measured and "1,000" in measured


@pytest.mark.parametrize("shape", ["llama2-7b", "smollm2-135m"])
def test_brackets_and_blocks_of_measurements(shape: str, tmp_path: Path) -> None:
    shutil.copytree(SPEED / "measurements", tmp_path / "measurements")
    arguments = ["--table", "efficiency", "--shape", shape, "--render-only"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    text = write_report(tmp_path).read_text()
    brackets = re.findall(r'<span class="reported">\(([\d.,]+)\)</span>', text)
    cells = [c for table in Page.of(tmp_path).tables["table-1"] for row in table for c in row]
    shown = numbers({c.text for c in cells if c.source == "reported"} | set(brackets))
    rows = json.loads((tmp_path / "tables" / f"efficiency-{shape}.json").read_text())
    ratios = [r for r in rows if r["source"] == "reported" and r["metric"].endswith("_ratio")]
    assert len(ratios) >= 20
    assert shown == {f"{row['value']:.1f}" for row in ratios}


def test_a_computed_table_marks_what_the_paper_prints(tmp_path: Path) -> None:
    rendered = get_table("params").plan(parse(["--table", "params"])[1]).run(False)
    rendered.write(tmp_path)
    (table,) = Page.of(tmp_path).tables["table-1"]
    assert {c.source for row in table for c in row} == {"", "computed", "reported"}
    printed = {c.text for row in table[1:] for c in row if c.source == "reported"}
    found = {value for text in printed for value in re.findall(r"([\d.]+) \(Table", text)}
    assert {float(value) for value in found} == {row["printed"] for row in rendered.numbers}
    assert {row[0].source for row in table} == {""}


def test_rows_of_the_load_of_experts(tmp_path: Path) -> None:
    make_plan("--table", "expert-load")._render(Outcome()).write(tmp_path)
    first = Page.of(tmp_path).tables["table-1"][0]
    assert [(row[1].text, row[1].source) for row in first[1:]] == [
        ("0.0223", "reported"),
        ("0.0328", "reported"),
    ]


def test_hostile_text_is_text(tmp_path: Path) -> None:
    hostile(tmp_path)
    page = Page.of(tmp_path)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("img") == 1  # the figure
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    assert all(href.startswith(("#", "data:")) for href in page.hrefs)
    for tag, count in {"h2": 1, "h3": 1, "th": 3, "td": 1, "li": 2, "dt": 2, "code": 1}.items():
        assert sum(HOSTILE in text for text in page.texts[tag]) >= count, tag
    alt = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert HOSTILE.replace("&lt;", "<") in alt[0]


def test_nothing_is_fetched_and_only_the_own_script_is_allowed(tmp_path: Path) -> None:
    shutil.copytree(SPEED, tmp_path, dirs_exist_ok=True)
    page = Page.of(tmp_path)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    assert not any("url(" in text or "@import" in text for text in page.texts["style"])
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'" and directives["img-src"] == "data:"
    for tag in ("script", "style"):
        digest = hashlib.sha256("".join(page.texts[tag]).encode()).digest()
        assert directives[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        shutil.copytree(SPEED, tmp_path / folder)
        hostile(tmp_path / folder)
    first, second = (write_report(tmp_path / folder).read_bytes() for folder in ("one", "two"))
    assert first == second == write_report(tmp_path / "one").read_bytes()


def test_a_figure_stands_in_the_table_it_is_named_after(tmp_path: Path) -> None:
    figures = {name: name.encode() for name in ("a-b-c.svg", "a-b.png", "a-bc.svg", "other.svg")}
    for name, files in (("a", figures), ("a-b", {})):
        TableData(name, f"Title of {name}", [], [], {}, figures=files).write(tmp_path)
    text = write_report(tmp_path).read_text()
    parts = re.split(r'<section id="([^"]+)"', text)[1:]
    found = {
        section: [data_of(uri).decode() for uri in re.findall(r'<img src="([^"]+)"', body)]
        for section, body in zip(parts[::2], parts[1::2], strict=True)
    }
    expected = {"table-1": ["a-bc.svg"], "table-2": ["a-b.png", "a-b-c.svg"]}
    assert found == expected | {"others": ["other.svg"]}


def test_a_row_without_a_name_goes_with_the_one_above(tmp_path: Path) -> None:
    sortable(tmp_path)
    rows = [attributes for tag, attributes in Page.of(tmp_path).tags if tag == "tr"]
    assert sum("data-continues" in row for row in rows) == 2


def test_what_stands_after_the_provenance_is_there_and_a_table_of_tables_is_not(
    tmp_path: Path,
) -> None:
    make_plan("--table", "quirks")._render(Outcome()).write(tmp_path)
    TableData("all", "All tables", [], [], {"tables": ["quirks"]}).write(tmp_path)
    page = Page.of(tmp_path)
    assert [tag for tag, _ in page.tags].count("section") == 1
    assert "The quirks, and which cells each concerns" in page.texts["h3"]
    assert any("the loss covers the padding" in text for text in page.texts["li"])
    assert "Provenance" not in page.texts["h3"] and "none" in page.texts["dd"]


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tables: no table to report"):
        write_report(tmp_path)
    TableData("one", "One", [], [], {}).write(tmp_path)
    (tmp_path / "tables" / "one.provenance.json").write_text("{")
    with pytest.raises(ValueError, match=r"one\.provenance\.json: Expecting"):
        write_report(tmp_path)
    (tmp_path / "tables" / "one.provenance.json").unlink()
    with pytest.raises(ValueError, match=r"one\.provenance\.json: no such file"):
        write_report(tmp_path)


COMMAND = ["--table", "scaling", "--sweeps", "r", "--render-only", "--device", "cpu"]


def test_the_command_line_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*COMMAND, "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert not (tmp_path / "report.html").exists()
    assert main([*arguments, "--report"]) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().err
    assert "By rank" in (tmp_path / "report.html").read_text()
    (tmp_path / "tables" / "stray.md").write_text("| a | b |")
    assert main([*arguments, "--report"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "stray.provenance.json: no such file" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--table", "router-loss", "--tasks", "boolq,arc-e", "--seeds", "1,2", "--limit-eval", "9"],
        ["--table", "main", "--preset", "paper", "--models", "gemma-2b", "--forward", "vanilla"],
        ["--table", "rank", "--settings", "r=2", "--quirk", "loss-on-pad"],
        ["--table", "rank", "--settings", "r=16", "--protocol", "upstream"],
        ["--table", "quirks", "--tasks", "obqa"],
        ["--table", "main", "--evaluator", "lm-eval", "--quantize", "8bit"],
        ["--table", "main", "--preset", "small", "--methods", "dora", "--dtype", "bfloat16"],
        ["--table", "efficiency", "--shape", "gemma-2b", "--tokens", "2x7", "--methods", "dora"],
        ["--table", "scaling", "--sweeps", "r,top_k", "--runs", "3", "--layers", "2"],
    ],
    ids=lambda arguments: " ".join(arguments[:4]),
)
def test_a_table_names_the_command_that_makes_it(arguments: list[str]) -> None:
    rest = ["--render-only", "--device", "cpu"]
    table, options = parse([*arguments, *rest])
    plan = table.plan(options)
    python, script, *words = shlex.split(plan.stored().provenance["command"])
    assert (python, script) == ("python", "reproduce.py")
    again = table.plan(parse([*words, *rest])[1])
    if isinstance(plan, MeasuredPlan) and isinstance(again, MeasuredPlan):
        assert again.specs == plan.specs
    elif isinstance(plan, AccuracyPlan) and isinstance(again, AccuracyPlan):
        assert again.cells == plan.cells
    else:
        raise AssertionError(f"{table.name} asks for nothing that is run")


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb, by WCAG 2."""
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_letters_stand_out_from_their_ground() -> None:
    css = (ROOT / "harness" / "report" / "style.css").read_text()
    schemes = [dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in css.split("@media")[:2]]
    assert all(len(scheme) == 14 for scheme in schemes)
    for scheme in schemes:
        pairs = [(name[: -len("-ground")], name) for name in scheme if name.endswith("-ground")]
        for ground in ("page", "stripe"):
            pairs += [(letters, ground) for letters in ("text", "quiet", "link", "reported")]
        assert len(pairs) == 12
        for letters, ground in pairs:
            dark, light = sorted(luminance(scheme[name]) for name in (letters, ground))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (letters, ground)


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_hostile_text_is_text_all_the_way_from_a_run(text: str, tmp_path: Path) -> None:
    """Whatever a model's, data's or row's name, a failure or a setting says."""
    plan = make_plan("--table", "main", "--tasks", "arc-e", "--methods", "lora,dora,mixlora")
    done, broken, absent = plan.cells[:3]
    record = make_record(done, [0, 1], [0, 1], [0, 1])
    facts = record.provenance | {"data": text, "weights": text, "commit": text}
    facts |= {"versions": {text: text}, "hardware": {"device_name": text}}
    task = dataclasses.replace(record.tasks["arc-e"], ids=[text, text])
    record = dataclasses.replace(record, tasks={"arc-e": task}, provenance=facts)
    prints = Fingerprints("", "", "", "")
    outcome = Outcome(
        records={done: record},
        failed={broken: Failure(broken, prints, text, f"{text}: {text}", "2026")},
        unavailable={absent: text},
    )
    plan._render(outcome).write(tmp_path)
    figure = draw(text, text, [Panel(text, [Line(text, [1], [1], [1], [1])], title=text)], text)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "main.svg").write_bytes(figure["svg"])
    page = Page.of(tmp_path)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert [tag for tag, _ in page.tags].count("script") == 1
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
    # Nothing leads anywhere: figures are images, in which nothing is run.
    assert all(re.match(r"#|data:(image/svg\+xml|text/csv);base64,", h) for h in page.hrefs)
    shown = " ".join(" ".join(texts) for tag, texts in page.texts.items() if tag != "script")
    assert "".join(shown.split()).count("".join(text.split())) >= 8
