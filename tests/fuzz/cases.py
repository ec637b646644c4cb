"""How many cases there are of a kind, how one of them is judged, and what became of all."""

from __future__ import annotations

import contextlib
import io
import signal
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings

#: Whether `--hypothesis-profile torture` was given.
TORTURE = settings.get_current_profile_name() == "torture"

#: Kind -> how its cases ended, "result" or "refusal" -> how many.
ENDED: dict[str, Counter[str]] = defaultdict(Counter)

# A case that takes this long hangs, however busy the machine.
_SECONDS = 120


def cases(quick: int, torture: int) -> settings:
    """Hypothesis's settings for that many cases."""
    return settings(
        settings.default,
        max_examples=torture if TORTURE else quick,
        derandomize=not TORTURE,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Attributes:
        result: What came out; None if it was refused.
        refusal: The message, "" if it was not.
    """

    result: Any
    refusal: str


def run(
    kind: str,
    action: Callable[[], Any],
    refusals: tuple[type[Exception], ...] = (ValueError,),
    names: Sequence[str] = (),
) -> Ended:
    """Run one case: any exception but a refusal fails it, and so does a refusal that is unclear.

    Args:
        kind: kind of input that is counted.
        action: What is done with the input.
        refusals: The documented types.
        names: What every refusal must name, as the file.
    """
    with _no_hang():
        try:
            ended = Ended(action(), "")
        except refusals as error:
            ended = Ended(None, str(error))
            check_line(ended.refusal, names)
    ENDED[kind]["refusal" if ended.refusal else "result"] += 1
    return ended


def run_command(kind: str, main: Callable[[list[str]], int], arguments: Sequence[str]) -> Ended:
    """Run a command line in this process: status 0, or 2 with one line on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with _no_hang(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: Any = main(list(arguments))
        except SystemExit as stop:  # argparse's, for --help
            status = stop.code
    if status == 0:
        ENDED[kind]["result"] += 1
        return Ended(out.getvalue(), "")
    assert status == 2, (status, err.getvalue())
    assert out.getvalue() == ""
    check_line(err.getvalue().removesuffix("\n"), ())
    ENDED[kind]["refusal"] += 1
    return Ended(None, err.getvalue())


def check_line(message: str, names: Sequence[str]) -> None:
    """A refusal is one line, not too long, and names what it is about."""
    assert len(message.splitlines()) == 1, message[:500]
    assert len(message) < 5_000, message[:500]
    assert "Traceback" not in message
    for name in names:
        assert name in message, (name, message)


@contextlib.contextmanager
def _no_hang() -> Iterator[None]:
    def stop(number: int, frame: types.FrameType | None) -> None:
        raise AssertionError(f"no end after {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def summary() -> list[str]:
    """A line for each kind of input and one for all: cases, results, refusals."""
    total: Counter[str] = sum(ENDED.values(), Counter())
    lines = [
        f"{kind:<14}{ends.total():>7,} cases: {ends['result']:>6,} ended in a result, "
        f"{ends['refusal']:>6,} in a refusal"
        for kind, ends in [*sorted(ENDED.items()), ("in total", total)]
    ]
    return lines if ENDED else []
