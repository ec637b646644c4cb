"""A training that was stopped at any step goes on to the very numbers it would have had."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cells.spec import RunOptions, RunSpec, TrainSettings
from harness.models.weights import MODELS, resolve
from harness.request import single_task
from harness.run.batches import TrainingSet
from harness.run.cell import add_adapter
from harness.run.checkpoint import Checkpoint, read
from harness.run.inputs import InputLoader
from harness.run.training import fine_tune
from harness.schedule.executor import execute
from harness.store.records import RecordStore, RunRecord
from tasks.sources import open_source
from tests.mixlora.models import make_model

from .builders import make_request
from .test_packing import rows

pytestmark = pytest.mark.long

SETTINGS = TrainSettings(epochs=2, batch_size=4, accumulation=2, learning_rate=1e-2)
SETS = {"cell0": TrainingSet(rows(9, 0), 0), "cell1": TrainingSet(rows(5, 1), 5)}
STEPS = 6  # of cell0; cell1 has 4

ADAPTER = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.3}
MIXTURE = ADAPTER | {"num_experts": 3, "top_k": 2, "router_aux_loss_coef": 0.1}


class Killed(BaseException):
    """Stands for the signal."""


class Trained:
    """A training of these adapters, alone or packed.

    Args:
        method: method of the adapters.
        names: Which of `SETS`.
        path: file of the checkpoint; None for a training without.
        every: Steps between checkpoints.
        until: Step after which it is killed.
    """

    def __init__(
        self,
        method: str,
        names: tuple[str, ...],
        path: Path | None = None,
        every: int = 0,
        until: int | None = None,
        made_by: str = "me",
    ) -> None:
        model: Any = make_model()
        for name in names:
            torch.manual_seed(SETS[name].seed)
            settings = MIXTURE if method.startswith("mix") else ADAPTER
            model = add_adapter(model, method, settings, name)
        model.set_adapter(names[0])
        model.set_requires_grad(list(names))
        self.seen: list[int] = []

        def on_step(step: int, steps: int) -> None:
            self.seen.append(step)
            if step - 1 == until:
                raise Killed

        checkpoint = None if path is None else Checkpoint(path, every, {"by": made_by})
        sets = {name: SETS[name] for name in names}
        self.facts: Any = None
        with suppress(Killed):
            self.facts = fine_tune(model, sets, SETTINGS, 0, on_step, checkpoint=checkpoint)
        self.weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def equals(self, other: Trained) -> bool:
        assert self.weights.keys() == other.weights.keys()
        same = all(torch.equal(self.weights[name], other.weights[name]) for name in self.weights)
        return same and self.facts == other.facts


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("lora", ("cell0",)),
        ("dora", ("cell0",)),
        ("mixlora", ("cell0",)),
        ("mixlora", ("cell0", "cell1")),
    ],
)
def test_a_killed_training_goes_on_bit_for_bit(
    method: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    whole = Trained(method, names)
    path = tmp_path / "file.pt"
    killed = Trained(method, names, path, every=2, until=3)
    assert killed.seen == [1, 2, 3, 4] and not killed.equals(whole)
    again = Trained(method, names, path, every=2, until=4)  # from step 2
    assert again.seen == [3, 4, 5]
    last = Trained(method, names, path, every=2)
    assert last.seen == [5, 6]
    assert last.equals(whole)
    # The last one is of the end: a kill while answers are scored costs no training.
    done = Trained(method, names, path, every=2)
    assert done.seen == [] and done.equals(whole)
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_change_no_number_and_the_test_can_tell(tmp_path: Path) -> None:
    whole = Trained("mixlora", ("cell0",))
    assert Trained("mixlora", ("cell0",), tmp_path / "all.pt", every=1).equals(whole)
    Trained("mixlora", ("cell0",), tmp_path / "file.pt", every=2, until=3)
    for part in ("weights", "optimizer", "random"):
        state: Any = read(tmp_path / "file.pt")
        other = copy.deepcopy(state)
        if part == "weights":
            next(iter(other["weights"].values())).mul_(1.01)
        elif part == "optimizer":
            for moments in other["optimizer"]["state"].values():
                moments["exp_avg"].mul_(1.5)
        else:
            other["random"]["cpu"] = torch.Generator().manual_seed(1).get_state()
        torch.save(other, tmp_path / "other.pt")
        assert not Trained("mixlora", ("cell0",), tmp_path / "other.pt").equals(whole), part


@pytest.mark.parametrize("damage", ["cut", "edited", "empty", "other versions", "a pickle"])
def test_a_checkpoint_that_cannot_be_used_is_none(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Trained("lora", ("cell0",))
    path = tmp_path / "file.pt"
    Trained(
        "lora", ("cell0",), path, every=2, until=3, made_by="you" if "other" in damage else "me"
    )
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "edited":
        weight = next(iter((read(path) or {})["weights"].values()))
        where = content.index(weight.numpy().tobytes()[:32])
        path.write_bytes(content[:where] + b"\0\1\2\3" + content[where + 4 :])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a pickle":
        torch.save({"made_by": {"by": "me"}, "step": Path("x")}, path)
    again = Trained("lora", ("cell0",), path)
    assert again.seen == list(range(1, STEPS + 1)) and again.equals(whole)
    assert "its training begins anew" in capsys.readouterr().err
    assert not path.exists()


def cells() -> list[RunSpec]:
    request = make_request(
        tasks=["arc-e", "obqa"], methods=["mixlora"], scoring="choice", limit_train=40, limit_eval=8
    )
    adapter = tuple(
        sorted((dict(single_task()(request)[0].adapter) | {"lora_dropout": 0.1}).items())
    )
    return [
        RunSpec(**vars(c) | {"adapter": adapter, "expert_load": True})
        for c in single_task()(request)
    ]


def run(output: Path, packed: int, every: int) -> dict[str, RunRecord]:
    weights = {"tiny": resolve(MODELS["tiny"], None)}
    loader = InputLoader(open_source(None, bundled=True), weights)
    options = RunOptions(packed=packed, checkpoint_steps=every)
    outcome = execute(cells(), loader, RecordStore(output), fresh=False, options=options)
    assert outcome.failed == {}
    return {record.id: record for record in outcome.records.values()}


@pytest.mark.parametrize("packed", [1, 2])
def test_a_killed_cell_has_the_record_it_would_have_had(
    packed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the counts of its experts, of which five of the ten are taken before the kill."""
    whole = run(tmp_path / "whole", packed, every=0)
    folder = tmp_path / "killed" / "checkpoints"

    def kill(*arguments: Any, **options: Any) -> None:
        raise Killed

    save = Checkpoint.save
    saved: list[int] = []

    def save_and_die(self: Checkpoint, step: int, *rest: Any) -> None:
        save(self, step, *rest)
        saved.append(step)
        if step == 3 and saved.count(3) == 1:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    with pytest.raises(Killed):
        run(tmp_path / "killed", packed, every=3)
    assert len(list(folder.iterdir())) == 1
    # The next kill is between a training and its scores.
    monkeypatch.setattr("harness.run.scoring.score", kill)
    with pytest.raises(Killed):
        run(tmp_path / "killed", packed, every=3)
    monkeypatch.undo()
    resumed = run(tmp_path / "killed", packed, every=3)
    assert list(folder.iterdir()) == []
    assert saved == [3, 5]
    assert resumed.keys() == whole.keys()
    for name, record in resumed.items():
        assert record.training == whole[name].training
        assert len(record.training["expert_load"]) == 5
        assert record.tasks == whole[name].tasks
        assert record.seconds.keys() == whole[name].seconds.keys()


def test_what_is_left_of_a_finished_cell_is_removed(tmp_path: Path) -> None:
    run(tmp_path, 1, every=0)
    (first, _) = sorted((tmp_path / "records").glob("*.json"))
    left = tmp_path / "checkpoints" / f"{first.stem}.pt"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"killed before it was removed")
    run(tmp_path, 1, every=0)
    assert not left.exists()
