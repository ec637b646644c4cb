"""Runs the cells of a table that have no record yet, pack after pack (most are of one cell).

Any number of processes may do so in one output directory.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .failures import Failure, FailureStore
from .inputs import InputLoader
from .locks import taken
from .packing import make_packs, pack_id
from .record_files import OutputError, remove
from .records import RecordStore, RunRecord
from .spec import RunOptions, RunSpec, cell_id

# Between looks at what other processes run.
_POLL_SECONDS = 1.0

#: Each cell alone, without checkpoints.
DEFAULT_OPTIONS = RunOptions()


@dataclass
class Outcome:
    """What became of the cells.

    Attributes:
        records: Of the cells that are done, by cell.
        unavailable: Cells that cannot be run for want of data -> why, one line.
        failed: Cells that failed -> how.
        computed: How many cells were run now, not found done.
        skipped: "<task> <split>" -> rows left out of what the cells are run on.
    """

    records: dict[RunSpec, RunRecord] = field(default_factory=dict)
    unavailable: dict[RunSpec, str] = field(default_factory=dict)
    failed: dict[RunSpec, Failure] = field(default_factory=dict)
    computed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


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
    output directory: what another one runs is waited for at the end.

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
    waiting: list[_Work] = []
    for pack in make_packs(available, options.packed):
        # All inputs are read before the first cell runs: a bad row fails now, not at night.
        inputs = {spec: loader.load(spec) for spec in pack}
        for each in inputs.values():
            outcome.skipped |= each.skipped
        ids = {spec: cell_id(spec, each.fingerprints) for spec, each in inputs.items()}
        before = {spec: store.load(record_id) for spec, record_id in ids.items()}
        failed = {spec: failures.load(record_id) for spec, record_id in ids.items()}
        work = _Work(ids, before, failed, pack_id(list(ids.values())))
        if fresh or None in before.values():
            waiting.append(work)
        else:
            # Left by a run that was killed when all was done but this.
            remove(_checkpoint(store, work))
        if not fresh:
            outcome.records |= {spec: found for spec, found in before.items() if found is not None}

    if waiting:
        runner = _Runner(outcome, loader, store, failures, fresh, options)
        runner.run(waiting, len(available))
    return outcome


@dataclass(frozen=True)
class _Work:
    """A pack that may have to be run, and what was known of its cells when it was planned.

    Attributes:
        ids: Cell -> its id.
        before: Cell -> its record.
        failed: Cell -> its failure.
        id: Of the pack; names its lock and its checkpoint.
    """

    ids: dict[RunSpec, str]
    before: dict[RunSpec, RunRecord | None]
    failed: dict[RunSpec, Failure | None]
    id: str


def _checkpoint(store: RecordStore, work: _Work) -> Path:
    return store.output / "checkpoints" / f"{work.id}.pt"


@dataclass
class _Runner:
    """Runs packs, each under a lock.

    Attributes:
        outcome: Filled in.
        loader, store, failures, fresh, options: As in `execute`.
    """

    outcome: Outcome
    loader: InputLoader
    store: RecordStore
    failures: FailureStore
    fresh: bool
    options: RunOptions

    def run(self, waiting: list[_Work], total: int) -> None:
        """Run what no other process runs, then wait for the others; `total` cells with all done."""
        said = False
        found = len(self.outcome.records)
        # A bar in a terminal; in a log, where it would be a line a step, one line a pack.
        bar = tqdm(total=total, initial=found, unit="cell", dynamic_ncols=True, disable=None)
        with bar:
            while waiting:
                busy = []
                for work in waiting:
                    with taken(self.store.output / "locks" / f"{work.id}.lock") as mine:
                        if mine:
                            done = len(self.outcome.records) + len(self.outcome.failed)
                            self._run(work, bar, f"{done + 1}/{total}")
                            now = len(self.outcome.records) + len(self.outcome.failed)
                            bar.update(now - done)
                        else:
                            busy.append(work)
                if len(busy) == len(waiting):
                    if not said:
                        count = sum(len(work.ids) for work in busy)
                        tqdm.write(f"waiting: another process runs {count} cells", file=sys.stderr)
                        said = True
                    time.sleep(_POLL_SECONDS)
                waiting = busy

    def _run(self, work: _Work, bar: tqdm[Any], number: str) -> None:
        """Run a pack whose lock is ours, if that is still to be done; number is "3/128"."""
        # Here, because everything up to here works without loading torch.
        from .run import release_memory, run_pack

        missing = [spec for spec in work.ids if not self._settled_elsewhere(work, spec)]
        if not missing:
            return
        specs = list(work.ids)
        title = specs[0].title
        title += f" and {len(specs) - 1} packed with it" if len(specs) > 1 else ""
        bar.set_description(title)
        if bar.disable:
            print(f"cell {number}: {title}", file=sys.stderr, flush=True)
        checkpoint = _checkpoint(self.store, work)
        if self.fresh:
            remove(checkpoint)
        try:
            cells = [(spec, self.loader.load(spec)) for spec in specs]
            report = bar.set_postfix_str
            for record in run_pack(cells, missing, report, self.options, checkpoint):
                self._save(record)
                self.failures.delete(record.id)
                self.outcome.records[record.spec] = record
                self.outcome.computed += 1
            remove(checkpoint)
        except OutputError:
            raise
        # One pack's failure, whatever it is, must not cost the cells after it.
        except Exception as error:
            for spec in missing:
                if spec not in self.outcome.records:
                    inputs = self.loader.load(spec)
                    failure = self.failures.save(spec, inputs.fingerprints, error)
                    self.outcome.failed[spec] = failure
                    tqdm.write(str(failure), file=sys.stderr)
        else:
            return
        # The exception is gone by now, and with it what its frames held.
        release_memory()

    def _save(self, record: RunRecord) -> None:
        try:
            self.store.save(record)
        except OutputError:
            print(f"computed, but not saved: {record.spec.title}", file=sys.stderr)
            raise

    def _settled_elsewhere(self, work: _Work, spec: RunSpec) -> bool:
        """Whether another process has run the cell since this one planned; takes over its end."""
        stored_record = self.store.load(work.ids[spec])
        is_new = not self.fresh or stored_record != work.before[spec]
        if stored_record is not None and is_new:
            self.outcome.records[spec] = stored_record
            return True
        failure = self.failures.load(work.ids[spec])
        if failure is not None and failure != work.failed[spec]:
            self.outcome.failed[spec] = failure
            return True
        return False


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
