"""What test_distributed runs in one process and in two: cells with all that they exchange.

    WORLD_SIZE=2 RANK=0 MASTER_ADDR=... python -m tests.harness.several FOLDER

The first process writes FOLDER/results.json: per case the losses of every step, the counts of its
experts, or how it failed. What only one of two processes does wrong, it does by its rank.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from harness.cells.spec import RunOptions, RunSpec, TrainSettings
from harness.models.weights import MODELS, resolve
from harness.request import single_task
from harness.run import processes, training
from harness.run.cell import follow
from harness.run.checkpoint import Checkpoint, read
from harness.run.inputs import InputLoader
from harness.schedule.executor import execute
from harness.store.records import RecordStore
from tasks.sources import open_source

from .builders import make_request

MIXTURE = {"lora_dropout": 0.0, "router_aux_loss_coef": 1.0}


class Killed(BaseException):
    """Stands for a signal to all processes."""


def cell(method: str = "mixlora", rows: int = 17, accumulation: int = 1, **adapter: Any) -> RunSpec:
    request = make_request(
        methods=[method], tasks=["arc-e"], scoring="choice", limit_train=rows, limit_eval=8
    )
    (spec,) = single_task(MIXTURE | adapter)(request)
    train = TrainSettings(epochs=1, batch_size=8, accumulation=accumulation, learning_rate=2e-3)
    return dataclasses.replace(spec, train=train, expert_load=True)


#: 17 rows: the third step has one row, fewer than there are processes.
CASES: dict[str, tuple[RunSpec, RunOptions]] = {
    "dropout": (cell(lora_dropout=0.3), RunOptions()),
    "by row": (cell("mixdora"), RunOptions(gradient_checkpointing=True)),
    "switch": (cell(routing="switch", expert_capacity=6, router_z_loss_coef=0.5), RunOptions()),
}
GOING_WRONG = {
    "fails in the second": (cell(rows=18), RunOptions()),
    "nan": (cell(rows=19), RunOptions()),
    "too large for the second": (cell(rows=16), RunOptions(auto_batch=True)),
}
LAST = {"by micro-batch": (cell(accumulation=4), RunOptions())}


@contextmanager
def going_wrong(model: Any, rows: int) -> Iterator[None]:
    """What the cases of so many training rows are named for."""
    forwards = 0

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal forwards
        forwards += 1
        second = processes.rank() == 1
        if rows == 18 and second and forwards == 2:
            raise RuntimeError("only here\nand more of it")
        if rows == 19 and second and forwards == 2:
            output.loss = output.loss * float("nan")
        if rows == 16 and second and len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory, said the second")

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def run(name: str, spec: RunSpec, options: RunOptions, folder: Path) -> dict[str, Any]:
    """What became of a case."""
    weights = {"tiny": resolve(MODELS["tiny"], None)}
    loader = InputLoader(open_source(None, bundled=True), weights)
    LOSSES.clear()
    output = folder / name.replace(" ", "-")
    outcome = execute([spec], loader, RecordStore(output), fresh=False, options=options)
    for failure in outcome.failed.values():
        return {"status": failure.status, "reason": failure.reason}
    (record,) = outcome.records.values()
    return {
        "losses": list(LOSSES),
        "facts": record.training,
        "predictions": record.tasks["arc-e"].predictions,
        "processes": record.provenance["hardware"].get("processes"),
    }


LOSSES: list[float] = []
facts, fine_tune, save = training._facts, training.fine_tune, Checkpoint.save


def kept_facts(sets: Any, losses: dict[str, list[float]], settings: Any) -> Any:
    (own,) = losses.values()
    LOSSES[:] = own
    return facts(sets, losses, settings)


def watched(model: Any, sets: Any, *rest: Any) -> Any:
    with going_wrong(model, len(sets["cell0"].rows)):
        return fine_tune(model, sets, *rest)


def save_and_die(self: Checkpoint, step: int, *rest: Any) -> None:
    save(self, step, *rest)
    raise Killed


def interrupted(folder: Path) -> dict[str, Any]:
    """The case with dropout, stopped after its checkpoint of step 2 and begun again."""
    spec, _ = CASES["dropout"]
    with mock.patch.object(Checkpoint, "save", save_and_die), suppress(Killed):
        run("interrupted", spec, RunOptions(checkpoint_steps=2), folder)
    (path,) = (folder / "interrupted" / "checkpoints").iterdir()
    state = read(path) or {}
    # As in a process begun again, which has another random state.
    torch.manual_seed(99)
    again = run("interrupted", spec, RunOptions(checkpoint_steps=4), folder)
    others = state["random of the other processes"]
    same = [torch.equal(state["random"]["cpu"], other["cpu"]) for other in others]
    return {"record": again, "others draw the same": same}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of all cases; in the processes that follow, nothing."""
    with (
        mock.patch("harness.run.training._facts", kept_facts),
        mock.patch("harness.run.cell.fine_tune", watched),
    ):
        if processes.rank() > 0:
            with mock.patch.object(Checkpoint, "save", save_and_die), suppress(Killed):
                follow()
            follow()
            return {}
        cases = CASES | (GOING_WRONG if processes.count() > 1 else {}) | LAST
        found = {"interrupted": interrupted(folder)}
        return found | {name: run(name, *case, folder) for name, case in cases.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with processes.joined():
        if made := results(folder):
            (folder / "results.json").write_text(json.dumps(made))
