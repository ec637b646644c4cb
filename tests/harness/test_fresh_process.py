"""Calls in a fresh process: what goes in, what comes back, and every way it can fail."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.speed.profiling import OutOfMemory, call_in_fresh_process
from harness.speed.profiling.fresh_process import answer

pytestmark = pytest.mark.long

GIB = 1 << 30


def describe(argument: Any) -> dict[str, Any]:
    print("a print does no harm")
    print("nor does this", file=sys.stderr)
    found = {"argument": argument, "pid": os.getpid(), "folder": os.getcwd(), "path": sys.path}
    return found | {
        "variables": [os.environ.get(f"FRESH_PROCESS_{name}") for name in ("TEST", "OTHER")]
    }


def allocate(size: int) -> None:
    try:
        torch.empty(1 << 20, dtype=torch.uint8)
    except RuntimeError as error:
        raise ValueError("the limit leaves nothing to allocate") from error
    # Address space alone: nothing is written to it.
    torch.empty(size, dtype=torch.uint8)


def die(number: int) -> None:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)


def fail(kind: str) -> None:
    """Fails in the way called kind."""
    if kind == "torch":
        torch.empty(1 << 50, dtype=torch.uint8)
    if kind == "python":
        bytearray(1 << 60)
    if kind == "mmap":
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if kind == "cuda":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    if kind == "c++":
        raise RuntimeError("std::bad_alloc")
    if kind == "nested":
        raise OutOfMemory("of a process within")
    if kind == "file":
        raise FileNotFoundError(errno.ENOENT, "No such file\nor directory")
    raise ValueError("wrong memory")


def test_the_process_is_new_and_stands_where_this_one_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "extra"))
    monkeypatch.setenv("FRESH_PROCESS_TEST", "yes")
    argument = {"text": "ä 'quoted' \"twice\"", "numbers": [1, 2.5, None, True]}
    environment = {"FRESH_PROCESS_OTHER": "own"}
    found = call_in_fresh_process(f"{__name__}:describe", argument, environment=environment)
    assert found["argument"] == argument
    assert found["pid"] != os.getpid()
    assert found["folder"] == str(tmp_path)
    assert found["path"] == sys.path
    assert found["variables"] == ["yes", "own"]
    assert "FRESH_PROCESS_OTHER" not in os.environ
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS holds on Linux")
def test_a_memory_limit_is_kept() -> None:
    with pytest.raises(OutOfMemory, match=r"allocate: RuntimeError: .*can't allocate memory"):
        call_in_fresh_process(f"{__name__}:allocate", 4 * GIB, memory_limit_bytes=4 * GIB)


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (signal.SIGKILL, OutOfMemory, "killed, as the kernel does when memory runs out"),
        (signal.SIGTERM, RuntimeError, "exit status -15 without a result; last words"),
    ],
)
def test_a_process_that_dies(number: int, kind: type[Exception], message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        call_in_fresh_process(f"{__name__}:die", int(number))
    assert caught.type is kind


def test_an_exception_comes_back_on_one_line() -> None:
    with pytest.raises(
        RuntimeError, match=r"fail: FileNotFoundError: .* No such file or directory"
    ):
        call_in_fresh_process(f"{__name__}:fail", "file")


def test_a_process_that_takes_too_long() -> None:
    with pytest.raises(TimeoutError, match=r"time:sleep: took longer than 0\.5 s"):
        call_in_fresh_process("time:sleep", 3600, timeout=0.5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(kind, True) for kind in ("torch", "python", "mmap", "cuda", "c++", "nested")]
    + [("file", False), ("value", False)],
)
def test_what_counts_as_out_of_memory(tmp_path: Path, kind: str, expected: bool) -> None:
    # The process's own code, called in this one: eight interpreters would show no more.
    request, outcome = tmp_path / "request", tmp_path / "outcome"
    call = {"target": f"{__name__}:fail", "argument": kind, "memory_limit_bytes": None}
    request.write_text(json.dumps(call))
    answer(str(request), str(outcome))
    assert json.loads(outcome.read_text())["out_of_memory"] is expected


@pytest.mark.parametrize("target", ["module", ":function", "module:", "module:not a name"])
def test_wrong_targets(target: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'package\.module:function'"):
        call_in_fresh_process(target, None)


def test_a_wrong_limit() -> None:
    with pytest.raises(ValueError, match="memory_limit_bytes is 0"):
        call_in_fresh_process("math:sqrt", 4, memory_limit_bytes=0)
