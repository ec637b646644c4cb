"""Signals stop a run, but never within a file that is being written."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.store.files import write_atomically
from harness.store.stopping import Stopped, finishing, stoppable

Kill = Callable[[signal.Signals], None]


@pytest.fixture(autouse=True)
def _sigint() -> Iterator[None]:
    """Ctrl-C arrives: a shell starts what runs in its background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def kill(fault: Callable[[str], None]) -> Kill:
    """Sends this process a signal."""

    def kill(number: signal.Signals) -> None:
        fault(number.name)
        os.kill(os.getpid(), number)

    return kill


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_handlers_come_back(number: signal.Signals, kill: Kill) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, stoppable():
        kill(number)
        raise AssertionError("went on")
    assert stopped.value.signal == number
    assert signal.getsignal(number) == before
    # What saves itself from failures must not take it for one.
    assert not isinstance(stopped.value, Exception)


def test_a_file_is_finished_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: Kill
) -> None:
    fsync = os.fsync

    def interrupted(handle: int) -> None:
        kill(signal.SIGTERM)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(Stopped), stoppable():
        write_atomically(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_fails_while_it_is_finished_stops_too(kill: Kill) -> None:
    with pytest.raises(Stopped), stoppable(), finishing():
        kill(signal.SIGINT)
        raise ValueError("an own failure")


def test_who_asks_twice_does_not_wait(kill: Kill) -> None:
    reached = []
    with pytest.raises(Stopped), stoppable(), finishing():
        kill(signal.SIGINT)
        reached.append(1)
        kill(signal.SIGINT)
        reached.append(2)
    assert reached == [1]
    with stoppable(), finishing():
        pass  # nothing is left of it


def test_an_ignored_signal_stays_ignored(kill: Kill) -> None:
    """As of a job in a shell's background, or under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            kill(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
