"""Cells that failed: what became of them and why, one file each, until they succeed. Torch-free."""

from __future__ import annotations

import dataclasses
import traceback
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..cells.spec import Fingerprints, RunSpec, cell_id
from ..messages import first_line, redacted
from .files import load_record, load_records, remove, save_record, write_atomically

FAILED, OOM = "failed", "OOM"


class OutOfMemory(RuntimeError):
    """A cell ran out of memory; says where, and in which batch."""


@dataclass(frozen=True)
class Failure:
    """The last failure of a cell.

    Attributes:
        spec: What was run.
        fingerprints: On which inputs.
        status: "failed" or "OOM".
        reason: One line.
        finished: When, in UTC.
    """

    spec: RunSpec
    fingerprints: Fingerprints
    status: str
    reason: str
    finished: str

    @property
    def id(self) -> str:
        return cell_id(self.spec, self.fingerprints)

    def __str__(self) -> str:
        return f"{self.status}: {self.spec.title}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id} | dataclasses.asdict(self) | {"spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Failure:
        """The inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: It is no such failure.
        """
        if data["status"] not in (FAILED, OOM):
            raise ValueError(f"status is {data['status']!r}: expected {FAILED} or {OOM}")
        for name in ("reason", "finished"):
            text = data[name]
            if not isinstance(text, str) or len(text.splitlines()) > 1:
                raise ValueError(f"{name} is no text of one line")
        values = {key: value for key, value in data.items() if key != "id"}
        values["spec"] = RunSpec.from_json(data["spec"])
        values["fingerprints"] = Fingerprints.from_json(data["fingerprints"])
        return cls(**values)


class FailureStore:
    """The failures of one output directory.

    Args:
        output: The directory; they lie in ``<output>/failures/<cell id>.json``, and what Python
            says of each in ``<output>/logs/<cell id>.log``.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.directory = output / "failures"

    def load(self, record_id: str) -> Failure | None:
        """The failure of a cell; None without one, or if the file is damaged.

        Raises:
            ValueError: See `files.load_record`; the file is named.
        """
        return load_record(self._path(record_id), Failure.from_json)

    def all(self) -> list[Failure]:
        """All failures, oldest first.

        Raises:
            ValueError: See `files.load_record`; the file is named.
        """
        failures = load_records(self.directory, Failure.from_json)
        return sorted(failures, key=lambda failure: failure.finished)

    def save(self, spec: RunSpec, fingerprints: Fingerprints, error: Exception) -> Failure:
        """Write down why a cell failed, and the traceback into its log."""
        record_id = cell_id(spec, fingerprints)
        log = self.output / "logs" / f"{record_id}.log"
        write_atomically(log, redacted("".join(traceback.format_exception(error))))
        said = first_line(error) or "no message"
        kind = "" if isinstance(error, OutOfMemory) else f"{type(error).__name__}: "
        failure = Failure(
            spec=spec,
            fingerprints=fingerprints,
            status=OOM if isinstance(error, OutOfMemory) else FAILED,
            reason=f"{kind}{said} (traceback in logs/{log.name})",
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        save_record(self._path(record_id), failure.to_json())
        return failure

    def delete(self, record_id: str) -> None:
        """Forget a failure: its cell has a record now."""
        remove(self._path(record_id))

    def _path(self, record_id: str) -> Path:
        return self.directory / f"{record_id}.json"
