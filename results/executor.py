"""Runs the cells of a table that have no record yet, pack after pack (most are of one cell)."""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from .inputs import InputLoader
from .packing import Pack, make_packs, pack_id
from .record_files import write_atomically
from .records import RecordStore, RunRecord
from .spec import RunOptions, RunSpec, cell_id

#: Each cell alone, without checkpoints.
DEFAULT_OPTIONS = RunOptions()


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
    options: RunOptions = DEFAULT_OPTIONS,
) -> Outcome:
    """Run every cell that has no record, saving each as it finishes.

    A cell that fails does not stop the others: its traceback goes to ``<output>/logs/`` and its
    reason into the outcome. A pack is trained whole if one of its cells has no record, and what
    fails in it fails all its cells that are not done.

    Args:
        cells: Of the table.
        loader: For their inputs.
        store: Where records are kept.
        fresh: Run cells that have a record as well.
        options: How they are run.

    Raises:
        ValueError: The data cannot be used, or a stored record cannot be read: nothing has been
            run then.
    """
    outcome = Outcome()
    available = []
    for spec in cells:
        reason = loader.unavailable(spec)
        if reason is None:
            available.append(spec)
        else:
            outcome.unavailable[spec] = reason

    waiting: list[_Work] = []
    for pack in make_packs(available, options.packed):
        # All inputs are read before the first cell runs: a bad row fails now, not at night.
        ids = [cell_id(spec, loader.load(spec).fingerprints) for spec in pack]
        found = [None if fresh else store.load(record_id) for record_id in ids]
        both = list(zip(pack, found, strict=True))
        outcome.records |= {spec: record for spec, record in both if record is not None}
        missing = tuple(spec for spec, record in both if record is None)
        checkpoint = store.output / "checkpoints" / f"{pack_id(ids)}.pt"
        if fresh or not missing:
            # The second is of a run that was killed when all was done but this.
            checkpoint.unlink(missing_ok=True)
        if missing:
            waiting.append(_Work(pack, missing, checkpoint))

    if waiting:
        _run_packs(waiting, len(available), outcome, loader, store, options)
    return outcome


@dataclass(frozen=True)
class _Work:
    """A pack, those of its cells that have no record, and where its training is kept."""

    pack: Pack
    missing: Pack
    checkpoint: Path


def _run_packs(
    waiting: list[_Work],
    total: int,
    outcome: Outcome,
    loader: InputLoader,
    store: RecordStore,
    options: RunOptions,
) -> None:
    """Run packs; `total` cells with all done."""
    # Here, because everything up to here works without loading torch.
    from .run import run_pack

    done = len(outcome.records)
    # A bar in a terminal; in a log, where it would be a line a step, one line a pack.
    with tqdm(total=total, initial=done, unit="cell", dynamic_ncols=True, disable=None) as bar:
        for work in waiting:
            pack, missing = work.pack, work.missing
            companions = f" and {len(pack) - 1} packed with it" if len(pack) > 1 else ""
            title = pack[0].title + companions
            bar.set_description(title)
            if bar.disable:
                print(f"cell {done + 1}/{total}: {title}", file=sys.stderr, flush=True)
            try:
                cells = [(spec, loader.load(spec)) for spec in pack]
                report = bar.set_postfix_str
                for record in run_pack(cells, missing, report, options, work.checkpoint):
                    store.save(record)
                    outcome.records[record.spec] = record
                    outcome.computed += 1
                work.checkpoint.unlink(missing_ok=True)
            # One pack's failure, whatever it is, must not cost the cells after it.
            except Exception as error:
                for spec in missing:
                    if spec not in outcome.records:
                        outcome.failed[spec] = _log_failure(spec, error, store)
                        tqdm.write(f"failed: {spec.title}: {outcome.failed[spec]}", file=sys.stderr)
            done += len(missing)
            bar.update(len(missing))


def _log_failure(spec: RunSpec, error: Exception, store: RecordStore) -> str:
    reason = str(error).strip().partition("\n")[0] or "no message"
    name = spec.title.replace(" ", "-").replace("/", "-") + ".log"
    log = store.output / "logs" / name
    write_atomically(log, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {reason} (traceback in {log})"


def stored(cells: Sequence[RunSpec], store: RecordStore) -> Outcome:
    """The newest record of every cell that has one, whatever it was computed with.

    That is whatever data and code, and whatever other cells in a pack.
    """
    outcome = Outcome()
    wanted = set(cells)
    for record in store.all():  # oldest first, so that a newer record replaces an older one
        # Tables are rendered on other machines than they are run on, so "auto" is any device.
        alone = dataclasses.replace(record.spec, packed_with=())
        for spec in (alone, dataclasses.replace(alone, device="auto")):
            if spec in wanted:
                outcome.records[spec] = record
    return outcome
