"""The scaling table: its points, what each is compared with, its numbers, tables and figures."""

from __future__ import annotations

import random
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from harness.speed.records import MeasureRecord
from harness.speed.spec import MeasureSpec, Subject
from harness.tables.scaling import SCALING_COLUMNS

from .measure_builders import make_measure_record, make_plan

RENDER = ("--table", "scaling", "--render-only", "--device", "cpu")


def random_record(spec: MeasureSpec, seed: int) -> MeasureRecord:
    draw = random.Random(seed)
    if spec.quantity == "memory":
        return make_measure_record(spec, peak=(draw.randrange(2, 9) * 10**8, 10**8))
    phases = ("forward", "backward") if spec.workload == "train" else ("forward",)
    return make_measure_record(
        spec, [{p: [draw.uniform(1, 2) for _ in range(4)] for p in phases} for _ in spec.subjects]
    )


def sizes(subject: Subject) -> tuple[int, ...]:
    settings = dict(subject.settings)
    return (
        *(settings[name] for name in ("num_experts", "top_k", "r")),
        *(subject.batch, subject.length),
    )


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("num_experts", [[(e, 2, 16, 1, 256) for e in (2, 4, 8, 16, 32, 64)]]),
        ("top_k", [[(8, k, 16, 1, 256) for k in (1, 2, 4, 8)]]),
        ("r", [[(8, 2, r, 1, 256) for r in (2, 4, 8, 16, 32, 64)]]),
        ("tokens", [[(8, 2, 16, 1, t)] for t in (1, 4, 16, 64, 256, 1024, 4096)]),
        ("length", [[(8, 2, 16, 1024 // s, s)] for s in (64, 128, 256, 512, 1024)]),
    ],
)
def test_points_on_one_batch_take_turns_with_lora(
    sweep: str, expected: list[list[tuple[int, ...]]]
) -> None:
    plan = make_plan(*RENDER, "--sweeps", sweep, "--shape", "llama2-7b")
    for workload in ("train", "inference"):
        specs = [s for s in plan.specs if (s.quantity, s.workload) == ("latency", workload)]
        assert [[sizes(point) for point in spec.subjects[1:]] for spec in specs] == expected
        for spec in specs:
            lora, *points = spec.subjects
            assert {point.name for point in points} == {"mixlora/fused"}
            assert (lora.name, lora.batch, lora.length) == ("lora", *sizes(points[0])[3:])
    memory = [s.measured for s in plan.specs if s.quantity == "memory"]
    fused = [sizes(subject) for subject in memory if subject.name != "lora"]
    assert fused == [point for points in expected for point in points]
    assert len(memory) == len(fused) + len(expected)


def test_what_several_sweeps_measure_is_measured_once() -> None:
    specs = make_plan(*RENDER).specs
    assert len(specs) == len(set(specs))
    memory = [
        sizes(s.measured) for s in specs if s.measured.name != "lora" and s.quantity == "memory"
    ]
    assert memory.count((8, 2, 16, 1, 256)) == memory.count((8, 2, 16, 1, 1024)) == 1


@pytest.mark.parametrize(("shape", "layers"), [("smollm2-135m", 4), ("gemma-2b", 1)])
def test_defaults_by_shape(shape: str, layers: int) -> None:
    assert {s.layers for s in make_plan(*RENDER, "--shape", shape).specs} == {layers}


def test_numbers_by_other_arithmetic() -> None:
    plan = make_plan(*RENDER, "--sweeps", "num_experts,tokens")
    records = {spec: random_record(spec, seed) for seed, spec in enumerate(plan.specs)}
    rendered = plan.render(records)
    found = {(r["sweep"], r["point"], r["setting"], r["metric"]): r for r in rendered.numbers}
    assert all(list(row) == SCALING_COLUMNS for row in rendered.numbers)
    (record,) = (
        r for r in records.values() if r.spec.workload == "inference" and len(r.spec.subjects) == 7
    )
    times = [report["latency"]["forward"]["seconds"] for report in record.reports]
    lora, default, point = times[0], times[3], times[6]  # of LoRA, 8 and 64 experts
    per_token = [second / 256 * 1e6 for second in point]
    key = ("num_experts", 64, "inference")
    assert found[(*key, "forward_latency")]["value"] == pytest.approx(statistics.median(per_token))
    for metric, other in (("ratio", lora), ("ratio_to_default", default)):
        ratios = [100 * a / b for a, b in zip(point, other, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row = found[(*key, f"forward_latency_{metric}")]
        assert (row["q25"], row["value"], row["q75"]) == pytest.approx((low, middle, high))
    assert found["num_experts", 8, "train", "step_latency_ratio_to_default"]["value"] == 100
    (record,) = (
        r
        for r in records.values()
        if r.spec.measured.length == 4096
        if r.spec.workload == "inference"
    )
    lora, point = [report["latency"]["forward"]["seconds"] for report in record.reports]
    ratios = [100 * a / b for a, b in zip(point, lora, strict=True)]
    key = ("tokens", 4096, "inference")
    assert found[(*key, "forward_latency_ratio")]["value"] == pytest.approx(
        statistics.median(ratios)
    )
    # Points on different batches are not compared with each other.
    assert (*key, "forward_latency_ratio_to_default") not in found

    peaks = {s.measured: r for s, r in records.items() if s.quantity == "memory"}
    above = {
        sizes(subject)[0]: r.reports[0]["memory"]["process"]["peak_bytes"] - 10**8
        for subject, r in peaks.items()
        if subject.name != "lora" and subject.length == 256
    }
    row = found["num_experts", 64, "train", "peak_memory_above_weights_ratio_to_default"]
    assert row["value"] == pytest.approx(100 * above[64] / above[8])


def test_out_of_memory_is_printed_and_figures_are_drawn(tmp_path: Path) -> None:
    plan = make_plan(*RENDER, "--sweeps", "r")
    records = {spec: random_record(spec, seed) for seed, spec in enumerate(plan.specs)}
    for spec in records:
        if spec.quantity == "memory" and dict(spec.measured.settings)["r"] == 64:
            records[spec] = make_measure_record(spec, status="OOM", reason="killed")
    rendered = plan.render(records)
    lines = {
        line.split("|")[1].strip(): line for line in rendered.markdown.splitlines() if "|" in line
    }
    cells = [cell.strip() for cell in lines["64"].split("|")[2:-1]]
    assert cells[6:] == ["OOM"] * 3 and "OOM" not in cells[:6]
    assert rendered.failed == 0
    paths = rendered.write(tmp_path)
    images = [path for path in paths if path.parent.name == "figures"]
    assert [path.name for path in images] == [f"scaling-smollm2-135m-r.{k}" for k in ("svg", "png")]
    assert images[1].read_bytes().startswith(b"\x89PNG")
    root = ElementTree.parse(images[0]).getroot()
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"rank", "32", "latency, us per token", "memory above weights, GB"} <= texts
    assert "shaded: quartiles over runs; dashed: LoRA r = 80" in texts
    assert plan.render(records).figures == rendered.figures


def test_what_another_sweep_has_measured_alone_is_drawn_alone() -> None:
    plan = make_plan(*RENDER, "--sweeps", "tokens")
    records = {
        spec: random_record(spec, seed)
        for seed, spec in enumerate(plan.specs)
        if spec.quantity == "memory" and spec.measured.length == 256
    }
    rendered = plan.render(records)
    svg = rendered.figures["scaling-smollm2-135m-tokens.svg"].decode()
    assert "memory above weights, GB" in svg and "latency" not in svg


def test_nothing_measured_is_dashes_and_no_figure() -> None:
    rendered = make_plan(*RENDER).render({})
    assert rendered.numbers == [] and rendered.figures == {}
    assert "| 4096" in rendered.markdown
