"""Makes the measurements that have no record yet, one after the other, each in a fresh process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from harness.cells.spec import RESULTS_VERSION
from harness.messages import first_line
from harness.run import provenance
from harness.store.locks import taken
from harness.store.records import FAILED, OOM

from .records import DONE, MeasureRecord, MeasureStore
from .spec import MeasureSpec

logger = logging.getLogger(__name__)

_WORKER = "harness.speed.worker:measure"

#: Environment variables that set how glibc's allocator behaves in the process of a measurement
#: (other allocators ignore them). For latency it keeps the memory that it has: otherwise every run
#: gives its large tensors back and has their pages mapped again, which costs time that depends on
#: the (virtual) machine and not on the method. For memory it gives back every tensor of 64 KiB or
#: more at once, so that the peak is the memory of the tensors that were alive.
_ALLOCATOR = {
    "latency": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
    "memory": {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_MMAP_MAX_": str(2**30)},
}


def measure_missing(
    specs: Sequence[MeasureSpec], store: MeasureStore, fresh: bool
) -> dict[MeasureSpec, MeasureRecord]:
    """Make every measurement that this code has not made, saving each as it finishes.

    A measurement that runs out of memory is recorded as such and not tried again; one that fails
    otherwise is tried again next time. Neither stops the others. Code that differs from its commit
    cannot be told from other code, so nothing that was made with it is taken from the store.

    Args:
        specs: The measurements of a table, with a definite device and number of threads.
        store: Where records are kept.
        fresh: Whether measurements that have a record are made again.

    Raises:
        ValueError: A stored record cannot be read: nothing has been measured then.
    """
    commit = provenance.commit()
    known = not commit.endswith("-dirty") and commit != "unknown"
    if not (known or fresh):
        logger.info(
            "code is %s, which names no exact version: every measurement is made anew", commit
        )
    found = {spec: store.made_with(spec, commit) if known else None for spec in specs}
    records = {
        spec: record
        for spec, record in found.items()
        if record is not None and record.status != FAILED and not fresh
    }
    waiting = [spec for spec in specs if spec not in records]
    # A bar in a terminal; in a log, one line a measurement.
    done, total = len(records), len(specs)
    bar = tqdm(total=total, initial=done, unit="measurement", dynamic_ncols=True, disable=None)
    with bar:
        for number, spec in enumerate(waiting, start=done + 1):
            bar.set_description(spec.title)
            if bar.disable:
                logger.info("measurement %d/%d: %s", number, total, spec.title)
            # One process at a time, because two would slow each other down.
            with taken(store.directory.parent / "locks" / "measurements.lock", wait=True):
                made = store.made_with(spec, commit) if known else None
                if made is not None and made != found[spec]:
                    record = made  # by another process meanwhile
                else:
                    record = _measure(spec, commit)
                    store.save(record)
            records[spec] = record
            if record.status != DONE:
                logger.warning("%s: %s: %s", record.status, spec.title, record.reason)
            bar.update()
    return {spec: records[spec] for spec in specs}


def _measure(spec: MeasureSpec, commit: str) -> MeasureRecord:
    # Imported here, because it loads torch, which rendering a table does not need.
    from harness.speed.profiling import OutOfMemory, call_in_fresh_process

    found: dict[str, Any] = {"reports": [], "load_average": None, "device_name": spec.device}
    status, reason = DONE, ""
    try:
        found = call_in_fresh_process(
            _WORKER, spec.to_json(), environment=_ALLOCATOR[spec.quantity]
        )
    except OutOfMemory as error:
        status, reason = OOM, first_line(error)
    except RuntimeError as error:
        status, reason = FAILED, first_line(error)
    facts = provenance.collect(spec.device, found["device_name"], spec.threads)
    return MeasureRecord(
        spec=spec,
        status=status,
        reason=reason.removeprefix(f"{_WORKER}: "),
        reports=found["reports"],
        load_average=found["load_average"],
        results_version=RESULTS_VERSION,
        # The code that was measured is that of the beginning, even if files were edited since.
        provenance=facts | {"commit": commit},
    )
