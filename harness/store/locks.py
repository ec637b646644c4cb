"""Which process runs what: locks under the output directory that end with their process.

They are the kernel's locks (flock): when a process is killed, or its machine switched off, its
locks are free at once, and only their empty files stay. On NFS they hold for all machines, unless
it is mounted with ``nolock`` or ``local_lock``: then two machines may run the same cell, and the
later record replaces an equal one. On a file system without such locks, the library `filelock` uses
files with the process's number in them.
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
        path: Its file, ``<output>/locks/<what>.lock``.
        wait: Whether to wait for another process that has the lock, so that the value is true.

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
