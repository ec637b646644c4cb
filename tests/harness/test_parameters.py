"""The "# Params" columns of the paper, from models on the meta device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.cells.presets import get_preset
from harness.models.shapes import SHAPES, build_meta
from harness.numbers.comparison import load_reported
from harness.paper.reported import REPORTED_CSV
from harness.request import Request
from harness.run.cell import add_adapter, count_parameters
from harness.run.parameters import count_cell
from reproduce import main

#: Percent of the nominal size, to the digits that protocol and tables give.
PERCENT = {
    "gemma-2b": {"lora": 3.236, "mixlora": 4.336},
    "llama2-7b": {"lora": 2.855, "mixlora": 2.906},
    "llama3-8b": {"lora": 2.621, "mixlora": 3.015},
    "llama2-13b": {"lora": 2.407, "mixlora": 2.453},
}


def percent(model: str, method: str, **settings: Any) -> float:
    request = Request.of({"preset": "paper"})
    spec = request.cell(model, method, ["arc-e"], ["arc-e"], 0)
    adapter = tuple(sorted((dict(spec.adapter) | settings).items()))
    trainable, _ = count_cell(type(spec)(**vars(spec) | {"adapter": adapter}))
    nominal = SHAPES[model].nominal_parameters
    if nominal is None:
        raise AssertionError(f"{model} has no nominal size")
    return 100 * trainable / nominal


@pytest.mark.parametrize("method", ["lora", "mixlora"])
@pytest.mark.parametrize("model", PERCENT)
def test_percentages_of_the_protocol(model: str, method: str) -> None:
    assert f"{percent(model, method):.3f}" == f"{PERCENT[model][method]:.3f}"


def test_table_1_column_to_the_printed_digit() -> None:
    rows = load_reported("1")
    rows = rows[(rows["metric"] == "params") & rows["method"].isin(["lora", "mixlora"])]
    assert len(rows) == 8
    for row in rows.itertuples():
        assert f"{percent(row.model, row.method):.1f}" == f"{row.value:.1f}", row.model


@pytest.mark.parametrize(
    ("rank", "value"), [(2, 0.376), (4, 0.738), (8, 1.461), (16, 2.906), (32, 5.797)]
)
def test_table_8_ranks(rank: int, value: float) -> None:
    got = percent("llama2-7b", "mixlora", r=rank, lora_alpha=2 * rank)
    assert f"{got:.3f}" == f"{value:.3f}"
    rows = load_reported("8")
    chosen = rows[(rows["metric"] == "params") & (rows["setting"] == f"r={rank}")]
    assert {f"{number:.2f}" for number in chosen["value"]} == {f"{got:.2f}"}


def test_one_layer_tells_for_all() -> None:
    settings = get_preset("paper").adapters["mixdora"]
    model = add_adapter(build_meta("smollm2-135m", num_layers=5), "mixdora", settings)
    one = add_adapter(build_meta("smollm2-135m", num_layers=1), "mixdora", settings)
    assert count_parameters(model)[0] == 5 * count_parameters(one)[0]


def test_the_table_has_every_printed_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--table", "params", "--output", str(tmp_path)]) == 0
    assert "34 of 34 printed cells follow to the printed digit" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "tables" / "params.csv", dtype={"table": str})
    reported = pd.read_csv(REPORTED_CSV, dtype={"table": str}).query("metric == 'params'")
    assert sorted(frame["table"]) == sorted(reported["table"])
    # By hand, LLaMA-2 7B's MixLoRA: per layer r * (in + out) of q, k, v, o, eight times those of
    # gate, up and down, and the router.
    layer = 16 * (4 * 2 * 4096 + 8 * 3 * (4096 + 11008)) + 8 * 4096
    own = frame[(frame["model"] == "llama2-7b") & (frame["method"] == "mixlora")]
    assert set(own[own["rank"] == 16]["trainable_parameters"]) == {32 * layer}
    assert set(own["true_parameters"]) == {6_738_415_616}
    # MixDoRA's magnitudes: one per output of every expert's projection, and of attention's.
    magnitudes = 32 * (4 * 4096 + 8 * (2 * 11008 + 4096))
    other = frame[(frame["model"] == "llama2-7b") & (frame["method"] == "mixdora")]
    assert set(other[other["rank"] == 16]["trainable_parameters"]) == {32 * layer + magnitudes}
