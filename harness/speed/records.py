"""Records of measurements: one JSON file each, named by content hash and the code's commit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.store.files import load_record, load_records, save_record

from .spec import MeasureSpec, measurement_id

DONE = "done"


@dataclass(frozen=True)
class MeasureRecord:
    """Everything known of one measurement.

    Attributes:
        spec: What was measured.
        status: "done", "OOM" (the process ran out of memory) or "failed".
        reason: Why it is not done, one line; "" if it is.
        reports: Per subject, in the spec's order, `harness.speed.profiling.Report.to_json()`: all
            counted seconds of every phase, and every memory source. Empty if it is not done.
        load_average: Of the machine over the minute before; None where the system does not tell.
        results_version: `harness.cells.spec.RESULTS_VERSION` of the code.
        provenance: Commit, versions, hardware, time (see harness/run/provenance.py).
    """

    spec: MeasureSpec
    status: str
    reason: str
    reports: list[dict[str, Any]]
    load_average: float | None
    results_version: int
    provenance: dict[str, Any]

    @property
    def id(self) -> str:
        return measurement_id(self.spec, self.provenance["commit"], self.results_version)

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id} | dataclasses.asdict(self) | {"spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MeasureRecord:
        values = {key: value for key, value in data.items() if key != "id"}
        return cls(**values | {"spec": MeasureSpec.from_json(data["spec"])})


class MeasureStore:
    """The measurements of one output directory.

    Args:
        output: The directory; records lie in ``<output>/measurements/<id>.json``.
    """

    def __init__(self, output: Path) -> None:
        self.directory = output / "measurements"

    def save(self, record: MeasureRecord) -> None:
        """Write a record so that it is there whole or not at all."""
        save_record(self.directory / f"{record.id}.json", record.to_json(), indent=1)

    def load(self, spec: MeasureSpec, commit: str) -> MeasureRecord | None:
        """The record of a measurement made with the code of a commit; None without a whole one.

        Raises:
            ValueError: See `harness.store.files.load_record`; the file is named.
        """
        path = self.directory / f"{measurement_id(spec, commit)}.json"
        return load_record(path, MeasureRecord.from_json)

    def newest(self, wanted: Iterable[MeasureSpec]) -> dict[MeasureSpec, MeasureRecord]:
        """The newest record of each measurement that has one, whatever code it was made with.

        Raises:
            ValueError: See `harness.store.files.load_record`; the file is named.
        """
        found = load_records(self.directory, MeasureRecord.from_json)
        newest: dict[MeasureSpec, MeasureRecord] = {}
        for spec in wanted:
            records = [record for record in found if record.spec.matches(spec)]
            if records:
                newest[spec] = max(records, key=lambda record: record.provenance["finished"])
        return newest
