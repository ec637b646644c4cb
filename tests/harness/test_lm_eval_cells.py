"""Cells that lm-eval scores: the same answers as ours, another record, columns of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from harness.accuracy import AccuracyPlan
from harness.cells.spec import RunSpec
from harness.command_line import parse
from harness.models.weights import MODELS, load_model, resolve
from harness.request import single_task
from harness.run.cell import add_adapter
from harness.run.inputs import EvalSet, InputLoader
from harness.run.lm_eval import score_with_lm_eval
from harness.schedule.executor import Outcome, execute
from harness.store.records import RecordStore
from tasks import get_task
from tasks.base import SCORINGS, Scoring
from tasks.prompts import render
from tasks.scoring import score
from tasks.sources import open_source
from tests.mixlora.models import randomise

from .builders import make_record, make_request

pytestmark = pytest.mark.long

TASKS = ["arc-e", "winogrande"]


def cells(scoring: str, evaluator: str) -> list[RunSpec]:
    request = make_request(
        tasks=TASKS,
        methods=["base", "mixlora"],
        scoring=scoring,
        evaluator=evaluator,
        limit_train=16,
        limit_eval=12,
    )
    return single_task()(request)


def run(wanted: list[RunSpec], output: Path) -> Outcome:
    loader = InputLoader(open_source(bundled=True), {"tiny": resolve(MODELS["tiny"])})
    outcome = execute(wanted, loader, RecordStore(output), fresh=False)
    assert outcome.failed == {}
    return outcome


@pytest.mark.parametrize("scoring", SCORINGS)
def test_every_example_has_our_scores(scoring: Scoring) -> None:
    model, tokenizer = load_model(resolve(MODELS["tiny"]), "float32", "cpu")
    torch.manual_seed(3)
    settings = {"r": 2, "lora_alpha": 4, "num_experts": 3, "top_k": 2}
    adapted = add_adapter(model, "mixlora", settings)
    randomise(torch.nn.ParameterList(p for p in adapted.parameters() if p.requires_grad), 0.1)
    chosen = set()
    for name in ("arc-e", "boolq", "winogrande"):
        task = get_task(name)
        examples = open_source(bundled=True).load(task, task.eval_split)[:12]
        rows = EvalSet(examples, [render(task, example, scoring) for example in examples])
        own = score(adapted, tokenizer, rows.prompts, scoring)
        theirs = score_with_lm_eval(adapted, tokenizer, rows, scoring)
        for mine, other in zip(own, theirs, strict=True):
            assert other.scores == pytest.approx(mine.scores, abs=1e-4)
            assert dataclasses.replace(other, scores=mine.scores) == mine
            chosen.add(mine.label)
    assert len(chosen) > 1  # else any mistake in which option is meant would go unseen


def test_a_row_over_the_cutoff_is_counted() -> None:
    model, tokenizer = load_model(resolve(MODELS["tiny"]), "float32", "cpu")
    task = get_task("arc-e")
    examples = open_source(bundled=True).load(task, task.eval_split)[:4]
    rows = EvalSet(examples, [render(task, example, "choice") for example in examples])
    first = rows.prompts[0]
    texts = [first.text + continuation for continuation in first.continuations]
    longest = max(map(len, tokenizer(texts)["input_ids"]))
    for cutoff in (longest - 1, longest - 2):
        found = score_with_lm_eval(model, tokenizer, rows, "choice", cutoff=cutoff)
        assert found[0].truncated == (cutoff == longest - 2)


def test_a_cell_has_the_record_of_ours_but_for_its_id(tmp_path: Path) -> None:
    own = run(cells("choice", "own"), tmp_path).records
    theirs = run(cells("choice", "lm-eval"), tmp_path).records
    assert len(own) == len(theirs) == 2 * len(TASKS)
    for spec, record in theirs.items():
        other = own[dataclasses.replace(spec, evaluator="own")]
        assert record.tasks == other.tasks
        assert record.id != other.id


def test_the_default_leaves_the_id_of_a_cell() -> None:
    (own, *_), (other, *_) = (cells("label", evaluator) for evaluator in ("own", "lm-eval"))
    assert "evaluator" not in own.to_json()
    assert other.to_json() == own.to_json() | {"evaluator": "lm-eval"}
    for spec in (own, other):
        assert RunSpec.from_json(spec.to_json()) == spec


def test_quirks_of_our_scoring_are_not_those_of_lm_eval() -> None:
    made = {
        evaluator: make_request("paper", protocol="upstream", evaluator=evaluator)
        .cell("gemma-2b", "mixdora", ["arc-e"], ["arc-e"], 0)
        .quirks
        for evaluator in ("own", "lm-eval")
    }
    assert set(made["own"]) - set(made["lm-eval"]) == {"eval-dropout", "arc-nine-labels"}


@pytest.mark.parametrize(
    ("scoring", "names"), [("label", ["accuracy"]), ("choice", ["acc", "acc_norm"])]
)
def test_the_numbers_have_columns_of_their_own(
    scoring: str, names: list[str], tmp_path: Path
) -> None:
    line = ["--preset", "paper", "--models", "gemma-2b", "--tasks", "arc-e", "--scoring", scoring]
    line += ["--evaluator", "lm-eval", "--render-only", "--output", str(tmp_path)]
    table, options = parse(line)
    plan = table.plan(options)
    assert isinstance(plan, AccuracyPlan)
    for spec in plan.cells:
        norm = None if scoring == "label" else [1, 1, 0, 0]
        real = dataclasses.replace(spec, device="cpu")
        RecordStore(tmp_path).save(make_record(real, [0, 1, 1, 1], [0, 1, 1, 0], norm))
        own = dataclasses.replace(real, evaluator="own")
        RecordStore(tmp_path).save(make_record(own, [0, 1, 1, 1], [1, 0, 0, 0], norm))
    rendered = plan.stored()
    measured = {
        row["metric"]: row["value"]
        for row in rendered.numbers
        if row["source"] == "measured" and row["unit"] == "%" and row["method"] == "lora"
    }
    assert not set(names) & set(measured)
    assert measured[f"lm_eval_{names[0]}"] == 75.0
    assert set(measured) - {"params"} == {f"lm_eval_{name}" for name in names}
    assert not any(
        "minus_paper" in row["metric"] for row in rendered.numbers if "acc" in row["metric"]
    )
    assert f"## gemma-2b: measured, {scoring} scoring by lm-eval" in rendered.markdown
    assert rendered.provenance["evaluator"] == "lm-eval"
