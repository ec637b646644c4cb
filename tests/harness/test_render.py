"""What a table shows: marks, dashes, blocks that must stay apart, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from harness.cells.spec import Fingerprints
from harness.numbers.comparison import LONG_COLUMNS, compare
from harness.schedule.executor import Outcome
from harness.show.accuracy import render
from harness.show.data import TableData
from harness.store.records import Failure, RunRecord
from harness.tables.main import TABLE
from tasks import TASK_NAMES

from .builders import make_record, make_request, make_spec

ANSWERS = [0, 1] * 60

#: The endings of a table's files.
ENDS = (".md", ".csv", ".json", ".provenance.json", ".table.json")


def rendered(records: list[RunRecord], request: Any = None, **outcome: Any) -> TableData:
    request = request or make_request(tasks=["arc-e", "boolq"], methods=["base", "lora", "mixlora"])
    done = Outcome(records={record.spec: record for record in records}, **outcome)
    frame = compare(
        {TABLE.main: records}, TABLE.main, TABLE.paper_tables, request.tasks, TASK_NAMES
    )
    lines = [(method, TABLE.main) for method in request.methods]
    return render(TABLE, request, lines, done, frame)


def row(markdown: str, *starts: str) -> list[str]:
    """Cells of the first table row that begins with these cells."""
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[: len(starts)] == list(starts):
            return cells[len(starts) :]
    raise AssertionError(f"no row begins with {starts}")


def test_numbers_dashes_and_marks() -> None:
    half_right = [0, 1] * 30 + [1, 0] * 30
    markdown = rendered(
        [
            make_record(make_spec("lora", "arc-e"), ANSWERS, half_right),
            make_record(make_spec("lora", "boolq"), ANSWERS, [1] * 120),
            make_record(make_spec("mixlora", "arc-e"), ANSWERS, ANSWERS, trainable=2500),
        ]
    ).markdown
    # parameters, %, ARC-e, BoolQ, average
    assert row(markdown, "LoRA") == ["1,000", "1.00", "50.0 ± 4.6", "50.0 ± 4.6 †", "50.0 ± 3.2"]
    assert row(markdown, "MixLoRA") == ["2,500", "2.50", "100.0 ± 0.0", "-", "-"]
    assert row(markdown, "base (untuned)") == ["-", "-", "-", "-", "-"]
    assert row(markdown, "majority class") == ["", "", "50.0", "50.0", "-"]
    against = markdown[markdown.index("points above LoRA") :]
    assert row(against, "MixLoRA") == ["**+50.0 (<0.001)**", "-"]


def test_bold_only_after_correction_for_all_tests() -> None:
    """6 of 6 discordant examples: p is 0.03, and 0.06 as one of two tests."""
    lora = [*[1 - a for a in ANSWERS[:6]], *ANSWERS[6:]]
    records = [make_record(make_spec("lora", task), ANSWERS, lora) for task in ("arc-e", "boolq")]
    one = [*records[:1], make_record(make_spec("mixlora", "arc-e"), ANSWERS, ANSWERS)]
    two = [*records, one[1], make_record(make_spec("mixlora", "boolq"), ANSWERS, lora)]
    for found, bold in ((one, True), (two, False)):
        markdown = rendered(found).markdown
        cell = row(markdown[markdown.index("points above LoRA") :], "MixLoRA")[0]
        assert cell.strip("*").startswith("+5.0 (0.03")
        assert cell.startswith("**") == bold


def test_spread_over_seeds_is_printed() -> None:
    request = make_request(tasks=["arc-e"], methods=["lora"], seeds=[0, 1])
    records = [
        make_record(make_spec("lora", seed=seed), ANSWERS, predictions)
        for seed, predictions in ((0, ANSWERS), (1, [1 - a for a in ANSWERS]))
    ]
    markdown = rendered(records, request).markdown
    assert row(markdown, "LoRA")[2] == "50.0 ± 0.0 (s 70.7)"
    assert "s: standard deviation" in markdown


def test_the_papers_other_models_stand_apart() -> None:
    markdown = rendered([make_record(make_spec("lora"), ANSWERS, ANSWERS)]).markdown
    block = markdown[markdown.index("## Reported by the paper for other models") :]
    assert row(block, "llama2-7b", "LoRA") == ["2.9", "73.8", "62.2 †", "71.8"]
    assert "minus paper" not in markdown
    assert "tiny" not in block[: block.index("## Provenance")]


def test_the_same_model_stands_beside_the_paper() -> None:
    request = make_request("paper", models=["gemma-2b"], tasks=["arc-e"], methods=["lora"])
    spec = make_spec("lora", model="gemma-2b")
    record = make_record(spec, [0] * 10, [0] * 8 + [1] * 2, trainable=98_058_240)
    markdown = rendered([record], request).markdown
    beside = markdown[markdown.index("gemma-2b: the paper") :]
    assert row(beside, "LoRA", "paper")[:2] == ["3.2", "71.9"]
    assert row(beside, "", "measured - paper")[:2] == ["+0.04", "+8.1"]


def test_unavailable_and_failed_cells_say_why() -> None:
    no_data, broken = make_spec("lora", "hellaswag"), make_spec("dora", "arc-e")
    prints, why = Fingerprints("", "", "", ""), "FloatingPointError: training loss is nan at step 3"
    table = rendered(
        [],
        unavailable={no_data: "hellaswag: no train split, expected d/train.jsonl"},
        failed={broken: Failure(broken, prints, "failed", why, "2026-01-01T00:00:00+00:00")},
    )
    markdown = table.markdown
    assert table.failed == 1
    assert "unavailable: tiny lora hellaswag seed 0: hellaswag: no train split" in markdown
    assert "failed: tiny dora arc-e seed 0: FloatingPointError: training loss is nan" in markdown


def test_files_hold_the_long_form(tmp_path: Path) -> None:
    table = rendered([make_record(make_spec("lora"), ANSWERS, ANSWERS)])
    names = [path.name for path in table.write(tmp_path)]
    assert names == [f"main{end}" for end in ENDS]
    frame = pd.read_csv(tmp_path / "tables" / "main.csv", dtype={"table": str})
    assert list(frame.columns) == LONG_COLUMNS
    measured = frame[(frame["source"] == "measured") & (frame["metric"] == "accuracy")]
    arc = measured[measured["task"] == "arc-e"].iloc[0]
    assert (arc["value"], arc["n"], arc["unit"], arc["method"]) == (100.0, 120, "%", "lora")
    assert (frame["source"] == "reported").sum() == 160
    rows = json.loads((tmp_path / "tables" / "main.json").read_text())
    assert len(rows) == len(frame)
    assert rows[0].keys() == set(LONG_COLUMNS)
    assert not any(value != value for row in rows for value in row.values())  # null, never NaN


def test_a_table_names_what_it_was_made_of() -> None:
    table = rendered([make_record(make_spec("lora"), ANSWERS, ANSWERS)])
    for fact in ("abc123", "bundled miniature", "bundled tiny", "torch 2.13.0", "evaluation 120"):
        assert fact in table.markdown
    assert table.provenance["rows"]["arc-e"] == {"train": [7], "evaluation": [120]}
