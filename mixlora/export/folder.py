"""The directory that an export makes: complete, or not there at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from . import Source

#: Largest file of weights, as of the hub's own models.
FILE_SIZE = "5GB"

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Result:
    """What was written.

    Attributes:
        folder: the directory.
        files: the files with the weights, in order.
        num_bytes: bytes of these files.
        num_parameters: parameters of the model.
        modelfile: for GGUF the text of ollama's Modelfile, else None.
    """

    folder: Path
    files: list[Path]
    num_bytes: int
    num_parameters: int
    modelfile: str | None = None


def parse_size(size: str | int) -> int:
    """Bytes of "5GB", "800MB" or a whole number.

    Raises:
        ValueError: It is no positive size.
    """
    match = re.fullmatch(r"(\d{1,15})\s*([KMG]B)?", str(size).strip().upper())
    if match is None or not int(match[1]):
        raise ValueError(f"max_shard_size={size!r}: expected bytes, or a size such as '5GB'")
    return int(match[1]) * _UNITS[match[2] or ""]


@contextmanager
def new_folder(to: Path, num_bytes: int) -> Iterator[Path]:
    """A directory to write into, which gets its name when everything in it is on the disk.

    Until then it is ``.<name>.partial`` beside it. What a killed export has left there the next one
    removes.

    Args:
        to: The directory to make; it may not exist, or be empty.
        num_bytes: How much is going to be written.

    Raises:
        ValueError: There is such a directory, or another process is writing it.
        OSError: It cannot be written, or there is no room for it. Nothing is left.
    """
    to = Path(os.path.abspath(to))
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} exists: choose another place, or remove it")
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.partial")
    lock = FileLock(f"{partial}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(f"{to} is being written by another process") from error
    try:
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(to.parent).free
        if free < num_bytes:
            room = f"{free / 1e9:.1f} GB free: the model needs {num_bytes / 1e9:.1f} GB"
            raise OSError(f"{to.parent} has {room}")
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                _sync(file)
            _sync(partial)
            partial.rename(to)
            _sync(to.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def carry_over(files: list[Path], folder: Path) -> None:
    """Copy files as they are; templates keep the directory that they lie in."""
    for file in files:
        inner = folder / file.parent.name if file.parent.name.endswith("_templates") else folder
        inner.mkdir(exist_ok=True)
        shutil.copyfile(file, inner / file.name)


def card(source: Source, architecture: str, dtype: str, num_parameters: int, usage: str) -> str:
    """The README of the result: what it was made of, with what."""
    config = source.adapter_config
    kind = "MixDoRA" if config.use_dora else "MixLoRA"
    from .. import __version__

    others = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    is_hub_id = source.base_name.count("/") == 1 and not Path(source.base_name).exists()
    head = f"base_model: {source.base_name}\n" if is_hub_id else ""
    return f"""---
{head}tags:
- mixlora
- moe
---

# {architecture} made of a {kind} adapter

The {config.num_experts} experts of the adapter, {config.top_k} of them per token, were merged with
the base's feed-forward network, and the adapters of its attention with the attention. The result
computes what base and adapter compute together and needs no code of MixLoRA's.

| | |
|---|---|
| base | {source.base_name} ({source.base_config.model_type}) |
| adapter | {source.adapter_name} |
| rank, alpha | {config.r}, {config.lora_alpha:g} |
| parameters | {num_parameters:,} |
| data type | {dtype} |
| made with | mixlora-repro {__version__}, {others} |

{usage}"""


def _sync(path: Path) -> None:
    """Wait until a file, or a directory's list of files, is on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows has no handle of a directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
