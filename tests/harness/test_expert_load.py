"""What counts of tokens per expert say, by hand, and the table of Figure 5."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import pytest

from harness.accuracy import AccuracyPlan
from harness.cells.spec import RunSpec
from harness.command_line import parse
from harness.numbers.expert_load import layer_std, load_std, shares, specialisation
from harness.schedule.executor import Outcome
from harness.store.records import RunRecord

from .builders import make_record
from .test_render import row

TASKS = ("arc-e", "arc-c", "boolq", "obqa", "piqa")


def make_plan(*arguments: str) -> AccuracyPlan:
    table, options = parse(["--table", "expert-load", *arguments, "--device", "cpu"])
    plan = table.plan(options)
    assert isinstance(plan, AccuracyPlan)
    return plan


def test_balance_and_its_opposite() -> None:
    assert load_std([[5, 5, 5, 5]]) == layer_std([[5, 5, 5, 5]]) == 0
    # One of two experts gets all: shares of 1 and 0.
    assert load_std([[6, 0]]) == layer_std([[6, 0]]) == 0.5
    # Two layers with other favourites are balanced on average only, however many tokens each has.
    assert load_std([[6, 0], [0, 60]]) == 0
    assert layer_std([[6, 0], [0, 60]]) == 0.5
    assert shares([[1, 3], [2, 2]]).tolist() == [[0.25, 0.75], [0.5, 0.5]]


def test_specialisation_by_hand() -> None:
    assert specialisation({"a": [[3, 3]], "b": [[8, 8]]}) == pytest.approx(0)
    assert specialisation({"a": [[5, 0]], "b": [[0, 90]]}) == pytest.approx(1)
    four = {str(n): [[int(n == e) for e in range(4)]] for n in range(4)}
    assert specialisation(four) == pytest.approx(2)
    # Entropy of the experts less that within the tasks, in another way.
    generator = random.Random(3)
    counts = {name: [[generator.randint(1, 9) for _ in range(5)]] for name in "abc"}
    parts = {name: [c / sum(rows[0]) for c in rows[0]] for name, rows in counts.items()}

    def entropy(values: list[float]) -> float:
        return -sum(v * math.log2(v) for v in values)

    mean = [sum(part[e] for part in parts.values()) / 3 for e in range(5)]
    expected = entropy(mean) - sum(map(entropy, parts.values())) / 3
    assert specialisation(counts) == pytest.approx(expected)
    # A layer of no information halves the mean over layers.
    twice = {name: [rows[0], [1] * 5] for name, rows in counts.items()}
    assert specialisation(twice) == pytest.approx(expected / 2)


def counted(spec: RunSpec, load: list[list[int]]) -> RunRecord:
    """A record whose tasks, and training, were counted like this."""
    record = make_record(spec, [0, 1], [0, 0], [0, 1])
    task = dataclasses.replace(record.tasks[TASKS[0]], expert_load=load)
    training = record.training | {"expert_load": [{"step": 4, "counts": load}]}
    return dataclasses.replace(record, tasks=dict.fromkeys(TASKS, task), training=training)


def test_cells_count_and_are_others_than_those_that_do_not() -> None:
    plan = make_plan()
    assert len(plan.cells) == 4
    assert {cell.train_tasks for cell in plan.cells} == {TASKS}
    assert all(cell.expert_load for cell in plan.cells)
    plain = dataclasses.replace(plan.cells[0], expert_load=False)
    assert plain.to_json() != plan.cells[0].to_json() and "expert_load" not in plain.to_json()
    assert RunSpec.from_json(plan.cells[0].to_json()) == plan.cells[0]


def test_the_table_and_its_pictures(tmp_path: Path) -> None:
    plan = make_plan("--render-only", "--methods", "mixlora")
    with_loss, without = plan.cells
    records = {
        with_loss: counted(with_loss, [[2, 2, 2, 2]] * 3),
        without: counted(without, [[4, 4, 0, 0]] * 3),
    }
    rendered = plan._render(Outcome(records=records))
    text = rendered.markdown
    assert row(text, "tiny, MixLoRA, a = 1e-3") == ["0.0000", "0.0000", "0.0000"]
    assert row(text, "tiny, MixLoRA, a = 0") == ["0.2500", "0.2500", "0.0000"]
    assert row(text, "llama2-7b, MixLoRA: reported, not measured here")[0] == "0.0223"
    training = text[text.index("while training") :]
    assert row(training, "tiny, MixLoRA, a = 0") == ["0.2500"]
    block = text[text.index("## tiny, MixLoRA, a = 0:") :]
    assert row(block, "PIQA") == ["50.0", "50.0", "0.0", "0.0", "0.2500"]
    assert (
        sum(r["metric"] == "expert_load_std" for r in rendered.numbers) == 4
    )  # two of the paper's
    assert all(list(r) == list(rendered.numbers[0]) for r in rendered.numbers)
    names = sorted(path.name for path in rendered.write(tmp_path) if path.parent.name == "figures")
    assert len(names) == 4 and "expert-load-tiny-mixlora-1e-3.svg" in names
    svg = (tmp_path / "figures" / "expert-load-tiny-mixlora-0.svg").read_text()
    assert "BoolQ" in svg and "layer" in svg
    assert plan._render(Outcome(records=records)).figures == rendered.figures


def test_loads_are_of_the_first_seed() -> None:
    plan = make_plan("--render-only", "--methods", "mixlora", "--seeds", "1,0")
    loads = {0: [[4, 4, 0, 0]] * 3, 1: [[2, 2, 2, 2]] * 3}
    records = {cell: counted(cell, loads[cell.seed]) for cell in plan.cells}
    rendered = plan._render(Outcome(records=records))
    assert row(rendered.markdown, "tiny, MixLoRA, a = 0")[0] == "0.2500"
    assert rendered.markdown.count("## tiny, MixLoRA, a = 0:") == 1


def test_nothing_counted_is_said() -> None:
    text = make_plan("--render-only")._render(Outcome()).markdown
    assert "reported, not measured here" in text and "while training" not in text
