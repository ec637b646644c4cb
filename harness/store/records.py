"""Records of finished cells: one JSON file each, with a checksum, named by content hash.

Nothing else holds results: delete a record and only that cell is run again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cells.spec import Fingerprints, RunSpec, cell_id
from .files import load_record, load_records, remove, save_record
from .record_checks import check_record


@dataclass(frozen=True)
class TaskResult:
    """Per-example outcome of one task; all lists are in the order of the scored rows.

    Attributes:
        ids: Row ids.
        answers: Index of the right option.
        predictions: Index of the chosen option.
        predictions_norm: Index of the option with the highest log-likelihood per character;
            None in label scoring, which has no such choice.
        num_options: Options of each row.
        truncated: Rows whose prompt was cut to the cutoff.
        rows: Hash of the scored rows' content; None in records from before there was one.
        expert_load: Per layer, tokens that went to each expert while the rows were scored; None
            where that was not counted.
    """

    ids: list[str]
    answers: list[int]
    predictions: list[int]
    predictions_norm: list[int] | None
    num_options: list[int]
    truncated: int
    rows: str | None = None
    expert_load: list[list[int]] | None = None

    def chosen(self, metric: str) -> list[int]:
        """The predictions that "accuracy", "acc" or "acc_norm" counts.

        Raises:
            ValueError: Label scoring has no acc_norm.
        """
        chosen = self.predictions_norm if metric == "acc_norm" else self.predictions
        if chosen is None:
            raise ValueError("label scoring has no acc_norm")
        return chosen

    def correct(self, metric: str) -> list[bool]:
        """Whether each row was answered right, by that metric."""
        pairs = zip(self.chosen(metric), self.answers, strict=True)
        return [mine == right for mine, right in pairs]


@dataclass(frozen=True)
class RunRecord:
    """Everything known of one finished cell.

    Attributes:
        spec: What was run.
        fingerprints: On which inputs.
        trainable_parameters: Adapter parameters, the router's included.
        base_parameters: Parameters of the frozen model.
        tasks: Task name -> its per-example outcome.
        training: Rows, steps, mean loss of the first and last tenth of the steps, truncated rows;
            where experts were counted "expert_load", a list of {"step", "counts"}, the counts as in
            `TaskResult` and since the step before; empty for the base.
        seconds: Wall time of loading, training and scoring.
        provenance: Commit, versions, hardware, time (see provenance.py), data and weights.
    """

    spec: RunSpec
    fingerprints: Fingerprints
    trainable_parameters: int
    base_parameters: int
    tasks: dict[str, TaskResult]
    training: dict[str, Any]
    seconds: dict[str, float]
    provenance: dict[str, Any]

    @property
    def id(self) -> str:
        return cell_id(self.spec, self.fingerprints)

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id} | dataclasses.asdict(self) | {"spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRecord:
        """The inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: It is no such record.
        """
        check_record(data)
        values = {key: value for key, value in data.items() if key != "id"}
        values["spec"] = RunSpec.from_json(data["spec"])
        values["fingerprints"] = Fingerprints.from_json(data["fingerprints"])
        values["tasks"] = {name: TaskResult(**task) for name, task in data["tasks"].items()}
        return cls(**values)


class RecordStore:
    """The records of one output directory.

    Args:
        output: The directory; records lie in ``<output>/records/<id>.json``.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.directory = output / "records"

    def path(self, record_id: str) -> Path:
        return self.directory / f"{record_id}.json"

    def load(self, record_id: str) -> RunRecord | None:
        """The record of that id; None without one, or if it is damaged and has been set aside.

        Raises:
            ValueError: See `files.load_record`; the file is named.
        """
        return load_record(self.path(record_id), RunRecord.from_json)

    def all(self) -> list[RunRecord]:
        """All records, oldest first, without damaged ones, which are set aside.

        Raises:
            ValueError: See `files.load_record`; the file is named.
        """
        records = load_records(self.directory, RunRecord.from_json)
        return sorted(records, key=lambda record: record.provenance["finished"])

    def save(self, record: RunRecord) -> Path:
        """Write a record so that it is there whole or not at all."""
        path = self.path(record.id)
        save_record(path, record.to_json())
        return path

    def delete(self, record_id: str) -> None:
        """Remove a record, so that its cell is run again."""
        remove(self.path(record_id))
