"""Files that hold results: written whole or not at all, and with a checksum that is compared.

A record's file is one JSON object: its content, and beside it under "checksum" the SHA-256 of that
content in canonical form (sorted keys, no spaces). A file that was cut or edited is set aside as
``<name>.damaged`` and never read as a result.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import reprlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from ..messages import short
from .stopping import finishing

logger = logging.getLogger(__name__)


class Record(Protocol):
    """What a file can hold."""

    @property
    def id(self) -> str:
        """Name of the file, computed from the content."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


class OutputError(OSError):
    """A file of the output directory cannot be written: one line that says which and why."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"cannot write {path}: {error.strerror or error}")
        self._of = (path, error)

    def __reduce__(self) -> tuple[type[OutputError], tuple[Path, OSError]]:
        """How it is pickled, to be raised again where a cluster's node is waited for."""
        return type(self), self._of


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the path's place at the end, or never if something is raised.

    Raises:
        OutputError: The disk is full, or the folder read-only.
    """
    name = None
    try:
        with finishing():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
            name = None
    except OSError as error:
        raise OutputError(path, error) from error
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file (text in UTF-8) by way of a temporary one: no reader sees half of it.

    Raises:
        OutputError: The disk is full, or the folder read-only.
    """
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def check_writable(output: Path) -> None:
    """Write a file of 4 KiB to the output directory and to its folders of results, and remove it.

    Raises:
        ValueError: A folder cannot be written, or is a link to a place outside, as in an output
            directory that somebody else has prepared. Nothing should be run then.
    """
    # Links to files do no harm, because what is written replaces the link.
    for folder in filter(Path.is_dir, output.glob("*")):
        if not folder.resolve().is_relative_to(output.resolve()):
            raise ValueError(
                f"{folder} is a link out of the output directory; replace it by a folder, or "
                "choose another directory with --output DIR"
            )
    folders = [output / name for name in ("records", "measurements", "tables")]
    for folder in (output, *filter(Path.is_dir, folders)):
        probe = folder / f"probe-{os.getpid()}"
        try:
            write_atomically(probe, b"." * 4096)
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"{error}; choose another folder with --output DIR") from error


def remove(path: Path) -> None:
    """Remove a file of the output directory if it is there.

    Raises:
        OutputError: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(path, error) from error


def remove_remains(path: Path) -> None:
    """Remove what killed writers of this file have left; nobody may be writing it now."""
    for file in path.parent.glob(f".{glob.escape(path.name)}.*"):
        file.unlink(missing_ok=True)


def parser(schema: Any) -> Callable[[dict[str, Any]], Any]:
    """A function from a file's content, without the checksum, to a record of that type.

    It raises a ValueError of one line that names the first field that is missing, unknown or has a
    value that is not allowed.

    Args:
        schema: A dataclass whose annotations say what its fields may be, as pydantic reads them.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(schema)

    def parse(content: dict[str, Any]) -> Any:
        values = {name: value for name, value in content.items() if name != "id"}
        try:
            return adapter.validate_python(values, extra="forbid")
        except ValidationError as error:
            raise ValueError(_first_problem(error)) from error

    return parse


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "value_error"):
        return f"{where}: {message}" if where else message
    return f"{where} is {reprlib.repr(first['input'])}: {message}"


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def save_record(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    """Write a record's content and its checksum.

    Args:
        path: Named by the record's id.
        content: Plain JSON types, "id" among them.
        indent: Number of spaces, or None for one line, as for `json.dumps`.
    """
    # The checksum is of what will be read, where tuples are lists and keys are text.
    content = json.loads(json.dumps(content))
    remove_remains(path)
    text = json.dumps({"checksum": checksum(content)} | content, indent=indent)
    write_atomically(path, text + "\n")


def load_record(path: Path, parse: Callable[[dict[str, Any]], AnyRecord]) -> AnyRecord | None:
    """The record in a file; None if there is no file, or a damaged one, which is set aside.

    Args:
        path: Named by the record's id.
        parse: From content without checksum to the record; raises ValueError if it cannot.

    Raises:
        ValueError: The file cannot be read, has no checksum, or was written by another version of
            the code. It may be worth keeping, so its owner has to decide about it.
    """
    try:
        content = _content(path)
        if content is None:
            return None
        if "checksum" not in content:
            raise ValueError(
                f"{path}: has no checksum, so that nobody can tell whether it is as it was "
                "written; delete it to have it made again"
            )
        if content.pop("checksum") != _checksum_of_file(content):
            raise _Damaged("content does not match its checksum")
        try:
            record = parse(content)
            record_id = record.id
        except ValueError as error:
            why = short(str(error))
            raise ValueError(
                f"{path}: not a record of this version ({why}); delete it to have it made again"
            ) from error
        if record_id != path.stem:
            raise _Damaged("content does not match its name")
    except _Damaged as damage:
        _set_aside(path, str(damage))
        return None
    return record


def load_records(directory: Path, parse: Callable[[dict[str, Any]], AnyRecord]) -> list[AnyRecord]:
    """All records of a directory, in the order of their names, without damaged ones.

    Args:
        directory: Folder of the files; there are no records if it does not exist.
        parse: See `load_record`.

    Raises:
        ValueError: See `load_record`; the file is named.
    """
    found = (load_record(path, parse) for path in sorted(directory.glob("*.json")))
    return [record for record in found if record is not None]


class _Damaged(Exception):
    """A file is not as it was written; the message says how that shows."""


def _content(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _Damaged("cut, or not JSON") from error
    if not isinstance(content, dict) or content.get("id") != path.stem:
        raise _Damaged("content does not match its name")
    return content


def _checksum_of_file(content: dict[str, Any]) -> str:
    try:
        return checksum(content)
    except RecursionError as error:
        raise _Damaged("nested too deeply") from error


def _set_aside(path: Path, why: str) -> None:
    target = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, target)
        end = f"set aside as {target.name}"
    except OSError as error:
        # Another process was faster, or nothing can be changed here.
        end = f"not used ({error.strerror})"
    logger.warning("warning: %s: %s; %s", path, why, end)
