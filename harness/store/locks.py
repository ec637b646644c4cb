"""Which process runs what: locks under the output directory that die with their process.

They are the kernel's (flock), so one left by a killed process, or by a machine that was switched
off, is free at once; the empty files stay. NFS passes them on to its server and so holds for all
machines, unless it is mounted with ``nolock`` or ``local_lock``: then two machines may run the same
cell, and the later record replaces an equal one. A file system without any falls back to files with
the process's number in them (see the library `filelock`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .files import OutputError


@contextmanager
def taken(path: Path, wait: bool = False) -> Iterator[bool]:
    """Take a lock while the block lasts; the value is whether this process has it.

    Args:
        path: Of its file, ``<output>/locks/<what>.lock``.
        wait: Until another process that has it is done, so that the value is true.

    Raises:
        OutputError: The file cannot be made.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=wait, poll_interval=1.0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise OutputError(path, error) from error
    try:
        yield True
    finally:
        lock.release()
