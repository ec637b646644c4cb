"""Runs the cells of a table that have no record yet, pack after pack (most are of one cell).

Any number of processes may do so in one output directory, each all cells or its shard of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from functools import partial

from ..cells.packing import make_packs
from ..cells.spec import RAY, RunOptions, RunSpec
from ..run.inputs import InputLoader, Job
from ..store.files import remove
from ..store.outcome import Outcome
from ..store.records import AnyKept, FailureStore, RecordStore, Store
from .cluster import run_on_ray
from .progress import Progress
from .work import POLL_SECONDS, Settled, Work, settle

#: Every cell is run alone, without checkpoints.
DEFAULT_OPTIONS = RunOptions()


def execute(
    cells: Sequence[RunSpec],
    loader: InputLoader,
    store: RecordStore,
    fresh: bool,
    options: RunOptions = DEFAULT_OPTIONS,
) -> Outcome:
    """Run every cell that has no record, saving each as it finishes.

    A cell that fails does not stop the others: its traceback goes to ``<output>/logs/`` and its
    reason into the outcome. A pack is trained whole if one of its cells has no record, and its
    failure is that of all its cells that are not done. Several processes share the cells of one
    output directory: at the end, each waits for what another one runs. Shard i of n is every n-th
    pack from the i-th on, whatever is done already; of the cells of other shards, those that have a
    record are in the outcome.

    Args:
        cells: The cells of a table.
        loader: Finds their inputs.
        store: Where records are kept.
        fresh: Whether cells that have a record are run again.
        options: How they are run.

    Raises:
        ValueError: The data cannot be used, or a stored record cannot be read: nothing has been
            run then.
        OutputError: A record, lock or log cannot be written.
        ProcessLost: Another process that runs the cells with this one is gone.
    """
    outcome = Outcome()
    available = []
    for spec in cells:
        reason = loader.unavailable(spec)
        if reason is None:
            available.append(spec)
        else:
            outcome.unavailable[spec] = reason

    failures = FailureStore(store.output)
    waiting: list[Work] = []
    asked = found = 0
    shard, shards = options.shard
    for number, pack in enumerate(make_packs(available, options.packed)):
        # All rows are read before the first cell runs: a bad one is known now, not at night.
        job = Job(tuple(loader.load(spec) for spec in pack), options)
        checkpoint = store.output / "checkpoints" / f"{job.id}.pt"
        job = dataclasses.replace(job, checkpoint=checkpoint)
        for cell in job.cells:
            outcome.skipped |= cell.skipped
        done = _by_spec(job, store)
        if number % shards != shard - 1:
            outcome.records |= done
            outcome.not_run += [spec for spec in pack if spec not in done]
            continue
        if fresh or len(done) < len(pack):
            waiting.append(Work(job, store.output, fresh, done, _by_spec(job, failures)))
        else:
            # It is there if a run was killed when everything was done but its removal.
            remove(checkpoint)
            found += len(pack)
        asked += len(pack)
        if not fresh:
            outcome.records |= done

    if waiting:
        with closing(Progress(found, asked)) as progress:
            run = run_on_ray if options.executor == RAY else _run_here
            for settled in run(waiting, progress):
                progress.end(settled)
                outcome.records |= settled.records
                outcome.failed |= settled.failed
                outcome.computed += settled.computed
    return outcome


def _by_spec(job: Job, store: Store[AnyKept]) -> dict[RunSpec, AnyKept]:
    """What a store has of a job's cells."""
    found = {cell.spec: store.load(cell.id) for cell in job.cells}
    return {spec: kept for spec, kept in found.items() if kept is not None}


def _run_here(waiting: Sequence[Work], progress: Progress) -> Iterator[Settled]:
    """Run what no other process runs, then wait for the others."""
    waiting = [
        dataclasses.replace(work, job=dataclasses.replace(work.job, report=progress.report))
        for work in waiting
    ]
    said = False
    while waiting:
        busy = []
        for work in waiting:
            settled = settle(work, partial(progress.begin, work.job))
            if settled is None:
                busy.append(work)
            else:
                yield settled
        if len(busy) == len(waiting):
            if not said:
                progress.say_waiting([work.job for work in busy])
                said = True
            time.sleep(POLL_SECONDS)
        waiting = busy


def stored(cells: Sequence[RunSpec], store: RecordStore) -> Outcome:
    """The newest record or failure of every cell that has one.

    It counts whatever data and code it was made with, and with whatever other cells in a pack.
    """
    outcome = Outcome()
    wanted = set(cells)
    for record in store.all():  # oldest first, so that a newer record replaces an older one
        outcome.records |= dict.fromkeys(_asked_for(record.spec, wanted), record)
    for failure in FailureStore(store.output).all():
        for spec in _asked_for(failure.spec, wanted):
            newest = outcome.records.get(spec)
            if newest is None or newest.provenance["finished"] < failure.finished:
                outcome.records.pop(spec, None)
                outcome.failed[spec] = failure
    return outcome


def _asked_for(spec: RunSpec, wanted: Collection[RunSpec]) -> list[RunSpec]:
    # Tables are rendered on other machines than they are run on, so "auto" is any device.
    alone = dataclasses.replace(spec, packed_with=())
    either = (alone, dataclasses.replace(alone, device="auto"))
    return [spec for spec in either if spec in wanted]
