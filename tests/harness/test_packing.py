"""Cells trained together: which ones, in what order of rows, and that it changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cells.packing import make_packs
from harness.cells.spec import RunOptions, RunSpec, TrainSettings
from harness.models.weights import MODELS, resolve
from harness.request import single_task
from harness.run.batches import MicroBatch, StepCollator, TrainingSet, joint_steps, row_order
from harness.run.cell import add_adapter
from harness.run.inputs import InputLoader
from harness.run.training import fine_tune
from harness.schedule.executor import Outcome, execute
from harness.store.records import RecordStore
from tasks.encoding import TrainingRow
from tasks.sources import open_source
from tests.mixlora.models import VOCAB, make_model, relative_error

from .builders import make_request, make_spec

pytestmark = pytest.mark.long


def titles(packs: list[tuple[RunSpec, ...]]) -> list[list[str]]:
    return [[spec.title for spec in pack] for pack in packs]


def test_packs_are_of_compatible_cells() -> None:
    cells = [
        make_spec("base", "arc-e"),
        make_spec("lora", "arc-e"),
        make_spec("mixlora", "arc-e"),
        make_spec("mixdora", "arc-e"),
        make_spec("lora", "piqa"),
        make_spec("mixlora", "piqa"),
        make_spec("mixlora", "obqa", limit_eval=5),
        make_spec("mixlora", "siqa", seed=1),
    ]
    assert titles(make_packs(cells, 2)) == [
        ["tiny base arc-e seed 0"],
        ["tiny lora arc-e seed 0"],
        ["tiny mixlora r 4 a 0.001 arc-e seed 0", "tiny mixlora r 4 a 0.001 piqa seed 0"],
        ["tiny mixdora r 4 a 0.001 arc-e seed 0"],
        ["tiny lora piqa seed 0"],
        ["tiny mixlora r 4 a 0.001 obqa seed 0"],
        ["tiny mixlora r 4 a 0.001 siqa seed 1"],
    ]
    (first, second) = make_packs(cells, 2)[2]
    assert first.packed_with == (second.title,)
    assert second.packed_with == (first.title,)
    assert RunSpec.from_json(first.to_json()) == first
    assert all(len(pack) == 1 and pack[0].packed_with == () for pack in make_packs(cells, 1))


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_rows_is_the_seeds(grouped: bool) -> None:
    lengths = [5, 40, 7, 33, 6, 21, 9]
    settings = TrainSettings(epochs=2, batch_size=4, accumulation=2, group_by_length=grouped)
    order = row_order(lengths, settings, 3)
    torch.manual_seed(9)  # global randomness plays no part
    assert row_order(lengths, settings, 3) == order
    assert row_order(lengths, settings, 4) != order
    assert [[len(micro) for micro in step] for step in order] == [[2, 2], [2, 1]] * 2
    for epoch in (order[:2], order[2:]):
        rows = [row for step in epoch for micro in step for row in micro]
        assert sorted(rows) == list(range(7))


def rows(count: int, seed: int) -> list[TrainingRow]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(4, 11, (), generator=generator))
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        made.append(TrainingRow(ids, 1 + length % 3, False))
    return made


SETS = {"cell0": TrainingSet(rows(7, 0), 0), "cell1": TrainingSet(rows(4, 1), 5)}


def test_one_that_is_done_is_absent() -> None:
    settings = TrainSettings(epochs=1, batch_size=4, accumulation=2)
    steps = joint_steps(SETS, settings)
    names = [[[name for name, _ in micro] for micro in step] for step in steps]
    assert names == [
        [["cell0"] * 2 + ["cell1"] * 2, ["cell0"] * 2 + ["cell1"] * 2],
        [["cell0"] * 2, ["cell0"]],
    ]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_adapter_has_the_rows_and_the_order_it_has_alone(accumulation: int) -> None:
    settings = TrainSettings(epochs=3, batch_size=4, accumulation=accumulation)
    together = joint_steps(SETS, settings)
    for name, own in SETS.items():
        mine = [[[r for n, r in micro if n == name] for micro in step] for step in together]
        mine = [[micro for micro in step if micro] for step in mine]
        lengths = [len(row.input_ids) for row in own.rows]
        order = row_order(lengths, settings, own.seed)
        expected = [[[own.rows[i] for i in micro] for micro in step] for step in order]
        assert [step for step in mine if step] == expected


def test_a_step_is_normalised_by_each_adapters_own_tokens() -> None:
    first, second = TrainingRow([7, 8, 9, 10], 1, False), TrainingRow([5, 6, 3], 2, False)
    step: list[MicroBatch] = [[("cell0", first), ("cell1", second)], [("cell0", second)]]
    packed = StepCollator(pad_token_id=0, packed=True)([step])["micro_batches"]
    assert [batch["num_items_in_batch"] for batch in packed] == [{"cell0": 3, "cell1": 2}] * 2
    assert [batch["adapter_names"] for batch in packed] == [["cell0", "cell1"], ["cell0"]]
    assert packed[0]["input_ids"].tolist() == [[7, 8, 9, 10], [0, 5, 6, 3]]
    assert packed[0]["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert packed[0]["labels"].tolist() == [[-100, -100, 10], [-100, 6, 3]]


def make_adapters(method: str) -> Any:
    """A float64 llama with both adapters as they begin, which does not depend on each other."""
    model: Any = make_model()
    settings = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "num_experts": 3}
    settings |= {"top_k": 2, "router_aux_loss_coef": 0.1}
    for name, own in SETS.items():
        torch.manual_seed(own.seed)
        model = add_adapter(model, method, settings, name)
    return model.double()


def trained(names: list[str], method: str, **changes: Any) -> tuple[dict[str, Any], Any]:
    """Parameters and facts after training these adapters together."""
    model = make_adapters(method)
    model.set_adapter(names[0])
    model.set_requires_grad(names)
    values = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1} | changes
    sets = {name: SETS[name] for name in names}
    facts = fine_tune(model, sets, TrainSettings(**values), 0, lambda *_: None)
    return {name: p.detach() for name, p in model.named_parameters()}, facts


@pytest.mark.parametrize("method", ["mixlora", "mixdora"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_packed_training_equals_training_alone(accumulation: int, method: str) -> None:
    """Of different numbers of rows: "cell1" is done after half of the steps and stays as it is."""
    start = {name: p.detach() for name, p in make_adapters(method).named_parameters()}
    packed, packed_facts = trained(list(SETS), method, accumulation=accumulation)
    assert [facts["steps"] for facts in packed_facts.values()] == [4, 2]
    for name in SETS:
        alone, facts = trained([name], method, accumulation=accumulation)
        assert packed_facts[name] == pytest.approx(facts[name], rel=1e-6)
        moved = 0
        for key, value in alone.items():
            if f".{name}." in key:
                # transformers computes the loss in float32.
                assert relative_error(packed[key], value) < 1e-5, key
                moved += relative_error(value, start[key]) > 1e-3
        assert moved > 10
    for key, value in packed.items():
        assert any(f".{name}." in key for name in SETS) or torch.equal(value, start[key])


def test_a_loss_that_is_not_finite_names_the_adapter() -> None:
    model = make_adapters("mixlora")
    model.set_requires_grad(list(SETS))
    with torch.no_grad():
        model.base_model.model.model.layers[0].mlp.lora_router["cell1"].weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="training loss of cell1 is nan at step 1"):
        fine_tune(model, SETS, TrainSettings(batch_size=4), 0, lambda *_: None)


def real_cells(dtype: str = "float32") -> list[RunSpec]:
    request = make_request(
        tasks=["arc-e", "boolq"],
        methods=["lora", "mixlora"],
        scoring="choice",
        limit_train=24,
        limit_eval=12,
        dtype=dtype,
    )
    return single_task()(request)


def run(cells: list[RunSpec], output: Path, packed: int) -> Outcome:
    weights = {"tiny": resolve(MODELS["tiny"], None)}
    loader = InputLoader(open_source(None, bundled=True), weights)
    options = RunOptions(packed=packed)
    return execute(cells, loader, RecordStore(output), fresh=False, options=options)


def test_a_cell_has_the_same_record_packed(tmp_path: Path) -> None:
    """Rows, model and scoring are real: the bundled ones, whose preset has no dropout."""
    cells = real_cells()
    alone, packed = (run(cells, tmp_path / str(size), size).records for size in (1, 2))
    assert len(alone) == len(packed) == 4
    for spec, record in packed.items():
        assert bool(spec.packed_with) == (spec.method == "mixlora")
        other = alone[dataclasses.replace(spec, packed_with=())]
        assert record.training == pytest.approx(other.training, rel=1e-4)
        assert record.tasks == other.tasks
        assert record.trainable_parameters == other.trainable_parameters
        assert record.base_parameters == other.base_parameters
        assert record.fingerprints == other.fingerprints
        assert (record.id == other.id) == (spec.method == "lora")


def test_adapters_on_a_half_precision_base_are_float32(tmp_path: Path) -> None:
    outcome = run([c for c in real_cells("bfloat16") if c.method == "mixlora"], tmp_path, 2)
    assert outcome.failed == {} and len(outcome.records) == 2
