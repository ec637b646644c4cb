"""The efficiency table: what it measures, its numbers by other arithmetic, and what it prints."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.numbers.comparison import LONG_COLUMNS
from harness.show.data import TableData
from harness.speed.records import MeasureRecord
from harness.speed.spec import MeasureSpec
from harness.speed.table import MeasuredPlan

from .measure_builders import make_measure_record, make_plan

RENDER = ("--table", "efficiency", "--render-only", "--device", "cpu")
NAMES = ("lora", "dora", "mixlora/fused", "mixdora/fused", "mixlora-x2/fused")
ROWS = ("--methods", ",".join(NAMES))


def random_record(spec: MeasureSpec, seed: int) -> MeasureRecord:
    """Five runs of random times, or a random peak."""
    draw = random.Random(seed)
    if spec.quantity == "memory":
        baseline = draw.randrange(10**9)
        return make_measure_record(spec, peak=(baseline + draw.randrange(10**9), baseline))
    phases = ("forward", "backward") if spec.workload == "train" else ("forward",)
    times = [
        {phase: [draw.uniform(1, 2) for _ in range(5)] for phase in phases} for _ in spec.subjects
    ]
    return make_measure_record(spec, times)


def filled(plan: MeasuredPlan) -> dict[MeasureSpec, MeasureRecord]:
    return {spec: random_record(spec, seed) for seed, spec in enumerate(plan.specs)}


def value(rendered: TableData, method: str, setting: str, metric: str) -> dict[str, Any]:
    """The one measured row of the long form."""
    key = {"source": "measured", "method": method, "setting": setting, "metric": metric}
    (row,) = [row for row in rendered.numbers if key.items() <= row.items()]
    return row


def cells(markdown: str, heading: str, *starts: str) -> list[str]:
    """Cells of the row that begins so, in the block under that heading."""
    block = markdown[markdown.index(heading) :]
    for line in block.splitlines():
        found = [cell.strip() for cell in line.strip("|").split("|")]
        if found[: len(starts)] == list(starts):
            return found[len(starts) :]
    raise AssertionError(f"no row begins with {starts}")


def test_what_is_measured_together() -> None:
    plan = make_plan(*RENDER, *ROWS, "--shape", "gemma-2b", "--tokens", "3x32", "--runs", "4")
    found = [
        (s.quantity, s.workload, s.runs, tuple((u.name, u.rows, u.length) for u in s.subjects))
        for s in plan.specs
    ]
    assert len(found) == len(set(found))
    assert {(s.shape, s.layers, s.dtype) for s in plan.specs} == {("gemma-2b", 1, "float32")}
    for workload, rows in (("train", 3), ("inference", 3), ("decode", 1), ("decode", 8)):
        lora = ("lora", rows, 32)
        for beside in (
            [lora],
            [lora, ("dora", rows, 32)],
            [lora, ("mixlora/fused", rows, 32)],
            [lora, ("dora", rows, 32), ("mixdora/fused", rows, 32)],
            [lora, ("mixlora/fused", rows, 32), ("mixlora-x2/fused", 2 * rows, 32)],
        ):
            assert ("latency", workload, 4, tuple(beside)) in found
    memory = [(workload, subjects) for kind, workload, _, subjects in found if kind == "memory"]
    assert len(memory) == 2 * len(NAMES) and len(found) == 20 + len(memory)
    assert {len(subjects) for _, subjects in memory} == {1}


def test_what_a_row_is_compared_with_is_measured_too() -> None:
    plan = make_plan(*RENDER, "--methods", "mixlora-x2/shared")
    memory = [s.measured.name for s in plan.specs if s.quantity == "memory"]
    assert memory == [n for n in ("lora", "mixlora/shared", "mixlora-x2/shared") for _ in range(2)]


@pytest.mark.parametrize(
    ("shape", "layers", "batch"), [("smollm2-135m", 30, (8, 96)), ("llama2-13b", 1, (1, 256))]
)
def test_defaults_by_shape(shape: str, layers: int, batch: tuple[int, int]) -> None:
    spec = make_plan(*RENDER, "--shape", shape).specs[0]
    assert (spec.layers, (spec.measured.batch, spec.measured.length)) == (layers, batch)
    assert dict(spec.measured.settings)["r"] == 80


def test_latencies_by_other_arithmetic() -> None:
    plan = make_plan(*RENDER, *ROWS, "--tokens", "4x10")
    records = filled(plan)
    rendered = plan.render(records)
    tokens = {"train": 40, "inference": 40, "decode-b1": 1, "decode-b8": 8}
    checked = 0
    for spec, record in records.items():
        if spec.quantity == "memory":
            continue
        name = spec.measured.name
        setting = f"decode-b{spec.measured.batch}" if spec.workload == "decode" else spec.workload
        times = [report["latency"] for report in record.reports]
        steps = [
            [sum(run) for run in zip(*(t[p]["seconds"] for p in t), strict=True)] for t in times
        ]
        metric = "step_latency" if setting == "train" else "forward_latency"
        packed = 2 if "-x2" in name else 1
        microseconds = [second / (packed * tokens[setting]) * 1e6 for second in steps[-1]]
        row = value(rendered, name, setting, metric)
        low, middle, high = statistics.quantiles(microseconds, n=4, method="inclusive")
        assert (row["value"], row["q25"], row["q75"]) == pytest.approx((middle, low, high))
        assert (row["unit"], row["n"], row["meter"]) == ("us/token", 5, "perf_counter")
        ratios = [100 * a / (packed * b) for a, b in zip(steps[-1], steps[0], strict=True)]
        row = value(rendered, name, setting, f"{metric}_ratio")
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        assert (row["value"], row["q25"], row["q75"]) == pytest.approx((middle, low, high))
        if len(steps) == 3:
            suffix = "ratio_to_x1" if packed == 2 else "ratio_to_dora"
            ratios = [100 * a / (packed * b) for a, b in zip(steps[2], steps[1], strict=True)]
            row = value(rendered, name, setting, f"{metric}_{suffix}")
            assert row["value"] == pytest.approx(statistics.median(ratios))
        checked += 1
    assert checked == 20


def test_memory_by_other_arithmetic() -> None:
    plan = make_plan(*RENDER, *ROWS)
    records = filled(plan)
    rendered = plan.render(records)
    peaks = {
        (s.workload, s.measured.name): r.reports[0]["memory"]["process"]
        for s, r in records.items()
        if s.quantity == "memory"
    }
    for (setting, name), peak in peaks.items():
        share = 0.5 if "-x2" in name else 1.0
        total = share * peak["peak_bytes"]
        above = share * (peak["peak_bytes"] - peak["baseline_bytes"])
        lora = peaks[setting, "lora"]
        expected = {
            "peak_memory": total / 1e9,
            "peak_memory_above_weights": above / 1e9,
            "peak_memory_ratio": 100 * total / lora["peak_bytes"],
            "peak_memory_above_weights_ratio": 100
            * above
            / (lora["peak_bytes"] - lora["baseline_bytes"]),
        }
        for metric, number in expected.items():
            assert value(rendered, name, setting, metric)["value"] == pytest.approx(number)
    one, two = peaks["train", "mixlora/fused"], peaks["train", "mixlora-x2/fused"]
    ratio = value(rendered, "mixlora-x2/fused", "train", "peak_memory_ratio_to_x1")["value"]
    assert ratio == pytest.approx(50 * two["peak_bytes"] / one["peak_bytes"])


def test_the_papers_ratio_stands_beside_ours() -> None:
    rows = ("--methods", "lora,mixlora/vanilla,mixlora/fused", "--shape", "llama2-7b")
    plan = make_plan(*RENDER, *rows)
    rendered = plan.render(filled(plan))
    line = cells(rendered.markdown, "## Relative to LoRA", "MixLoRA vanilla")
    settings = ["train"] * 5 + ["inference"] * 3 + ["decode-b1", "decode-b8"]
    metrics = [
        *("forward_latency", "backward_latency", "step_latency"),
        *("peak_memory", "peak_memory_above_weights", "forward_latency"),
        *("peak_memory", "peak_memory_above_weights", "forward_latency", "forward_latency"),
    ]
    papers = ["218.2", "215.0", None, "99.5", None, "220.7", "100.0", None, None, None]
    expected = []
    for setting, metric, paper in zip(settings, metrics, papers, strict=True):
        ours = value(rendered, "mixlora/vanilla", setting, f"{metric}_ratio")["value"]
        expected.append(f"{ours:.1f}" if paper is None else f"{ours:.1f} ({paper})")
    assert line == expected
    assert "(-)" in cells(rendered.markdown, "## Relative to LoRA", "MixLoRA fused")[0]
    assert "Reported by the paper for other models" not in rendered.markdown
    reported = [row for row in rendered.numbers if row["source"] == "reported"]
    assert {row["model"] for row in reported} == {"llama2-7b"} and len(reported) == 60
    assert {row["table"] for row in rendered.numbers} == {"6"}


def test_another_shape_has_the_papers_ratios_apart() -> None:
    plan = make_plan(*RENDER, "--methods", "lora,mixlora/fused")
    rendered = plan.render(filled(plan))
    assert "(" not in "".join(cells(rendered.markdown, "## Relative to LoRA", "MixLoRA fused"))
    reported = "### Reported by the paper for other models"
    assert cells(rendered.markdown, reported, "gemma-2b", "MixLoRA x2 shared") == [
        *("148.1", "169.9", "66.9", "145.6", "61.5")
    ]


def changed(
    records: dict[MeasureSpec, MeasureRecord], name: str, quantity: str, workload: str, **end: Any
) -> None:
    for spec in records:
        if (spec.measured.name, spec.quantity, spec.workload) == (name, quantity, workload):
            records[spec] = make_measure_record(spec, **end)


def test_what_stands_where_there_is_no_number() -> None:
    plan = make_plan(*RENDER, "--methods", "lora,dora,mixdora/fused")
    records = filled(plan)
    changed(records, "dora", "latency", "train", status="OOM", reason="killed")
    changed(records, "dora", "memory", "train", status="OOM", reason="killed")
    changed(records, "dora", "latency", "inference", status="failed", reason="ValueError: no")
    changed(records, "dora", "memory", "inference")
    records = {spec: r for spec, r in records.items() if spec.workload != "decode"}
    rendered = plan.render(records)
    expected = ["OOM"] * 5 + ["failed", "unavailable", "unavailable", "-", "-"]
    for heading in ("## Relative to LoRA", "## Measured: median"):
        assert cells(rendered.markdown, heading, "DoRA") == expected
    # MixDoRA's latencies beside DoRA are of another measurement; its memory has nothing beside it.
    line = cells(rendered.markdown, "## MixDoRA relative to DoRA", "MixDoRA fused")
    assert "-" not in line[:3] and line[3:5] == ["-", "-"] and line[6:] == ["-"] * 4
    assert "failed: smollm2-135m inference latency dora" in rendered.markdown
    assert "memory by process: unavailable: no process here" in rendered.markdown
    assert rendered.failed == 1
    row = value(rendered, "dora", "train", "peak_memory")
    assert (row["value"], row["status"], row["unit"]) == (None, "OOM: killed", "GB")
    assert value(rendered, "dora", "inference", "peak_memory")["status"].startswith("unavailable")
    assert "0.0" not in " ".join(cells(rendered.markdown, "## Measured: median", "DoRA"))


def test_every_memory_source_has_a_column_of_its_own_on_a_gpu() -> None:
    arguments = ("--table", "efficiency", "--render-only", "--device", "cuda")
    plan = make_plan(*arguments, "--methods", "lora,mixlora-x2/fused")
    records = filled(plan)
    sources = {"torch_allocated": (8 * 10**9, 6 * 10**9), "process": (2 * 10**9, 10**9)}
    changed(records, "mixlora-x2/fused", "memory", "train", **sources)
    changed(records, "lora", "memory", "train", **sources, nvml_device=(9 * 10**9, 7 * 10**9))
    markdown = plan.render(records).markdown
    line = cells(markdown, "## Measured: median", "MixLoRA x2 fused")
    assert line[3:5] == ["4.000", "1.000"]
    assert cells(markdown, "## Relative to LoRA", "MixLoRA x2 fused")[3:5] == ["50.0", "50.0"]
    heads = cells(markdown, "## Peak memory by other sources", "method")
    lines = [cells(markdown, "## Peak memory by other", n) for n in ("LoRA", "MixLoRA x2 fused")]
    by_head = [dict(zip(heads, line, strict=True)) for line in lines]
    assert [line["train, nvml_device"] for line in by_head] == ["9.000", "unavailable"]
    assert [line["train, process"] for line in by_head] == ["2.000", "1.000"]


def test_files_hold_the_long_form(tmp_path: Path) -> None:
    plan = make_plan(*RENDER, "--methods", "lora,mixlora/fused")
    names = [path.name for path in plan.render(filled(plan)).write(tmp_path)]
    stem = "efficiency-smollm2-135m"
    assert names == [
        f"{stem}{end}" for end in (".md", ".csv", ".json", ".provenance.json", ".table.json")
    ]
    frame = pd.read_csv(tmp_path / "tables" / f"{stem}.csv", dtype={"table": str})
    assert list(frame.columns)[: len(LONG_COLUMNS)] == LONG_COLUMNS
    row = frame[frame["metric"] == "step_latency_ratio"].set_index("method").loc["lora"]
    assert (row["value"], row["q25"], row["unit"], row["batch"]) == (100.0, 100.0, "%", 8)
    assert set(frame["source"]) == {"measured", "reported"}
    text = (tmp_path / "tables" / f"{stem}.csv").read_text()
    assert ",30,8,96,float32,cpu," in text and ",30.0," not in text


def test_nothing_measured_is_dashes_not_an_error() -> None:
    plan = make_plan(*RENDER, *ROWS)
    rendered = plan.render({})
    for name in ("LoRA", "MixDoRA fused"):
        assert cells(rendered.markdown, "## Measured: median", name) == ["-"] * 10
    assert rendered.failed == 0


def test_what_it_was_made_of() -> None:
    plan = make_plan(*RENDER, "--methods", "lora", "--layers", "7")
    markdown = plan.render(filled(plan)).markdown
    facts: Sequence[str] = ("7 of 30 layers", "abc123", "torch 2.13.0", "load average", "r 80")
    for fact in facts:
        assert fact in markdown
