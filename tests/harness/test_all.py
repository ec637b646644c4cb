"""`--table all`: the cells of every table, each table written when it is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.accuracy import AccuracyPlan
from harness.command_line import parse
from harness.show.data import TableData
from harness.speed.table import MeasuredPlan
from harness.tables import table_names
from harness.tables.all import TABLES, _AllPlan
from reproduce import main

pytestmark = pytest.mark.long

OPTIONS = ("--device", "cpu", "--render-only")


def make_plan(*arguments: str) -> _AllPlan:
    table, options = parse(["--table", "all", *OPTIONS, *arguments])
    plan = table.plan(options)
    assert isinstance(plan, _AllPlan)
    return plan


def test_all_is_every_table_but_scaling() -> None:
    assert sorted(TABLES) == sorted(set(table_names()) - {"all", "scaling"})


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_a_tables_cells_are_those_of_its_own_command(preset: str) -> None:
    shared = ["--preset", preset, "--seeds", "0,1", "--limit-eval", "9"]
    plans = dict(make_plan(*shared).plans)
    for name in ("main", "multi", "rank", "router-loss", "expert-load", "quirks"):
        table, options = parse(["--table", name, *OPTIONS, *shared])
        own, whole = table.plan(options), plans[name]
        assert isinstance(own, AccuracyPlan) and isinstance(whole, AccuracyPlan)
        assert whole.cells == own.cells and whole.by_setting.keys() == own.by_setting.keys()


def test_efficiency_is_of_the_presets_shapes() -> None:
    for preset, shapes in (
        ("tiny", [("smollm2-135m", 1)]),
        ("small", [("smollm2-135m", 30)]),
        ("paper", [("llama2-7b", 32), ("gemma-2b", 18)]),
    ):
        plans = [plan for _, plan in make_plan("--preset", preset).plans]
        measured = [plan for plan in plans if isinstance(plan, MeasuredPlan)]
        assert [(plan.specs[0].shape, plan.specs[0].layers) for plan in measured] == shapes


def test_tables_share_the_cells_that_are_the_same() -> None:
    plans = dict(make_plan().plans)
    cells = {
        name: set(plan.cells) for name, plan in plans.items() if isinstance(plan, AccuracyPlan)
    }
    assert cells["multi"] - cells["main"] == {
        cell for cell in cells["multi"] if len(cell.train_tasks) == 5
    }
    # Loads are counted in the multi-task cells of the paper's coefficient.
    assert len(cells["expert-load"] & cells["multi"]) == 2
    assert len(cells["router-loss"] & cells["main"]) == 8


@dataclass
class FakePlan:
    """A plan that renders what it is given, or fails."""

    rendered: TableData | ValueError

    def listing(self) -> list[str]:
        return ["a cell"]

    def run(self, fresh: bool) -> TableData:
        if isinstance(self.rendered, ValueError):
            raise self.rendered
        return self.rendered

    def stored(self) -> TableData:
        return self.run(False)


def rendered(name: str, sources: list[str], failed: int = 0) -> TableData:
    rows = [{"source": source, "value": 1.0} for source in sources]
    return TableData(name, f"the table {name}", [], rows, {"table": name}, failed=failed)


def test_each_table_is_written_and_all_are_summed_up(tmp_path: Path) -> None:
    plans = [
        ("one", FakePlan(rendered("one", ["measured", "reported", "measured"], failed=2))),
        ("two", FakePlan(rendered("two", ["reported"], failed=1))),
    ]
    overview = _AllPlan(plans, tmp_path).run(fresh=False)
    assert {path.stem for path in (tmp_path / "tables").glob("*.md")} == {"one", "two"}
    assert overview.failed == 3 and overview.name == "all"
    assert [list(row.values()) for row in overview.numbers] == [["one", 2, 1, 2], ["two", 0, 1, 1]]
    assert overview.markdown.index("# the table one") < overview.markdown.index("# the table two")
    assert _AllPlan(plans, tmp_path).listing() == ["# one", "a cell", "", "# two", "a cell", ""]


def test_a_table_that_cannot_be_made_costs_none_of_those_before_it(tmp_path: Path) -> None:
    plans = [("one", FakePlan(rendered("one", []))), ("two", FakePlan(ValueError("no data")))]
    with pytest.raises(ValueError, match="no data"):
        _AllPlan(plans, tmp_path).run(fresh=False)
    assert (tmp_path / "tables" / "one.md").exists()


def test_everything_renders_without_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--table", "all", "--render-only", "--output", str(tmp_path)]) == 0
    written = {path.stem for path in (tmp_path / "tables").glob("*.md")}
    assert written == {*TABLES[:-1], "efficiency-smollm2-135m", "all"}
    out, err = capsys.readouterr()
    assert "All tables, and how many numbers each has" in out and "table 9/9" in err


@pytest.mark.slow
def test_everything_runs_on_a_few_rows(tmp_path: Path) -> None:
    arguments = ["--table", "all", "--limit-train", "8", "--limit-eval", "8"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    text = (tmp_path / "tables" / "all.md").read_text()
    assert "MixDoRA, all of them" in text and "MixLoRA fused" in text
