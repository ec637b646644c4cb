"""Runs a job under its lock, from what is stored of its cells to what is stored then.

Wherever it runs, here or on a node of a cluster, it reads and writes nothing but the records,
failures, locks and checkpoints of one output directory.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..cells.spec import RunSpec
from ..run.inputs import Job
from ..run.processes import ProcessLost
from ..store.files import OutputError, remove
from ..store.locks import taken
from ..store.records import Failure, FailureStore, RecordStore, RunRecord

logger = logging.getLogger(__name__)

#: Seconds between looks at what other processes run.
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Work:
    """A job that may have to be run, and what was known of its cells when it was planned.

    Attributes:
        job: The cells, and how they are run.
        output: Directory where the results are kept.
        fresh: Whether cells that had a record are run again.
        before: Cell -> its record.
        failed: Cell -> its failure.
    """

    job: Job
    output: Path
    fresh: bool
    before: dict[RunSpec, RunRecord]
    failed: dict[RunSpec, Failure]


@dataclass
class Settled:
    """What became of a job.

    Attributes:
        records: Cell -> its record, of the cells that are done.
        failed: Cell -> its failure, of those that failed.
        computed: How many cells were run now, not by another process.
    """

    records: dict[RunSpec, RunRecord] = field(default_factory=dict)
    failed: dict[RunSpec, Failure] = field(default_factory=dict)
    computed: int = 0


def settle(work: Work, begin: Callable[[], None] = lambda: None) -> Settled | None:
    """Run a job, but for the cells that another process has settled since it was planned.

    Args:
        work: The job.
        begin: Called when its training is about to begin.

    Returns:
        What became of its cells; None if another process is running them.

    Raises:
        OutputError: A record, lock or log cannot be written.
        ProcessLost: One of the processes that run the job together is gone.
    """
    with taken(work.output / "locks" / f"{work.job.id}.lock") as mine:
        if not mine:
            return None
        settled = _settled_elsewhere(work)
        specs = [cell.spec for cell in work.job.cells]
        done = {*settled.records, *settled.failed}
        wanted = [spec for spec in specs if spec not in done]
        if wanted:
            begin()
            _run(work, dataclasses.replace(work.job, wanted=tuple(wanted)), settled)
    return settled


def _run(work: Work, job: Job, settled: Settled) -> None:
    # Imported here, because everything up to here works without loading torch.
    from ..run.cell import release_memory, run_job

    store, failures = RecordStore(work.output), FailureStore(work.output)
    if work.fresh and job.checkpoint is not None:
        remove(job.checkpoint)
    try:
        for record in run_job(job):
            _save(store, record)
            failures.delete(record.id)
            settled.records[record.spec] = record
            settled.computed += 1
        if job.checkpoint is not None:
            remove(job.checkpoint)
    except (OutputError, ProcessLost):
        raise
    # The failure of one job, whatever it is, must not cost the cells after it.
    except Exception as error:
        for cell in job.cells:
            if cell.spec in (job.wanted or ()) and cell.spec not in settled.records:
                failure = failures.note(cell.spec, cell.fingerprints, error)
                settled.failed[cell.spec] = failure
    else:
        return
    # Only now, because the exception kept alive what its frames held.
    release_memory()


def _save(store: RecordStore, record: RunRecord) -> None:
    try:
        store.save(record)
    except OutputError:
        logger.error("computed, but not saved: %s", record.spec.title)
        raise


def _settled_elsewhere(work: Work) -> Settled:
    """What other processes have made of the cells since the job was planned."""
    settled = Settled()
    for cell in work.job.cells:
        record = RecordStore(work.output).load(cell.id)
        failure = FailureStore(work.output).load(cell.id)
        if record is not None and not (work.fresh and record == work.before.get(cell.spec)):
            settled.records[cell.spec] = record
        elif failure is not None and failure != work.failed.get(cell.spec):
            settled.failed[cell.spec] = failure
    return settled
