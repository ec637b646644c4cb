"""Runs a pack of cells under its lock, from what is stored of it to what is stored then.

Wherever it runs, here or on a node of a cluster, the records, failures, locks and checkpoints of
one output directory are all that is read and written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..cells.spec import RunOptions, RunSpec
from ..run.inputs import CellInputs
from ..run.processes import ProcessLost
from ..store.records import Failure, FailureStore
from ..store.files import OutputError, remove
from ..store.locks import taken
from ..store.records import RecordStore, RunRecord

#: Between looks at what other processes run.
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Work:
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

    @property
    def title(self) -> str:
        """Short text for progress."""
        first, *others = self.ids
        return first.title + (f" and {len(others)} packed with it" if others else "")

    def checkpoint(self, output: Path) -> Path:
        """The file that its training goes on from."""
        return output / "checkpoints" / f"{self.id}.pt"


@dataclass
class Settled:
    """What became of a pack.

    Attributes:
        records: Of the cells that are done.
        failed: Cells that failed -> how.
        computed: How many cells were run now, not by another process.
    """

    records: dict[RunSpec, RunRecord] = field(default_factory=dict)
    failed: dict[RunSpec, Failure] = field(default_factory=dict)
    computed: int = 0


def settle(
    work: Work,
    load: Callable[[RunSpec], CellInputs],
    output: Path,
    fresh: bool,
    options: RunOptions,
    begin: Callable[[], None],
    report: Callable[[str], None],
) -> Settled | None:
    """Run a pack, but for what another process has settled since it was planned.

    Args:
        work: The pack.
        load: From a cell to its inputs.
        output: Where records are kept.
        fresh: Run cells that had a record as well.
        options: How they are run.
        begin: Called when a cell is about to be run.
        report: Called with short texts on how far it is.

    Returns:
        What became of its cells; None if another process is running them.

    Raises:
        OutputError: A record, lock or log cannot be written.
        ProcessLost: One of the processes that run the cell together is gone.
    """
    with taken(output / "locks" / f"{work.id}.lock") as mine:
        if not mine:
            return None
        settled, missing = Settled(), []
        for spec in work.ids:
            if not _settled_elsewhere(work, spec, output, fresh, settled):
                missing.append(spec)
        if missing:
            begin()
            _run(work, missing, load, output, fresh, options, report, settled)
    return settled


def _run(
    work: Work,
    missing: list[RunSpec],
    load: Callable[[RunSpec], CellInputs],
    output: Path,
    fresh: bool,
    options: RunOptions,
    report: Callable[[str], None],
    settled: Settled,
) -> None:
    # Here, because everything up to here works without loading torch.
    from ..run.cell import release_memory, run_pack

    store, failures, checkpoint = RecordStore(output), FailureStore(output), work.checkpoint(output)
    if fresh:
        remove(checkpoint)
    try:
        cells = [(spec, load(spec)) for spec in work.ids]
        for record in run_pack(cells, missing, report, options, checkpoint):
            _save(store, record)
            failures.delete(record.id)
            settled.records[record.spec] = record
            settled.computed += 1
        remove(checkpoint)
    except (OutputError, ProcessLost):
        raise
    # One pack's failure, whatever it is, must not cost the cells after it.
    except Exception as error:
        for spec in missing:
            if spec not in settled.records:
                settled.failed[spec] = failures.save(spec, load(spec).fingerprints, error)
    else:
        return
    # The exception is gone by now, and with it what its frames held.
    release_memory()


def _save(store: RecordStore, record: RunRecord) -> None:
    try:
        store.save(record)
    except OutputError:
        print(f"computed, but not saved: {record.spec.title}", file=sys.stderr)
        raise


def _settled_elsewhere(
    work: Work, spec: RunSpec, output: Path, fresh: bool, settled: Settled
) -> bool:
    """Whether another process has run the cell since it was planned; takes over its end."""
    record_id = work.ids[spec]
    record = RecordStore(output).load(record_id)
    if record is not None and (not fresh or record != work.before[spec]):
        settled.records[spec] = record
        return True
    failure = FailureStore(output).load(record_id)
    if failure is not None and failure != work.failed[spec]:
        settled.failed[spec] = failure
        return True
    return False
