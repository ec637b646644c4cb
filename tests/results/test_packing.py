"""Cells trained together: which ones, in what order of rows, and that it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from mixlora import MixLoraConfig
from results.batches import TrainingSet, joint_steps, row_order
from results.packing import make_packs
from results.spec import RunSpec, TrainSettings
from results.training import fine_tune
from tasks.encoding import TrainingRow
from tests.mixlora.models import VOCAB, make_model

from .builders import make_spec


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
        ["tiny mixlora arc-e seed 0", "tiny mixlora piqa seed 0"],
        ["tiny mixdora arc-e seed 0"],
        ["tiny lora piqa seed 0"],
        ["tiny mixlora obqa seed 0"],
        ["tiny mixlora siqa seed 1"],
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


def untuned() -> Any:
    settings: dict[str, Any] = {"r": 2, "num_experts": 3, "lora_dropout": 0.0}
    config = MixLoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    base = make_model()
    torch.manual_seed(1)
    model = get_peft_model(base, config, "cell0")
    model.add_adapter("cell1", config)
    return model


def tuned(names: list[str], settings: TrainSettings) -> tuple[Any, dict[str, dict[str, Any]]]:
    model = untuned()
    model.set_adapter(names[0])
    model.set_requires_grad(names)
    sets = {name: SETS[name] for name in names}
    return model, fine_tune(model, sets, settings, 0, lambda *_: None)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_packed_training_equals_training_alone(accumulation: int) -> None:
    settings = TrainSettings(epochs=2, batch_size=4, accumulation=accumulation, learning_rate=1e-3)
    packed, packed_facts = tuned(list(SETS), settings)
    trained = dict(packed.named_parameters())
    start = dict(untuned().named_parameters())
    for name in SETS:
        alone, facts = tuned([name], settings)
        assert packed_facts[name]["steps"] == facts[name]["steps"]
        for key in ("first_loss", "last_loss"):
            assert packed_facts[name][key] == pytest.approx(facts[name][key], rel=1e-5)
        moved = 0.0
        for key, value in alone.named_parameters():
            if f".{name}." in key:
                # Adam makes a step of almost any gradient, so rounding shows more than elsewhere.
                assert (trained[key] - value).abs().max() < 2e-4, key
                moved = max(moved, float((value - start[key]).abs().max()))
        assert moved > 1.5e-3
    frozen = "base_model.model.lm_head.weight"
    assert torch.equal(trained[frozen], start[frozen])
