"""A study's course: what is asked for in which order, what is chosen, what becomes of failures."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cells.spec import EVALUATION, VALIDATION, RunSpec
from harness.models.weights import MODELS, resolve
from harness.request import Request
from harness.run.inputs import InputLoader
from harness.store.outcome import Outcome
from harness.store.records import Failure, RunRecord, TaskResult
from harness.study.cells import Group, StudyCells
from harness.study.file import StudyFile, read_study
from harness.study.run import Results, run_study
from harness.study.table import render
from tasks.data import split_validation
from tasks.sources import LocalSource, open_source
from tests.harness.builders import make_record

from .test_file import SMALL

SINGLE = Group("tiny", "single-task")
TEXT = SMALL.replace('["single-task"]', '["single-task", "multi-task"]').replace(
    "[seeds]", "[rows]\ntrain = 40\nscored = 30\n[seeds]"
)


def study_of(folder: Path, text: str = TEXT) -> tuple[StudyFile, StudyCells]:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    file = read_study(path)
    request = Request.of({"preset": "tiny", "device": "cpu"})
    return file, StudyCells(file.study, request)


def skill(spec: RunSpec, best: float) -> float:
    """Probability of a right answer: highest at the rate `best` of the arm."""
    assert spec.train is not None
    return 0.8 - 0.2 * abs(np.log10(spec.train.learning_rate / best))


class World:
    """Answers for every cell, drawn by its content; keeps what was asked for.

    Args:
        best: method -> its best learning rate.
        evaluation: seed of the scored rows' answers alone.
        fails: the cells that fail -> their reason.
    """

    def __init__(
        self,
        best: dict[str, float],
        evaluation: int = 0,
        fails: Callable[[RunSpec], str | None] = lambda spec: None,
    ) -> None:
        self.best = best
        self.evaluation = evaluation
        self.fails = fails
        self.asked: list[list[RunSpec]] = []

    def __call__(self, cells: Sequence[RunSpec]) -> Outcome:
        self.asked.append(list(cells))
        outcome = Outcome()
        for spec in cells:
            reason = self.fails(spec)
            if reason is not None:
                prints = make_record(spec, [0], [0]).fingerprints
                outcome.failed[spec] = Failure(spec, prints, "failed", reason, "2026-01-01")
            else:
                outcome.records[spec] = self._record(spec)
        return outcome

    def _record(self, spec: RunSpec) -> RunRecord:
        salt = self.evaluation if spec.scored_on == EVALUATION else 0
        content = f"{spec.to_json()} {salt}".encode()
        random = np.random.default_rng(list(hashlib.sha256(content).digest()))
        chance = 0.3 if spec.train is None else skill(spec, self.best[spec.method])
        rows = 400
        right = random.random(rows) < chance
        record = make_record(spec, [0] * rows, [int(not each) for each in right])
        task = dataclasses.replace(record.tasks[spec.eval_tasks[0]], loss=1.0)
        return dataclasses.replace(record, tasks=dict.fromkeys(spec.eval_tasks, task))


def asked(world: World) -> list[RunSpec]:
    return [spec for cells in world.asked for spec in cells]


def test_rates_are_chosen_before_any_scored_row_is_asked_for(tmp_path: Path) -> None:
    _, cells = study_of(tmp_path)
    world = World({"lora": 1e-3, "mixlora": 1e-2})
    results = run_study(cells, world)
    kinds = [{spec.scored_on for spec in asked} for asked in world.asked if asked]
    turn = kinds.index({EVALUATION})
    assert kinds[:turn] == [{VALIDATION}] * turn
    assert kinds[turn:] == [{EVALUATION}] * (len(kinds) - turn)
    for group in results.groups.values():
        assert 3e-4 < group.choices["lora"].rate < 3e-3
        assert 3e-3 < group.choices["mixlora"].rate < 3e-2
        assert group.choices["lora"].trials == group.choices["mixlora"].trials >= 11


def test_no_scored_row_influences_a_choice(tmp_path: Path) -> None:
    _, cells = study_of(tmp_path)
    best = {"lora": 1e-3, "mixlora": 1e-2}
    one, other = World(best, evaluation=1), World(best, evaluation=2)
    first, second = run_study(cells, one), run_study(cells, other)
    assert asked(one) == asked(other)
    for group, found in first.groups.items():
        assert found.choices == second.groups[group].choices
        rate = found.choices["lora"].rate
        before, after = found.finals["lora"][rate], second.groups[group].finals["lora"][rate]
        assert not np.array_equal(before["arc-e"], after["arc-e"])


class Spy(LocalSource):
    """The bundled rows; keeps which splits were read."""

    def __init__(self) -> None:
        self.source = open_source(None, bundled=True)
        self.read: set[str] = set()
        self.label = self.source.label

    def unavailable(self, task: Any, split: str) -> str | None:
        return self.source.unavailable(task, split)

    def load(self, task: Any, split: str, bad_rows: Any = None) -> Any:
        self.read.add(f"{task.name} {split}")
        return self.source.load(task, split, bad_rows)


def test_the_cells_of_a_selection_do_not_read_the_scored_split(tmp_path: Path) -> None:
    _, cells = study_of(tmp_path)
    spy = Spy()
    loader = InputLoader(spy, {"tiny": resolve(MODELS["tiny"])})
    for group in cells.groups:
        for spec in cells.trials(group, "lora", 1e-3):
            cell = loader.load(spec)
            for task in spec.train_tasks:
                trained = {row.id for row in cell.train[task]}
                validated = {row.id for row in cell.evaluation[task]}
                assert (len(trained), len(validated)) == (40, 64)
                assert not trained & validated
    assert spy.read == {"arc-e train", "obqa train"}
    final = loader.load(cells.finals(SINGLE, "lora", 1e-3)[0])
    assert spy.read == {"arc-e train", "obqa train", "arc-e test"}
    whole = spy.source.load(*_arc_easy())
    _, validation = split_validation(whole, 0.1, 64)
    assert not {row.id for row in final.train["arc-e"]} & {row.id for row in validation}
    assert len(final.evaluation["arc-e"]) == 30


def _arc_easy() -> tuple[Any, str]:
    from tasks import get_task

    return get_task("arc-e"), "train"


def test_results_are_at_the_chosen_rate_and_its_neighbours_with_other_seeds(
    tmp_path: Path,
) -> None:
    _, cells = study_of(tmp_path)
    world = World({"lora": 1e-3, "mixlora": 1e-2})
    found = run_study(cells, world).groups[SINGLE]
    finals = [s for s in asked(world) if s.scored_on == EVALUATION and len(s.train_tasks) == 1]
    choice = found.choices["lora"]
    rates = {s.train.learning_rate for s in finals if s.method == "lora" and s.train}
    assert rates == {choice.rate, *choice.neighbours}
    assert len(rates) == 3
    # Seeds 1 and 2; each task has seeds of its own, the same for every arm.
    seeds = {(s.method, s.train_tasks[0], s.seed) for s in finals}
    assert {seed for method, task, seed in seeds if task == "arc-e"} == {1001, 1002}
    assert {seed for method, task, seed in seeds if task == "obqa"} == {4001, 4002}
    trials = {s.seed for s in asked(world) if s.scored_on == VALIDATION and len(s.train_tasks) == 1}
    assert trials == {1000, 4000}
    assert found.finals["lora"][choice.rate]["arc-e"].shape == (2, 400)


def test_a_diverged_training_is_a_trial_that_failed(tmp_path: Path) -> None:
    _, cells = study_of(tmp_path)
    lost = "FloatingPointError: training loss is nan at step 3"
    world = World(
        {"lora": 1e-2, "mixlora": 1e-3},
        fails=lambda s: lost if s.train is not None and s.train.learning_rate > 6e-3 else None,
    )
    results = run_study(cells, world)
    found = results.groups[SINGLE]
    assert found.choices["lora"].rate == 5.62e-3
    assert found.choices["lora"].neighbours == (3.16e-3,)
    assert found.trials["lora"][1e-2].diverged
    assert found.unfinished == []


def test_a_result_that_diverged_has_answered_nothing_right(tmp_path: Path) -> None:
    _, cells = study_of(tmp_path)
    lost = "FloatingPointError: training loss is nan at step 3"
    world = World(
        {"lora": 1e-3, "mixlora": 1e-3},
        fails=lambda s: lost if s.scored_on == EVALUATION and s.seed == 1002 else None,
    )
    found = run_study(cells, world).groups[SINGLE]
    answers = found.finals["lora"][found.choices["lora"].rate]["arc-e"]
    assert answers[0].mean() > 0.5
    assert not answers[1].any()


def test_another_failure_stops_a_group_and_is_said(tmp_path: Path) -> None:
    file, cells = study_of(tmp_path)
    world = World(
        {"lora": 1e-3, "mixlora": 1e-3},
        fails=lambda s: "OSError: disk" if s.method == "mixlora" and s.seed == 1000 else None,
    )
    results = run_study(cells, world)
    found = results.groups[SINGLE]
    assert found.choices == {}
    assert found.finals == {}
    assert any("mixlora" in line and "OSError: disk" in line for line in found.unfinished)
    assert results.groups[Group("tiny", "multi-task")].choices.keys() == {"lora", "mixlora"}
    shown = render(file, cells, results, 0)
    assert "not judged" in shown.markdown
    assert shown.failed > 0


def finished(folder: Path) -> tuple[StudyFile, StudyCells, Results]:
    hypothesis = (
        '[[hypotheses]]\nfamily = "methods"\narm = "mixlora"\nexpect = "worse"\nmeaning = "M."\n'
    )
    text = TEXT.replace("[families.methods]", f"{hypothesis}[families.methods]")
    text = text.replace(
        "[arms.lora]", '[arms.base]\ntitle = "base"\nmethod = "base"\n[arms.lora]', 1
    )
    file, cells = study_of(folder, text)

    class Weaker(World):
        def _record(self, spec: RunSpec) -> RunRecord:
            record = super()._record(spec)
            if spec.method != "mixlora" or spec.scored_on != EVALUATION:
                return record
            task: TaskResult = record.tasks[spec.eval_tasks[0]]
            worse = [1] * 100 + task.predictions[100:]
            task = dataclasses.replace(task, predictions=worse)
            return dataclasses.replace(record, tasks=dict.fromkeys(spec.eval_tasks, task))

    return file, cells, run_study(cells, Weaker({"lora": 1e-3, "mixlora": 1e-3}))


def test_the_table_has_the_verdicts_and_the_hash(tmp_path: Path) -> None:
    file, cells, results = finished(tmp_path)
    table = render(file, cells, results, 3)
    assert file.sha256 in table.markdown
    assert table.provenance["sha256"] == file.sha256
    assert "does not ask for: 3" in table.markdown
    verdicts = [row for row in table.numbers if row["metric"] == "difference"]
    assert [row["verdict"] for row in verdicts] == ["worse", "worse"]
    assert all(row["low"] < row["value"] < row["high"] < 0 for row in verdicts)
    assert all(row["p_holm"] < 0.05 for row in verdicts)
    assert {row["regime"] for row in verdicts} == {"single-task", "multi-task"}
    (block,) = [block for block in table.blocks if block.heading == "Hypotheses"]
    assert [cell.text for cell in block.rows[0]] == [
        *("MixLoRA is worse than LoRA", "holds", "holds", "M."),
    ]
    scores = [row for row in table.numbers if row["metric"] == "acc" and row["arm"] == "base"]
    assert {row["task"] for row in scores} == {"arc-e", "obqa", "average"}
    assert {name.rpartition(".")[2] for name in table.figures} == {"svg", "png"}
    assert len({frozenset(row) for row in table.numbers}) == 1


def test_a_study_without_records_is_rendered_as_not_run(tmp_path: Path) -> None:
    file, cells = study_of(tmp_path)
    table = render(file, cells, run_study(cells, lambda cells: Outcome()), 0)
    assert "not judged" in table.markdown
    assert "not run" in table.markdown
    assert table.figures == {}


def test_what_a_study_does_not_change_stays_the_same_cell(tmp_path: Path) -> None:
    """Ids of stored records must not move when a setting is added."""
    request = Request.of({"preset": "tiny", "device": "cpu"})
    spec = request.cell("tiny", "mixlora", ["arc-e"], ["arc-e"], 0)
    content = spec.to_json()
    assert "validation" not in content
    assert set(content["train"]) == {
        *("epochs", "learning_rate", "batch_size", "accumulation", "cutoff", "weight_decay"),
        "group_by_length",
    }
    _, cells = study_of(tmp_path)
    (mixed,) = cells.trials(Group("tiny", "multi-task"), "mixlora", 1e-3)
    assert RunSpec.from_json(mixed.to_json()) == mixed
    frozen = dataclasses.replace(
        mixed,
        adapter=(("r", 4), ("target_modules", ("up_proj",))),
        train=dataclasses.replace(mixed.train, router="frozen", lora_plus_ratio=16.0),
    )
    assert RunSpec.from_json(frozen.to_json()) == frozen
    assert frozen.to_json()["train"]["router"] == "frozen"


@pytest.mark.parametrize("key", ["data-dir", "forward"])
def test_only_options_that_the_file_leaves_open_are_taken(tmp_path: Path, key: str) -> None:
    from harness.command_line import parse

    path = str(tmp_path / "small.toml")
    table, given = parse(["--study", path, f"--{key}", "fused"])
    assert table.name == "small"
    assert given[key.replace("-", "_")] is not None
    with pytest.raises(ValueError, match=r"--study .*small\.toml takes no --seeds"):
        parse(["--study", path, "--seeds", "1"])
