"""Records of measurements: one JSON file each, named by content hash and the code's commit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from harness.store.files import parser
from harness.store.records import (
    FAILED,
    OOM,
    Line,
    Provenance,
    Store,
    checked_as,
    parsed_by,
)

from .spec import MeasureSpec, measurement_id

DONE = "done"


@dataclass(frozen=True)
class MeasureRecord:
    """Everything known of one measurement.

    Attributes:
        spec: What was measured.
        status: "done", "OOM" (the process ran out of memory) or "failed".
        reason: Why it is not done, in one line; "" if it is.
        reports: Per subject, in the spec's order, `harness.speed.profiling.Report.to_json()`: all
            counted seconds of every phase, and every memory source. Empty if it is not done.
        load_average: Load average of the machine over the minute before; None where the system
            does not tell.
        results_version: `harness.cells.spec.RESULTS_VERSION` of the code.
        provenance: Commit, versions, hardware, time (see `harness.run.provenance`).
    """

    spec: Annotated[MeasureSpec, parsed_by(MeasureSpec.from_json)]
    status: Annotated[str, Field(pattern=f"^({DONE}|{FAILED}|{OOM})$")]
    reason: Line
    reports: list[dict[str, Any]]
    load_average: float | None
    results_version: int
    provenance: Annotated[dict[str, Any], checked_as(Provenance)]

    @property
    def id(self) -> str:
        """Content hash of the measurement and of the code it was made with, 20 hex digits."""
        return measurement_id(self.spec, self.provenance["commit"], self.results_version)

    @property
    def finished(self) -> str:
        """When it was finished, in UTC and ISO 8601."""
        return self.provenance["finished"]

    def to_json(self) -> dict[str, Any]:
        """The content of the record's file."""
        return {"id": self.id} | dataclasses.asdict(self) | {"spec": self.spec.to_json()}


class MeasureStore(Store[MeasureRecord]):
    """The records of measurements."""

    folder = "measurements"
    indent = 1
    parse = staticmethod(parser(MeasureRecord))

    def made_with(self, spec: MeasureSpec, commit: str) -> MeasureRecord | None:
        """The record of a measurement made with the code of a commit; None without a whole one.

        Raises:
            ValueError: See `harness.store.files.load_record`; the file is named.
        """
        return self.load(measurement_id(spec, commit))

    def newest(self, wanted: Iterable[MeasureSpec]) -> dict[MeasureSpec, MeasureRecord]:
        """The newest record of each measurement that has one, whatever code it was made with.

        Raises:
            ValueError: See `harness.store.files.load_record`; the file is named.
        """
        found = self.all()
        newest: dict[MeasureSpec, MeasureRecord] = {}
        for spec in wanted:
            records = [record for record in found if record.spec.matches(spec)]
            if records:
                newest[spec] = max(records, key=lambda record: record.finished)
        return newest
