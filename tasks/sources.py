"""Where rows come from: the hub, a local directory, or the miniature that ships with the project.

All three give equal examples for equal rows, and the same kind of error: `DataError`, one line that
names file, row (from 1), column and what was expected there.
"""

from __future__ import annotations

import gzip
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.base import Example, Task
from tasks.fields import RowError, show

MINIATURE_DIR = Path(__file__).parent / "miniature" / "data"

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


class DataError(ValueError):
    """A data file is missing or broken, or the hub does not deliver."""


class Source(ABC):
    """A place that task splits are loaded from.

    Attributes:
        label: Its name in tables and records.
    """

    label: str

    @abstractmethod
    def unavailable(self, task: Task, split: str) -> str | None:
        """Returns in one line why the split cannot be had here, None if nothing is known against.

        Nothing is downloaded and no file's content is read to answer.
        """

    @abstractmethod
    def load(self, task: Task, split: str) -> list[Example]:
        """Returns all examples of the split, in the source's order.

        Raises:
            DataError: The split is not there, or a row of it cannot be used.
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

    def load(self, task: Task, split: str) -> list[Example]:
        problem = self.unavailable(task, split)
        if problem is not None:
            raise DataError(problem)
        (path,) = self._files(task, split)
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_json_lines(path)
        return _parse_rows(rows, task, split, str(path))

    def _files(self, task: Task, split: str) -> list[Path]:
        paths = [self.root / task.directory / f"{split}{suffix}" for suffix in _SUFFIXES]
        return [path for path in paths if path.is_file()]


class HubSource(Source):
    """Data sets of the Hugging Face hub, at the revisions that the tasks pin."""

    label = "hub"

    def unavailable(self, task: Task, split: str) -> str | None:
        return None

    def load(self, task: Task, split: str) -> list[Example]:
        hub = task.hub
        where = f"{hub.path}{f' ({hub.config})' if hub.config else ''} {split}"
        try:
            # Imported here because it takes seconds and only this source needs it.
            import datasets
            from huggingface_hub.utils.logging import set_verbosity_error

            # It logs every retry; what the retries come to is said once, below.
            set_verbosity_error()
            rows = datasets.load_dataset(hub.path, hub.config, revision=hub.revision, split=split)
        # Offline, gated, missing and broken data sets raise types of five libraries that have no
        # common base; every one of them means the same to the user.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
            raise DataError(
                f"{task.name}: the hub did not deliver {where}: {reason}; "
                f"use --data-dir DIR with DIR/{task.directory}/{split}.jsonl to load a local copy"
            ) from error
        return _parse_rows(rows, task, split, where)


def open_source(data_dir: Path | None = None, bundled: bool = False) -> Source:
    """Returns the source of all rows of a run.

    Args:
        data_dir: Root of a local copy of the data.
        bundled: Use the miniature data that ships with the project.

    Returns:
        The bundled miniature, the local directory or, with neither, the hub.

    Raises:
        DataError: `data_dir` is not a directory.
        ValueError: Both sources are asked for.
    """
    if data_dir is None:
        return LocalSource(MINIATURE_DIR, "bundled miniature") if bundled else HubSource()
    if bundled:
        raise ValueError(f"data_dir is {data_dir}: must not be given with the bundled data")
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such directory, expected the root of the data")
    return LocalSource(data_dir, f"local directory {data_dir.resolve().name}")


def _parse_rows(rows: Iterable[Any], task: Task, split: str, where: str) -> list[Example]:
    examples: list[Example] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            columns = ", ".join(task.columns)
            raise DataError(f"{where}, row {number}: got {show(row)}, expected columns {columns}")
        try:
            examples.append(task.parse(row, f"{split}-{number}"))
        except RowError as error:
            raise DataError(
                f"{where}, row {number}, column {error.column}: {error.problem}, "
                f"expected {task.columns[error.column]}"
            ) from error
    if not examples:
        raise DataError(f"{where}: no rows, expected at least one")
    return examples


def _read_json_lines(path: Path) -> Iterator[Any]:
    number = 1
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            # A binary file ends its lines at "\n" only; str.splitlines and text files would also
            # cut at the separators (U+2028, "\r") that questions contain.
            for line in file:
                yield json.loads(line.decode("utf-8"))
                number += 1
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, row {number}: not UTF-8 ({error.reason})") from error
    except RecursionError as error:
        raise DataError(f"{path}, row {number}: JSON nested too deeply") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, row {number}: not JSON ({error.msg} at column {error.colno}), "
            "expected one object a line"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}, row {number}: cannot be read ({error})") from error


def _read_parquet(path: Path) -> list[Any]:
    # Imported here because the JSON files need no pyarrow.
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise DataError(f"{path}: not a readable parquet file ({reason})") from error
