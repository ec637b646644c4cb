"""Ctrl-C and SIGTERM stop a run between two files, never within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal asks the run to stop.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class _State:
    """What the signal handler has to know.

    Attributes:
        finishing: Number of `finishing` blocks that are open, one within the other.
        pending: Signal that has arrived within them and is still to be raised; None without.
    """

    finishing = 0
    pending: int | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """While the block lasts, SIGINT and SIGTERM raise `Stopped`, unless they are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, _on_signal)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def finishing() -> Iterator[None]:
    """Have the block finish before a signal stops the run."""
    _State.finishing += 1
    try:
        yield
    finally:
        _State.finishing -= 1
        pending = _State.pending
        if pending is not None and not _State.finishing:
            _State.pending = None
            raise Stopped(pending)


def _on_signal(number: int, frame: Any) -> None:
    # A second signal stops at once: the file may be on a server that does not answer any more.
    if _State.finishing and _State.pending is None:
        _State.pending = number
    else:
        _State.pending = None
        raise Stopped(number)
