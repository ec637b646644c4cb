"""The scaling table: its points, what each is compared with, its numbers, tables and figures."""

from __future__ import annotations

import random
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from results.measure.records import MeasureRecord
from results.measure.spec import MeasureSpec, Subject
from results.tables.scaling import SCALING_COLUMNS

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
    ("sweep", "expected", "default"),
    [
        ("num_experts", [(e, 2, 16, 1, 256) for e in (2, 4, 8, 16, 32, 64)], (8, 2, 16, 1, 256)),
        ("top_k", [(8, k, 16, 1, 256) for k in (1, 2, 4, 8)], (8, 2, 16, 1, 256)),
        ("r", [(8, 2, r, 1, 256) for r in (2, 4, 8, 16, 32, 64)], (8, 2, 16, 1, 256)),
        (
            "tokens",
            [(8, 2, 16, 1, t) for t in (1, 4, 16, 64, 256, 1024, 4096)],
            (8, 2, 16, 1, 256),
        ),
        (
            "length",
            [(8, 2, 16, 1024 // s, s) for s in (64, 128, 256, 512, 1024)],
            (8, 2, 16, 1, 1024),
        ),
    ],
)
def test_the_points_and_what_runs_beside_them(
    sweep: str, expected: list[tuple[int, ...]], default: tuple[int, ...]
) -> None:
    plan = make_plan(*RENDER, "--sweeps", sweep, "--shape", "llama2-7b")
    for workload in ("train", "inference"):
        specs = [s for s in plan.specs if (s.quantity, s.workload) == ("latency", workload)]
        assert [sizes(spec.measured) for spec in specs] == expected
        for spec in specs:
            lora, *others = spec.subjects
            assert (lora.name, lora.batch, lora.length) == ("lora", *sizes(spec.measured)[3:])
            others = [sizes(subject) for subject in others]
            point = sizes(spec.measured)
            assert others == ([point] if point == default else [default, point])
    memory = {s.measured for s in plan.specs if s.quantity == "memory"}
    assert {sizes(subject) for subject in memory if subject.name != "lora"} == set(expected)


def test_a_point_of_several_sweeps_is_measured_once() -> None:
    specs = make_plan(*RENDER).specs
    assert len(specs) == len(set(specs))
    defaults = [s for s in specs if len(s.subjects) == 2 and s.workload == "train"]
    # (1, 256), the default of four sweeps, and (1, 1024), that of the sequence length.
    assert [s.measured.length for s in defaults] == [256, 1024]


@pytest.mark.parametrize(("shape", "layers"), [("smollm2-135m", 4), ("gemma-2b", 1)])
def test_defaults_by_shape(shape: str, layers: int) -> None:
    assert {s.layers for s in make_plan(*RENDER, "--shape", shape).specs} == {layers}


def test_numbers_by_other_arithmetic() -> None:
    plan = make_plan(*RENDER, "--sweeps", "num_experts,tokens")
    records = {spec: random_record(spec, seed) for seed, spec in enumerate(plan.specs)}
    rendered = plan.render(records)
    found = {(r["sweep"], r["point"], r["setting"], r["metric"]): r for r in rendered.rows}
    assert all(list(row) == SCALING_COLUMNS for row in rendered.rows)
    (record,) = (
        r
        for r in records.values()
        if r.spec.measured.length == 4096
        if r.spec.workload == "inference"
    )
    lora, default, point = [report["latency"]["forward"]["seconds"] for report in record.reports]
    per_token = [second / 4096 * 1e6 for second in point]
    key = ("tokens", 4096, "inference")
    assert found[(*key, "forward_latency")]["value"] == pytest.approx(statistics.median(per_token))
    ratios = [100 * a / b for a, b in zip(point, lora, strict=True)]
    assert found[(*key, "forward_latency_ratio")]["value"] == pytest.approx(
        statistics.median(ratios)
    )
    # Per token, so that 4096 tokens can be compared with the default's 256.
    ratios = [100 * (a / 4096) / (b / 256) for a, b in zip(point, default, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    row = found[(*key, "forward_latency_ratio_to_default")]
    assert (row["q25"], row["value"], row["q75"]) == pytest.approx((low, middle, high))
    assert found["num_experts", 8, "train", "step_latency_ratio_to_default"]["value"] == 100

    peaks = {s.measured: r for s, r in records.items() if s.quantity == "memory"}
    above = {
        sizes(subject)[0]: r.reports[0]["memory"]["process"]["peak_bytes"] - 10**8
        for subject, r in peaks.items()
        if subject.name != "lora" and subject.length == 256
    }
    row = found["num_experts", 64, "train", "peak_memory_above_weights_ratio_to_default"]
    assert row["value"] == pytest.approx(100 * above[64] / above[8])


def test_table_and_figures_leave_out_what_has_no_number(tmp_path: Path) -> None:
    plan = make_plan(*RENDER, "--sweeps", "r")
    records = {spec: random_record(spec, seed) for seed, spec in enumerate(plan.specs)}
    for spec in records:
        if dict(spec.measured.settings)["r"] == 64:
            records[spec] = make_measure_record(spec, status="OOM", reason="killed")
    rendered = plan.render(records)
    lines = {
        line.split("|")[1].strip(): line for line in rendered.markdown.splitlines() if "|" in line
    }
    assert [cell.strip() for cell in lines["64"].split("|")[2:-1]] == ["OOM"] * 9
    assert rendered.failed == 0
    paths = rendered.write(tmp_path)
    images = [path for path in paths if path.parent.name == "figures"]
    assert [path.name for path in images] == [f"scaling-smollm2-135m-r.{k}" for k in ("svg", "png")]
    assert images[1].read_bytes().startswith(b"\x89PNG")
    root = ElementTree.parse(images[0]).getroot()
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"rank", "32", "latency, us per token", "memory above weights, GB"} <= texts
    assert "64" not in texts
    assert plan.render(records).figures == rendered.figures


def test_nothing_measured_is_dashes_and_no_figure() -> None:
    rendered = make_plan(*RENDER).render({})
    assert rendered.rows == [] and rendered.figures == {}
    assert "| 4096" in rendered.markdown
