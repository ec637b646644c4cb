"""Reading a TOML file into typed tables; what is wrong is said with file, table and key."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tasks.names import choose

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: More bytes than any file that a person writes.
_LARGEST_FILE = 2**20


class FileError(ValueError):
    """What is wrong with a file: one line for each mistake."""


class Table(BaseModel):
    """A table of a TOML file: unknown keys and values of another type are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                choose("key", key, cls.model_fields)
        return values


AnyTable = TypeVar("AnyTable", bound=Table)


def read_toml(path: Path, kind: type[AnyTable]) -> tuple[AnyTable, str]:
    """A file's content, checked, and the SHA-256 of its bytes in hex.

    Raises:
        FileError: The file cannot be read, is not TOML, or has mistakes; all are named.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise FileError(f"{path}: more than {_LARGEST_FILE:,} bytes")
        data = path.read_bytes()
        values = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FileError(f"{path}: not TOML: {error or 'nested too deeply'}") from error
    try:
        return kind.model_validate(values), hashlib.sha256(data).hexdigest()
    except ValidationError as error:
        lines = (f"{path}: {_mistake(values, each)}" for each in error.errors())
        raise FileError("\n".join(lines)) from error


def place(keys: Sequence[str | int]) -> str:
    """Where a value stands, "[table.table] key", with the number of a list's entry from 1.

    Args:
        keys: Its way from the top of the file; an entry of a list is a whole number from 0.
    """
    tables, key = [], ""
    for part in keys:
        if isinstance(part, int):
            key += f", entry {part + 1}"
        else:
            if key:
                tables.append(key.replace(", entry ", " "))
            key = part
    return " ".join(filter(None, (f"[{'.'.join(tables)}]" if tables else "", key)))


def _mistake(values: Any, error: Any) -> str:
    keys: Sequence[str | int] = error["loc"]
    # A validator's own message, which says what is allowed.
    own = error.get("ctx", {}).get("error")
    if own is not None:
        return ": ".join(filter(None, (_table_or_place(values, keys), str(own))))
    if error["type"] == "missing":
        return f"{place(keys)}: missing"
    problem = error["msg"].replace("Input should be", "expected")
    return f"{place(keys)}: is {_short(error['input'])}: {problem}"


def _table_or_place(values: Any, keys: Iterable[str | int]) -> str:
    """The place, in brackets as a whole where a table stands there."""
    keys = list(keys)
    found = values
    for key in keys:
        found = found[key]
    if isinstance(found, dict) and keys:
        return place([*keys, ""]).strip()
    return place(keys)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
