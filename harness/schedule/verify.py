"""Runs stored cells again and compares: the same inputs must give the same results."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from ..cells.packing import Pack, make_packs
from ..cells.spec import RunOptions, RunSpec, cell_id
from ..messages import first_line
from ..run.inputs import InputLoader
from ..store.outcome import Verified
from ..store.records import RecordStore, RunRecord

# What of a record is no result; the id follows from the spec, and that from --auto-batch.
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
        cells: Of the table.
        loader: For their inputs.
        store: Where records are kept.
        count: How many; all that are stored if it is more.
        options: How they are run, and were packed.

    Raises:
        ValueError: None of the cells is stored, or data or a record cannot be used.
    """
    found: list[tuple[Pack, RunRecord]] = []
    available = [spec for spec in cells if loader.unavailable(spec) is None]
    for pack in make_packs(available, options.packed):
        records = (store.load(cell_id(spec, loader.load(spec).fingerprints)) for spec in pack)
        found += [(pack, record) for record in records if record is not None]
    if not found:
        raise ValueError(f"verify: no cell of the table is stored in {store.output}; run it first")
    # Anew at every call, and whatever the seeds: over many nights all cells are seen.
    drawn = random.SystemRandom().sample(found, min(count, len(found)))
    results = []
    for number, (pack, record) in enumerate(drawn, start=1):
        title = record.spec.title
        print(f"verify {number}/{len(drawn)}: {title}", file=sys.stderr, flush=True)
        results.append(_verified(pack, record, loader, options))
        if results[-1].differences:
            tqdm.write(f"differs: {title}: {results[-1].differences[0]}", file=sys.stderr)
    return results


def _verified(pack: Pack, record: RunRecord, loader: InputLoader, options: RunOptions) -> Verified:
    # Here, because it loads torch.
    from ..run.cell import release_memory, run_pack

    try:
        cells = [(_as_run(spec, record), loader.load(spec)) for spec in pack]
        wanted = _as_run(record.spec, record)
        (again,) = run_pack(cells, [wanted], lambda text: None, options)
        differences = list(_differences("", _results(record), _results(again)))
        return Verified(record, differences, list(_differences("", _maker(record), _maker(again))))
    # Whatever it is, it has not given the stored result.
    except Exception as error:
        failure = f"{type(error).__name__}: {first_line(error)}"
    release_memory()
    return Verified(record, [failure], [])


def _as_run(spec: RunSpec, record: RunRecord) -> RunSpec:
    """The cell in the micro-batches that --auto-batch may have come to."""
    accumulation = record.training.get("accumulation")
    if spec.train is None or accumulation is None:
        return spec
    train = dataclasses.replace(spec.train, accumulation=accumulation)
    return dataclasses.replace(spec, train=train)


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
