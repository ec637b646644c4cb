"""Runs stored cells again and compares: the same inputs must give the same results."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

from ..cells.packing import make_packs
from ..cells.spec import RunOptions, RunSpec
from ..messages import first_line
from ..run.inputs import InputLoader, Job
from ..store.outcome import Verified
from ..store.records import RecordStore, RunRecord

logger = logging.getLogger(__name__)

# Fields of a record that are no result; the id follows from the spec, and that from --auto-batch.
_NO_RESULTS = ("id", "spec", "seconds", "provenance")


def verify(
    cells: Sequence[RunSpec],
    loader: InputLoader,
    store: RecordStore,
    count: int,
    options: RunOptions,
) -> list[Verified]:
    """Run that many of the stored cells again, drawn at random, and store nothing.

    Args:
        cells: The cells of a table.
        loader: Finds their inputs.
        store: Where records are kept.
        count: How many cells are run again; all that are stored if there are fewer.
        options: How they are run, and how they were packed.

    Raises:
        ValueError: None of the cells is stored, or data or a record cannot be used.
    """
    found: list[tuple[Job, RunRecord]] = []
    available = [spec for spec in cells if loader.unavailable(spec) is None]
    for pack in make_packs(available, options.packed):
        job = Job(tuple(loader.load(spec) for spec in pack), options)
        records = (store.load(cell.id) for cell in job.cells)
        found += [(job, record) for record in records if record is not None]
    if not found:
        raise ValueError(f"verify: no cell of the table is stored in {store.output}; run it first")
    # Drawn anew at every call, whatever the seeds: over many nights all cells have their turn.
    drawn = random.SystemRandom().sample(found, min(count, len(found)))
    results = []
    for number, (job, record) in enumerate(drawn, start=1):
        title = record.spec.title
        logger.info("verify %d/%d: %s", number, len(drawn), title)
        results.append(_verified(job, record))
        if results[-1].differences:
            logger.warning("differs: %s: %s", title, results[-1].differences[0])
    return results


def _verified(job: Job, record: RunRecord) -> Verified:
    # Imported here, because it loads torch.
    from ..run.cell import release_memory, run_job

    # The micro-batches are those that --auto-batch may have come to.
    accumulation = record.training.get("accumulation")
    job = dataclasses.replace(job, wanted=(record.spec,), accumulation=accumulation)
    try:
        (again,) = run_job(job)
        differences = list(_differences("", _results(record), _results(again)))
        return Verified(record, differences, list(_differences("", _maker(record), _maker(again))))
    # Whatever the failure is, the cell has not given the stored result again.
    except Exception as error:
        failure = f"{type(error).__name__}: {first_line(error)}"
    release_memory()
    return Verified(record, [failure], [])


def _results(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in record.to_json().items() if key not in _NO_RESULTS}


def _maker(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in record.provenance.items() if key != "finished"}


def _differences(where: str, stored: Any, now: Any) -> Iterator[str]:
    """Every value that differs, as "path: stored -> now"."""
    if isinstance(stored, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*stored, *now]):
            path = f"{where}.{key}" if where else str(key)
            yield from _differences(path, stored.get(key), now.get(key))
    elif isinstance(stored, list) and isinstance(now, list) and len(stored) == len(now):
        for index, pair in enumerate(zip(stored, now, strict=True)):
            yield from _differences(f"{where}[{index}]", *pair)
    elif stored != now:
        yield f"{where}: {stored!r} -> {now!r}"
