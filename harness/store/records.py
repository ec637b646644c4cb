"""What is kept of cells: a record of each that is finished, a failure of each that is not.

Every one is a JSON file of its own, named by the content hash of its cell, with a checksum (see
`files`), and checked against its type when it is read. Nothing else holds results: delete a record
and only its cell is run again. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import operator
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import AfterValidator, Field, GetPydanticSchema, PlainValidator
from typing_extensions import NotRequired, TypedDict

from ..cells.spec import Fingerprints, RunSpec, cell_id
from ..messages import first_line, redacted
from .files import load_record, load_records, parser, remove, save_record, write_atomically

FAILED, OOM = "failed", "OOM"

Count = Annotated[int, Field(strict=True, ge=0)]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


def _is_one_line(text: str) -> str:
    if len(text.splitlines()) > 1:
        raise ValueError("expected a text of one line")
    return text


Line = Annotated[str, AfterValidator(_is_one_line)]


def parsed_by(parse: Callable[[dict[str, Any]], Any]) -> PlainValidator:
    """Has a type's own `from_json` read a field; whatever that raises is the field's error."""

    def validate(data: Any) -> Any:
        try:
            return parse(data)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    return PlainValidator(validate)


def checked_as(schema: Any) -> GetPydanticSchema:
    """Has a plain dictionary checked as a `TypedDict`."""
    return GetPydanticSchema(lambda _, handler: handler(schema))


class Provenance(TypedDict):
    """Where a number comes from: what `harness.run.provenance.collect` returns."""

    finished: Line
    commit: str
    python: str
    versions: dict[str, str]
    hardware: dict[str, Any]


class _CellProvenance(Provenance):
    """Where a cell's numbers come from; "skipped" counts unusable rows by "<task> <split>"."""

    data: str
    weights: str
    skipped: NotRequired[dict[str, Count]]


class _CountsAtStep(TypedDict):
    step: Count
    counts: list[list[Count]]


class _Training(TypedDict, total=False):
    """The facts of a training; see `RunRecord.training`."""

    rows: Count
    truncated: Count
    tokens: Count
    steps: Count
    accumulation: Count
    first_loss: float
    last_loss: float
    expert_load: list[_CountsAtStep]


@dataclass(frozen=True)
class TaskResult:
    """Per-example outcome of one task; all lists are in the order of the scored rows.

    Attributes:
        ids: Row ids.
        answers: Index of the right option.
        predictions: Index of the chosen option.
        predictions_norm: Index of the option with the highest log-likelihood per character;
            None in label scoring, which has no such choice.
        num_options: Number of options of each row.
        truncated: Number of rows whose prompt was cut to the cutoff.
        rows: Hash of the scored rows' content; None in records from before there was one.
        expert_load: Per layer, number of tokens that went to each expert while the rows were
            scored; None where that was not counted.
        loss: Mean negative logarithm of the probability of the right answer, in nats; None where it
            was not kept.
    """

    ids: list[str]
    answers: list[Count]
    predictions: list[Count]
    predictions_norm: list[Count] | None
    num_options: Annotated[list[Annotated[int, Field(strict=True, ge=2)]], Field(min_length=1)]
    truncated: Count
    rows: str | None = None
    expert_load: list[list[Count]] | None = None
    loss: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None

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


def _rows_fit(task: TaskResult) -> TaskResult:
    """Refuse a task whose lists are not one value for each row."""
    count = len(task.num_options)
    if len(task.ids) != count:
        raise ValueError(f"{len(task.ids)} ids: expected {count}, one for each row")
    for name in ("answers", "predictions", "predictions_norm"):
        places = getattr(task, name)
        if places is None:
            continue
        if len(places) != count or not all(map(operator.lt, places, task.num_options)):
            raise ValueError(f"{name}: expected {count} places among the options of the rows")
    return task


@dataclass(frozen=True)
class RunRecord:
    """Everything known of one finished cell.

    Attributes:
        spec: What was run.
        fingerprints: Hashes of the inputs that it was run on.
        trainable_parameters: Number of adapter parameters, the router's included.
        base_parameters: Number of parameters of the frozen model.
        tasks: Task name -> its per-example outcome.
        training: Rows, steps, mean loss of the first and last tenth of the steps, truncated rows;
            where experts were counted "expert_load", a list of {"step", "counts"}, the counts as in
            `TaskResult` and since the step before; empty for the base.
        seconds: Wall time of loading, training and scoring.
        provenance: Commit, versions, hardware, time (see `harness.run.provenance`), labels of data
            and weights.
    """

    spec: Annotated[RunSpec, parsed_by(RunSpec.from_json)]
    fingerprints: Annotated[Fingerprints, parsed_by(Fingerprints.from_json)]
    trainable_parameters: Count
    base_parameters: Annotated[int, Field(strict=True, ge=1)]
    tasks: dict[str, Annotated[TaskResult, AfterValidator(_rows_fit)]]
    training: Annotated[dict[str, Any], checked_as(_Training)]
    seconds: dict[str, Seconds]
    provenance: Annotated[dict[str, Any], checked_as(_CellProvenance)]

    @property
    def id(self) -> str:
        """Content hash of the cell, 20 hex digits."""
        return cell_id(self.spec, self.fingerprints)

    @property
    def finished(self) -> str:
        """When it was finished, in UTC and ISO 8601."""
        return self.provenance["finished"]

    def to_json(self) -> dict[str, Any]:
        """The content of the record's file."""
        return {"id": self.id} | dataclasses.asdict(self) | {"spec": self.spec.to_json()}


