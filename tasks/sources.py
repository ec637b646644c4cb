"""Where rows come from: the hub, a local directory, or the miniature that ships with the project.

All three give equal examples for equal rows. They also raise the same error, `DataError`, whose
message is one line with the file, the number of the row (counted from 1), the column and what was
expected there. A row that cannot be used is an error unless the caller asks to have such rows left
out. A file that cannot be read to its end is always an error, because nobody knows what is missing.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.base import Example, Task
from tasks.fields import RowError
from tasks.messages import first_line, short_repr

MINIATURE_DIR = Path(__file__).parent / "miniature" / "data"

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class DataError(ValueError):
    """A data file is missing or broken, or the hub does not deliver."""


class Source(ABC):
    """A place that the splits of tasks are loaded from.

    Attributes:
        label: name of the source in tables and records.
    """

    label: str

    @abstractmethod
    def unavailable(self, task: Task, split: str) -> str | None:
        """Returns, in one line, why a split cannot be loaded; None if no reason is known.

        The check downloads nothing and reads no file's content.
        """

    @abstractmethod
    def load(
        self, task: Task, split: str, bad_rows: list[DataError] | None = None
    ) -> list[Example]:
        """Returns all examples of the split, in the source's order.

        Args:
            task: the data set.
            split: name of the split.
            bad_rows: list that gets an error for each row that cannot be used, and such rows are
                left out; with None, the first of them is raised.

        Raises:
            DataError: The split is missing or cannot be read, or a row of it cannot be used. With
                `bad_rows`, unusable rows raise only where no row is left.
        """


class LocalSource(Source):
    """Files `<root>/<task directory>/<split>.jsonl`, `.jsonl.gz` or `.parquet`."""

    def __init__(self, root: Path, label: str) -> None:
        self.root = root
        self.label = label

    def unavailable(self, task: Task, split: str) -> str | None:
        stem = self.root / task.directory / split
        found = self._files(task, split)
        if len(found) == 1:
            return None
        if found:
            names = " and ".join(path.name for path in found)
            return f"{task.name}: {stem.parent} has {names}, expected one of them only"
        return f"{task.name}: no {split} split, expected {stem}.jsonl, .jsonl.gz or .parquet"

    def load(
        self, task: Task, split: str, bad_rows: list[DataError] | None = None
    ) -> list[Example]:
        problem = self.unavailable(task, split)
        if problem is not None:
            raise DataError(problem)
        (path,) = self._files(task, split)
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)
        return _parse_rows(rows, task, split, str(path), bad_rows)

    def _files(self, task: Task, split: str) -> list[Path]:
        paths = [self.root / task.directory / f"{split}{suffix}" for suffix in _SUFFIXES]
        # os.path's answer to a path that no file can have is no; pathlib's is an exception.
        return [path for path in paths if os.path.isfile(path)]


class HubSource(Source):
    """Data sets of the Hugging Face hub, at the revisions that the tasks name."""

    label = "hub"

    def unavailable(self, task: Task, split: str) -> str | None:
        return None

    def load(
        self, task: Task, split: str, bad_rows: list[DataError] | None = None
    ) -> list[Example]:
        hub = task.hub
        where = f"{hub.path}{f' ({hub.config})' if hub.config else ''} {split}"
        try:
            # Imported here because it takes seconds and only this source needs it.
            import datasets
            from huggingface_hub.utils.logging import set_verbosity_error

            # The library logs each of its retries. If they all fail, the error below says so once.
            set_verbosity_error()
            rows = datasets.load_dataset(hub.path, hub.config, revision=hub.revision, split=split)
        # A data set that is gated, missing or broken, and a hub that cannot be reached, raise
        # exceptions of five libraries without a common base. To the user they mean the same.
        except Exception as error:
            raise DataError(
                f"{task.name}: the hub did not deliver {where}: {first_line(error)}; "
                f"use --data-dir DIR with DIR/{task.directory}/{split}.jsonl to load a local copy"
            ) from error
        return _parse_rows(rows, task, split, where, bad_rows)


def open_source(data_dir: Path | None = None, bundled: bool = False) -> Source:
    """Returns the source that a run loads all its rows from.

    Args:
        data_dir: root of a local copy of the data.
        bundled: whether to use the miniature that ships with the project.

    Returns:
        The local directory, the miniature or, if neither is asked for, the hub.

    Raises:
        DataError: `data_dir` is not a directory.
        ValueError: Both a local directory and the miniature are asked for.
    """
    if data_dir is None:
        return LocalSource(MINIATURE_DIR, "bundled miniature") if bundled else HubSource()
    if bundled:
        raise ValueError(f"data_dir is {data_dir}: must not be given with the bundled data")
    if not os.path.isdir(data_dir):
        raise DataError(f"{data_dir}: no such directory, expected the root of the data")
    # The name of a directory need not be UTF-8, but tables and records are.
    name = data_dir.resolve().name.encode("utf-8", "backslashreplace").decode("utf-8")
    return LocalSource(data_dir, f"local directory {name}")


class _BadLine(ValueError):
    """A line of a file holds no row."""


def _parse_rows(
    rows: Iterable[Any], task: Task, split: str, where: str, bad_rows: list[DataError] | None
) -> list[Example]:
    """Returns the examples of rows, each a dict or the line of JSON (bytes) that holds one."""
    examples: list[Example] = []
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        try:
            example = _parse_row(row, task, f"{split}-{number}")
            if example.id in numbers:
                problem = f"got {short_repr(example.id)}, which row {numbers[example.id]} has"
                raise RowError("id", problem)
        except (RowError, _BadLine) as error:
            problem = f"{where}, row {number}{_explained(error, task)}"
            if bad_rows is None:
                raise DataError(problem) from error
            bad_rows.append(DataError(problem))
        else:
            numbers[example.id] = number
            examples.append(example)
    if not examples:
        left_out = f"; left out: {bad_rows[0]}" if bad_rows else ""
        raise DataError(f"{where}: no rows, expected at least one{left_out}")
    return examples


def _explained(error: RowError | _BadLine, task: Task) -> str:
    """Returns the part of a message that follows the row's number."""
    if isinstance(error, RowError):
        return f", column {error.column}: {error.problem}, expected {task.columns[error.column]}"
    return f": {error}"


def _parse_row(row: Any, task: Task, default_id: str) -> Example:
    if isinstance(row, bytes):
        row = _parse_line(row)
    if not isinstance(row, dict):
        raise _BadLine(f"got {short_repr(row)}, expected columns {', '.join(task.columns)}")
    return task.parse(row, default_id)


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(
            line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise _BadLine(f"not UTF-8 ({error.reason})") from error
    except RecursionError as error:
        raise _BadLine("JSON nested too deeply") from error
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at column {error.colno}"
        raise _BadLine(f"not JSON ({problem}), expected one object a line") from error
    # Numbers of thousands of digits raise it, and so do the two hooks.
    except ValueError as error:
        raise _BadLine(f"not JSON that can be used ({error})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object as a dict; a name that it has twice would hide a value: refused."""
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{short_repr(twice)} is there twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _read_lines(path: Path) -> Iterator[bytes]:
    number = 1
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # A file opened as bytes ends its lines at "\n" only. str.splitlines and text files also
            # end them at separators that questions contain (U+2028, "\r").
            for line in file:
                yield line
                number += 1
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}, row {number}: cannot be read ({error})") from error


def _read_parquet(path: Path) -> list[Any]:
    # Imported here because JSON files do not need it.
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pylist()
    # A damaged file can also hold text that is not UTF-8, or dates that do not exist.
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({first_line(error)})") from error
