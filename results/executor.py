"""Runs the cells of a table that have no record yet, one after the other."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from .inputs import InputLoader
from .records import RecordStore, RunRecord, write_atomically
from .spec import RunSpec, cell_id


@dataclass
class Outcome:
    """What became of the cells.

    Attributes:
        records: Of the cells that are done, by cell.
        unavailable: Cells that cannot be run for want of data -> why, one line.
        failed: Cells that failed -> why, one line.
        computed: How many cells were run now, not found done.
    """

    records: dict[RunSpec, RunRecord] = field(default_factory=dict)
    unavailable: dict[RunSpec, str] = field(default_factory=dict)
    failed: dict[RunSpec, str] = field(default_factory=dict)
    computed: int = 0


def execute(
    cells: Sequence[RunSpec],
    loader: InputLoader,
    store: RecordStore,
    fresh: bool,
    checkpointing: bool = False,
) -> Outcome:
    """Run every cell that has no record, saving each as it finishes.

    A cell that fails does not stop the others: its traceback goes to ``<output>/logs/`` and its
    reason into the outcome.

    Args:
        cells: Of the table.
        loader: For their inputs.
        store: Where records are kept.
        fresh: Run cells that have a record as well.
        checkpointing: Train in less memory and more time, to the same numbers.

    Raises:
        ValueError: The data cannot be used, or a stored record cannot be read: nothing has been
            run then.
    """
    outcome = Outcome()
    waiting = []
    for spec in cells:
        reason = loader.unavailable(spec)
        if reason is not None:
            outcome.unavailable[spec] = reason
            continue
        # All inputs are read before the first cell runs, so that a bad row fails now, not at night.
        record_id = cell_id(spec, loader.load(spec).fingerprints)
        record = None if fresh else store.load(record_id)
        if record is None:
            waiting.append(spec)
        else:
            outcome.records[spec] = record

    if waiting:
        # Here, because everything up to here works without loading torch.
        from .run import run_cell

        done = len(outcome.records)
        total = done + len(waiting)
        # A bar in a terminal; in a log, where it would be a line a step, one line a cell.
        bar = tqdm(total=total, initial=done, unit="cell", dynamic_ncols=True, disable=None)
        with bar:
            for number, spec in enumerate(waiting, start=done + 1):
                bar.set_description(spec.title)
                if bar.disable:
                    print(f"cell {number}/{total}: {spec.title}", file=sys.stderr, flush=True)
                try:
                    inputs = loader.load(spec)
                    record = run_cell(spec, inputs, bar.set_postfix_str, checkpointing)
                # One cell's failure, whatever it is, must not cost the cells after it.
                except Exception as error:
                    outcome.failed[spec] = _log_failure(spec, error, store)
                    tqdm.write(f"failed: {spec.title}: {outcome.failed[spec]}", file=sys.stderr)
                else:
                    store.save(record)
                    outcome.records[spec] = record
                    outcome.computed += 1
                bar.update()
    return outcome


def _log_failure(spec: RunSpec, error: Exception, store: RecordStore) -> str:
    reason = str(error).strip().partition("\n")[0] or "no message"
    name = spec.title.replace(" ", "-").replace("/", "-") + ".log"
    log = store.directory.parent / "logs" / name
    write_atomically(log, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {reason} (traceback in {log})"


def stored(cells: Sequence[RunSpec], store: RecordStore) -> Outcome:
    """The newest record of every cell that has one, whatever data and code it was computed with."""
    outcome = Outcome()
    wanted = set(cells)
    for record in store.all():  # oldest first, so that a newer record replaces an older one
        # Tables are rendered on other machines than they are run on, so "auto" is any device.
        for spec in (record.spec, dataclasses.replace(record.spec, device="auto")):
            if spec in wanted:
                outcome.records[spec] = record
    return outcome