def _tasks_fit(record: RunRecord) -> RunRecord:
    """Refuse a record that has not just the tasks that its cell is scored on."""
    if sorted(record.tasks) != sorted(record.spec.eval_tasks):
        raise ValueError(
            f"tasks are {sorted(record.tasks)}: expected {sorted(record.spec.eval_tasks)}"
        )
    return record


class OutOfMemory(RuntimeError):
    """A cell ran out of memory; the message says where, and in which batch."""


@dataclass(frozen=True)
class Failure:
    """The last failure of a cell that has no record since.

    Attributes:
        spec: What was run.
        fingerprints: Hashes of the inputs that it was run on.
        status: "failed", or "OOM" for out of memory.
        reason: What happened, in one line.
        finished: When it failed, in UTC and ISO 8601.
    """

    spec: Annotated[RunSpec, parsed_by(RunSpec.from_json)]
    fingerprints: Annotated[Fingerprints, parsed_by(Fingerprints.from_json)]
    status: Annotated[str, Field(pattern=f"^({FAILED}|{OOM})$")]
    reason: Line
    finished: Line

    @property
    def id(self) -> str:
        """Content hash of the cell, 20 hex digits."""
        return cell_id(self.spec, self.fingerprints)

    @property
    def diverged(self) -> bool:
        """Whether it failed because a loss or score was not finite."""
        return self.reason.startswith(FloatingPointError.__name__)

    def __str__(self) -> str:
        return f"{self.status}: {self.spec.title}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        """The content of the failure's file."""
        return {"id": self.id} | dataclasses.asdict(self) | {"spec": self.spec.to_json()}


class Kept(Protocol):
    """What a store keeps."""

    @property
    def id(self) -> str:
        """Content hash that names the file."""

    @property
    def finished(self) -> str:
        """When it was made, in UTC and ISO 8601."""

    def to_json(self) -> dict[str, Any]:
        """The content of the file: plain JSON types, "id" among them."""


AnyKept = TypeVar("AnyKept", bound=Kept)


class Store(Generic[AnyKept]):
    """What one output directory keeps of one kind, in ``<output>/<folder>/<id>.json``.

    Args:
        output: The output directory.
    """

    folder: ClassVar[str]
    indent: ClassVar[int | None] = None
    #: From the content of a file to what it holds; raises ValueError naming the field.
    parse: Callable[[dict[str, Any]], AnyKept]

    def __init__(self, output: Path) -> None:
        self.output = output
        self.directory = output / self.folder

    def path(self, record_id: str) -> Path:
        """The file of that id."""
        return self.directory / f"{record_id}.json"

    def load(self, record_id: str) -> AnyKept | None:
        """What is kept under an id; None without a file, or if it is damaged and was set aside.

        Raises:
            ValueError: See `files.load_record`; the file is named.
        """
        return load_record(self.path(record_id), self.parse)

    def all(self) -> list[AnyKept]:
        """All that is kept, oldest first, without damaged files, which are set aside.

        Raises:
            ValueError: See `files.load_record`; the file is named.
        """
        return sorted(load_records(self.directory, self.parse), key=lambda kept: kept.finished)

    def save(self, kept: AnyKept) -> Path:
        """Write a file so that it is there whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """
        path = self.path(kept.id)
        save_record(path, kept.to_json(), self.indent)
        return path


class RecordStore(Store[RunRecord]):
    """The records of finished cells."""

    folder = "records"
    parse = staticmethod(parser(Annotated[RunRecord, AfterValidator(_tasks_fit)]))


class FailureStore(Store[Failure]):
    """The failures of cells; what Python said of each lies in ``<output>/logs/<cell id>.log``."""

    folder = "failures"
    parse = staticmethod(parser(Failure))

    def note(self, spec: RunSpec, fingerprints: Fingerprints, error: Exception) -> Failure:
        """Write down why a cell failed, and the traceback into its log.

        Raises:
            OutputError: One of the two cannot be written.
        """
        log = self.output / "logs" / f"{cell_id(spec, fingerprints)}.log"
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
        self.save(failure)
        return failure

    def delete(self, record_id: str) -> None:
        """Forget a failure, because its cell has a record now."""
        remove(self.path(record_id))
