"""Tables of several settings: their cells, what each is compared with, and how they are printed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest

from harness.accuracy import AccuracyPlan
from harness.cells.packing import make_packs
from harness.cells.spec import RunSpec
from harness.command_line import parse
from harness.numbers.comparison import compare
from harness.schedule.executor import Outcome
from harness.show.accuracy import render
from harness.store.records import RunRecord
from harness.tables import get_table

from .builders import make_record, make_request, make_spec
from .test_render import row

ANSWERS = [0, 1, 2, 3]
RENDER = ("--render-only", "--device", "cpu")


def make_plan(*arguments: str) -> AccuracyPlan:
    table, options = parse([*arguments, *RENDER])
    plan = table.plan(options)
    assert isinstance(plan, AccuracyPlan)
    return plan


def record_of(method: str, setting: str, predictions: list[int], rows: str = "") -> RunRecord:
    """Of ARC-e; a multi-task cell has other rows beside, and so another fingerprint of all."""
    record = make_record(make_spec(method), ANSWERS, predictions, eval_data=f"all of {setting}")
    tasks = {name: dataclasses.replace(t, rows=rows or None) for name, t in record.tasks.items()}
    return dataclasses.replace(record, tasks=tasks)


def values(frame: pd.DataFrame, method: str, setting: str) -> dict[tuple[str, str], float]:
    chosen = frame.query("source == 'measured' and method == @method and setting == @setting")
    return {(r.task, r.metric): r.value for r in chosen.itertuples()}


def test_multi_task_against_single_task_by_hand() -> None:
    records = {
        "st": [
            record_of("lora", "st", [0, 1, 2, 3], "same"),
            record_of("mixlora", "st", [0, 1, 0, 0], "same"),
        ],
        "mt": [
            record_of("lora", "mt", [0, 0, 0, 3], "same"),
            record_of("mixlora", "mt", [0, 1, 2, 3], "same"),
        ],
    }
    frame = compare(records, "st", ["2", "5"], ["arc-e"], ["arc-e"])
    lora, mixlora = values(frame, "lora", "mt"), values(frame, "mixlora", "mt")
    assert lora["arc-e", "accuracy_minus_main"] == pytest.approx(-50)
    assert lora["avg", "accuracy_minus_main"] == pytest.approx(-50)
    assert mixlora["arc-e", "accuracy_minus_main"] == pytest.approx(50)
    # Against LoRA, each within its own setting.
    assert mixlora["arc-e", "accuracy_minus_lora"] == pytest.approx(50)
    assert values(frame, "mixlora", "st")["arc-e", "accuracy_minus_lora"] == pytest.approx(-50)
    assert ("arc-e", "accuracy_minus_main") not in values(frame, "lora", "st")
    assert set(frame.query("source == 'reported'")["table"]) == {"2", "5"}


def test_other_rows_are_not_compared_between_settings() -> None:
    for ours, theirs in (("one", "other"), ("", "")):
        records = {
            "st": [record_of("lora", "st", ANSWERS, ours)],
            "mt": [record_of("lora", "mt", ANSWERS, theirs)],
        }
        frame = compare(records, "st", ["2"], ["arc-e"], ["arc-e"])
        assert ("arc-e", "accuracy_minus_main") not in values(frame, "lora", "mt")


def test_a_setting_is_compared_with_the_papers_own() -> None:
    record = make_record(
        make_spec("mixlora", model="llama2-7b"), [0] * 10, [0] * 8 + [1] * 2, trainable=203_000_000
    )
    frame = compare({"r=8": [record], "r=16": []}, "r=16", ["8"], ["arc-e"], ["arc-e", "boolq"])
    found = values(frame, "mixlora", "r=8")
    assert found["arc-e", "accuracy_minus_paper"] == pytest.approx(80 - 76.9)
    assert found["", "params_minus_paper"] == pytest.approx(2.9 - 1.46)
    assert set(frame["table"]) == {"8"}


def test_cells_of_multi() -> None:
    plan = make_plan("--table", "multi")
    mixed = plan.by_setting["mt"]
    tasks = ("arc-e", "arc-c", "boolq", "obqa", "piqa")
    assert {(cell.train_tasks, cell.eval_tasks) for cell in mixed} == {(tasks, tasks)}
    assert [cell.method for cell in mixed] == ["lora", "dora", "mixlora", "mixdora"]
    # The untuned base, and every method on each of five tasks.
    assert len(plan.by_setting["st"]) == 25
    assert len(plan.cells) == 29


def settings_of(cells: list[RunSpec], *names: str) -> set[tuple[object, ...]]:
    return {tuple(dict(cell.adapter)[name] for name in names) for cell in cells}


def test_cells_of_rank() -> None:
    plan = make_plan("--table", "rank", "--preset", "paper", "--models", "llama2-7b")
    for rank in (2, 4, 8, 16, 32):
        cells = plan.by_setting[f"r={rank}"]
        assert settings_of(cells, "r", "lora_alpha") == {(rank, 2 * rank)}
        assert [cell.method for cell in cells] == ["mixlora", "mixdora"] * 4
        assert list(dict.fromkeys(t for c in cells for t in c.eval_tasks)) == [
            "arc-e",
            "arc-c",
            "boolq",
            "obqa",
        ]
    # The main setting's cells are Table 1's: they are not run twice.
    main = make_plan("--table", "main", "--preset", "paper", "--models", "llama2-7b")
    assert set(plan.by_setting["r=16"]) <= set(main.cells)
    assert not set(plan.by_setting["r=8"]) & set(main.cells)


def test_cells_of_router_loss() -> None:
    plan = make_plan("--table", "router-loss")
    found = [settings_of(cells, "router_aux_loss_coef") for cells in plan.by_setting.values()]
    assert found == [{(0.0,)}, {(0.001,)}, {(0.01,)}, {(0.1,)}]
    main = make_plan("--table", "main")
    assert set(plan.by_setting[plan.table.main]) <= set(main.cells)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--table", "rank", "--methods", "lora"), "unknown method 'lora'"),
        (("--table", "router-loss", "--tasks", "hellaswag"), "unknown task 'hellaswag'"),
        (("--table", "router_loss"), "did you mean router-loss"),
    ],
)
def test_what_a_table_does_not_have_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(*arguments)


def test_a_line_for_every_method_in_every_setting() -> None:
    table = get_table("multi")
    request = make_request(tasks=["arc-e"], methods=["base", "lora", "mixlora"])
    records = {
        "st": [
            record_of("lora", "st", [0, 1, 2, 3], "same"),
            record_of("mixlora", "st", [0, 1, 0, 0], "same"),
        ],
        "mt": [record_of("lora", "mt", [0, 0, 0, 3], "same")],
    }
    frame = compare(records, "st", ["2", "5"], ["arc-e"], ["arc-e"])
    outcome = Outcome(records={r.spec: r for found in records.values() for r in found})
    lines = [(method, setting) for method in request.methods for setting in ("st", "mt")]
    lines.remove(("base", "mt"))
    text = render(table, request, lines, outcome, frame).markdown  # type: ignore[arg-type]
    assert "# Multi-task against single-task accuracy (Table 2 and Table 5 of arXiv" in text
    assert row(text, "LoRA, one task")[2] == "100.0 ± 0.0"
    assert row(text, "LoRA, all tasks")[2] == "50.0 ± 28.9"
    assert row(text, "MixLoRA, all tasks") == ["-", "-", "-", "-"]
    assert "base (untuned), all tasks" not in text
    against = text[text.index("points above the same method with one task") :]
    assert row(against, "LoRA, all tasks")[1] == "-50.0"
    reported = text[text.index("## Reported by the paper") :]
    assert row(reported, "llama2-7b", "LoRA, all tasks") == ["-", "61.3", "65.5"]
    assert row(reported, "gemma-2b", "MixDoRA, difference as printed") == ["-", "-5.9", "-2.5"]


def test_cells_trained_together_are_found_in_their_settings() -> None:
    plan = make_plan(
        "--table", "rank", "--scoring", "label", "--methods", "mixlora", "--packed", "2"
    )
    packs = make_packs(plan.cells, 2)
    assert any(spec.packed_with for pack in packs for spec in pack)
    records = {
        spec: make_record(spec, ANSWERS, ANSWERS[:number] + [0] * (4 - number))
        for pack in packs
        for number, spec in enumerate(pack)
    }
    text = plan._render(Outcome(records=records)).markdown
    for rank in (2, 4, 8, 16, 32):
        assert "-" not in row(text, f"MixLoRA, r = {rank}")


def test_an_ablation_is_drawn_measured_beside_reported(tmp_path: Path) -> None:
    plan = make_plan(
        "--table", "rank", "--scoring", "label", "--tasks", "arc-e", "--methods", "mixlora"
    )
    records = {
        cell: make_record(cell, ANSWERS, ANSWERS[:number] + [0] * (4 - number))
        for number, cell in enumerate(plan.cells)
    }
    rendered = plan._render(Outcome(records=records))
    rendered.write(tmp_path)
    svg = (tmp_path / "figures" / "rank.svg").read_text()
    for text in (
        "tiny, measured",
        "accuracy (avg of 1), %",
        "llama2-7b, reported",
        "accuracy (avg), %",
        "32",
    ):
        assert text in svg
    assert rendered.figures["rank.png"].startswith(b"\x89PNG")
    svg = rendered.figures["rank-parameters.svg"].decode()
    # Table 8's "# Params", and 1,000 of 100,000; the legend says what the bands are.
    texts = set(re.findall(r">([^<]+)</text>", svg))
    assert {"0.38", "0.74", "1.46", "2.91", "5.8", "1"} <= texts
    assert "trainable parameters, % of the model" in texts
    assert any(text.startswith("shaded: standard error over examples") for text in texts)
    assert plan._render(Outcome()).figures.keys() == rendered.figures.keys()  # the paper's alone
