"""Measured beside reported: values worked out by hand, and what must never be computed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.numbers.comparison import LONG_COLUMNS, compare, load_reported
from harness.paper.reported import REPORTED_CSV
from harness.store.records import RunRecord
from tasks import TASK_NAMES

from .builders import make_record, make_spec


def table(records: list[RunRecord], tasks: list[str]) -> pd.DataFrame:
    frame = compare({"st": records}, "st", ["1"], tasks, TASK_NAMES)
    assert list(frame.columns) == LONG_COLUMNS
    return frame[frame["source"] == "measured"]


def value(frame: pd.DataFrame, method: str, task: str, metric: str) -> float:
    chosen = frame[
        (frame["method"] == method) & (frame["task"] == task) & (frame["metric"] == metric)
    ]
    assert len(chosen) == 1, f"{len(chosen)} rows of {method} {task} {metric}"
    return float(chosen["value"].iloc[0])


def test_label_scoring_by_hand() -> None:
    answers = [0, 1, 2, 3, 0, 0]
    frame = table(
        [
            make_record(make_spec("lora"), answers, [0, 1, 2, 0, 1, 1]),  # 3 of 6
            make_record(make_spec("mixlora"), answers, [0, 1, 2, 3, 0, 1], trainable=2500),  # 5
        ],
        ["arc-e"],
    )
    assert value(frame, "lora", "arc-e", "accuracy") == pytest.approx(50.0)
    assert value(frame, "mixlora", "arc-e", "accuracy") == pytest.approx(500 / 6)
    assert value(frame, "mixlora", "arc-e", "accuracy_minus_lora") == pytest.approx(200 / 6)
    assert value(frame, "mixlora", "arc-e", "accuracy_minus_lora_p") == pytest.approx(0.5, abs=0.02)
    assert value(frame, "", "arc-e", "majority_class") == pytest.approx(50.0)
    assert value(frame, "mixlora", "", "trainable_parameters") == 2500
    assert value(frame, "mixlora", "", "params") == pytest.approx(2.5)
    chosen = frame[(frame["method"] == "lora") & (frame["metric"] == "accuracy")].iloc[0]
    assert chosen["stderr"] == pytest.approx(100 * math.sqrt(0.25 / 5))
    assert (chosen["n"], chosen["seed"]) == (6, "0")
    assert "accuracy_minus_lora" not in set(frame[frame["method"] == "lora"]["metric"])


def test_choice_scoring_never_shares_a_column_with_label_scoring() -> None:
    spec = make_spec("lora", scoring="choice")
    frame = table([make_record(spec, [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0])], ["arc-e"])
    assert value(frame, "lora", "arc-e", "acc") == pytest.approx(50.0)
    assert value(frame, "lora", "arc-e", "acc_norm") == pytest.approx(50.0)
    assert value(frame, "lora", "arc-e", "acc_collapsed") == 0
    assert value(frame, "lora", "arc-e", "acc_norm_collapsed") == 1
    assert "accuracy" not in set(frame["metric"])


def test_seeds_are_averaged() -> None:
    records = [
        make_record(make_spec("lora", seed=seed), [0, 1, 0, 1], predictions)
        for seed, predictions in ((3, [0, 1, 0, 0]), (1, [0, 0, 0, 0]))
    ]
    frame = table(records, ["arc-e"])
    assert value(frame, "lora", "arc-e", "accuracy") == pytest.approx(62.5)
    assert set(frame[frame["metric"] == "accuracy"]["seed"]) == {"1,3"}
    # 75 and 50 %.
    assert value(frame, "lora", "arc-e", "accuracy_seed_std") == pytest.approx(25 / 2**0.5)


def test_p_values_are_adjusted_for_all_tests_of_a_model() -> None:
    answers = [0, 1] * 30
    better = [1 - a for a in answers[:12]] + answers[12:]
    records = [
        make_record(make_spec(method, task), answers, predictions)
        for method, predictions in (("lora", better), ("dora", answers), ("mixlora", better))
        for task in ("arc-e", "piqa")
    ]
    frame = table(records, ["arc-e", "piqa"])
    for task in ("arc-e", "piqa"):
        raw = value(frame, "dora", task, "accuracy_minus_lora_p")
        assert value(frame, "dora", task, "accuracy_minus_lora_p_holm") == pytest.approx(4 * raw)


def test_average_needs_every_task_asked_for() -> None:
    records = [
        make_record(make_spec("lora", "arc-e"), [0, 1], [0, 1]),
        make_record(make_spec("lora", "piqa"), [0, 1], [0, 0]),
        make_record(make_spec("dora", "arc-e"), [0, 1], [0, 0]),
    ]
    frame = table(records, ["arc-e", "piqa"])
    assert value(frame, "lora", "avg of 2", "accuracy") == pytest.approx(75.0)
    assert "dora" not in set(frame[frame["task"] == "avg of 2"]["method"])
    assert "avg" not in set(frame["task"])


def test_other_rows_are_not_paired() -> None:
    records = [
        make_record(make_spec("lora"), [0, 1], [0, 1]),
        make_record(make_spec("dora"), [0, 1], [0, 0], eval_data="other rows"),
    ]
    assert "accuracy_minus_lora" not in set(table(records, ["arc-e"])["metric"])


def test_a_difference_to_the_paper_needs_the_same_model() -> None:
    answers, right = [0] * 10, [0] * 8 + [1] * 2
    tiny = table([make_record(make_spec("lora"), answers, right)], ["arc-e"])
    assert not [metric for metric in tiny["metric"] if "minus_paper" in metric]
    gemma = make_record(
        make_spec("lora", model="gemma-2b"),
        answers,
        right,
        trainable=98_058_240,
        base=2_506_172_416,
    )
    frame = table([gemma], ["arc-e"])
    assert value(frame, "lora", "arc-e", "accuracy_minus_paper") == pytest.approx(80.0 - 71.9)
    # Percent of the paper's nominal 3.03e9, not of the exact size: the paper prints 3.2.
    assert value(frame, "lora", "", "params") == pytest.approx(3.236, abs=5e-4)
    assert value(frame, "lora", "", "params_minus_paper") == pytest.approx(0.036, abs=5e-4)


def test_choice_scoring_is_not_compared_with_the_paper() -> None:
    spec = make_spec("lora", model="gemma-2b", scoring="choice")
    frame = table([make_record(spec, [0, 1], [0, 1], [0, 1])], ["arc-e"])
    assert "acc_minus_paper" not in set(frame["metric"])
    assert "accuracy_minus_paper" not in set(frame["metric"])


def test_reported_numbers_are_the_papers() -> None:
    frame = load_reported("1")
    assert len(frame) == 160
    assert set(frame["source"]) == {"reported"}
    rows = frame[(frame["model"] == "llama2-7b") & (frame["task"] == "avg")]
    assert dict(zip(rows["method"], rows["value"], strict=True))["lora"] == 71.8


def test_a_value_that_is_no_number_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "reported.csv"
    monkeypatch.setattr("harness.numbers.comparison.REPORTED_CSV", path)
    path.write_text(REPORTED_CSV.read_text().replace(",43.2,", ",forty,", 1))
    with pytest.raises(ValueError, match="row 4, column value: got 'forty', expected a number"):
        load_reported("1")
    path.write_text("table,model\n1,x\n")
    with pytest.raises(ValueError, match=r"column method, setting, .* is missing"):
        load_reported("1")
