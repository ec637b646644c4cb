"""Runs the cells of a table that have no record yet, pack after pack (most are of one cell).

Any number of processes may do so in one output directory, each all cells or its shard of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from ..cells.packing import make_packs, pack_id
from ..cells.spec import RAY, RunOptions, RunSpec, cell_id
from ..run.inputs import InputLoader
from ..store.failures import FailureStore
from ..store.files import remove
from ..store.outcome import Outcome
from ..store.records import RecordStore
from .cluster import run_on_ray
from .progress import Progress
from .work import POLL_SECONDS, Settled, Work, settle

#: Each cell alone, without checkpoints.
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
    reason into the outcome. A pack is trained whole if one of its cells has no record, and what
    fails in it fails all its cells that are not done. Several processes share the cells of one
    output directory: what another one runs is waited for at the end. Of the packs, a shard i of n
    is every n-th from the i-th on, whatever is done; of the other shards only what is there is
    taken.

    Args:
        cells: Of the table.
        loader: For their inputs.
        store: Where records are kept.
        fresh: Run cells that have a record as well.
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
        # All inputs are read before the first cell runs: a bad row fails now, not at night.
        inputs = {spec: loader.load(spec) for spec in pack}
        for each in inputs.values():
            outcome.skipped |= each.skipped
        ids = {spec: cell_id(spec, each.fingerprints) for spec, each in inputs.items()}
        before = {spec: store.load(record_id) for spec, record_id in ids.items()}
        done = {spec: record for spec, record in before.items() if record is not None}
        if number % shards != shard - 1:
            outcome.records |= done
            outcome.not_run += [spec for spec in pack if spec not in done]
            continue
        failed = {spec: failures.load(record_id) for spec, record_id in ids.items()}
        work = Work(ids, before, failed, pack_id(list(ids.values())))
        if fresh or len(done) < len(pack):
            waiting.append(work)
        else:
            # Left by a run that was killed when all was done but this.
            remove(work.checkpoint(store.output))
            found += len(pack)
        asked += len(pack)
        if not fresh:
            outcome.records |= done

    if waiting:
        run = run_on_ray if options.executor == RAY else _run_here
        with closing(Progress(found, asked)) as progress:
            for settled in run(waiting, loader, store.output, fresh, options, progress):
                progress.end(settled)
                outcome.records |= settled.records
                outcome.failed |= settled.failed
                outcome.computed += settled.computed
    return outcome


def _run_here(
    waiting: Sequence[Work],
    loader: InputLoader,
    output: Path,
    fresh: bool,
    options: RunOptions,
    progress: Progress,
) -> Iterator[Settled]:
    """Run what no other process runs, then wait for the others."""
    said = False
    while waiting:
        busy = []
        for work in waiting:
            begin = partial(progress.begin, work)
            settled = settle(work, loader.load, output, fresh, options, begin, progress.report)
            if settled is None:
                busy.append(work)
            else:
                yield settled
        if len(busy) == len(waiting):
            if not said:
                progress.say_waiting(busy)
                said = True
            time.sleep(POLL_SECONDS)
        waiting = busy


def stored(cells: Sequence[RunSpec], store: RecordStore) -> Outcome:
    """The newest record or failure of every cell that has one, whatever it was computed with.

    That is whatever data and code, and whatever other cells in a pack.
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
