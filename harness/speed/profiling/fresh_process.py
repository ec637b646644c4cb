"""Calls a function in a new Python process, so that its peak memory is its own.

A call that runs out of memory ends that process alone and is reported as `OutOfMemory`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .memory import one_line

#: Texts that mean it where the type of an exception does not: of torch on the CPU, mmap, C++, CUDA
#: and cuBLAS.
_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class OutOfMemory(RuntimeError):
    """The fresh process ran out of memory; the message is one line."""


def call_in_fresh_process(
    target: str,
    argument: Any,
    *,
    timeout: float | None = None,
    memory_limit_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call ``function(argument)`` in a new interpreter and return its result.

    The process has this one's interpreter, environment, working directory and ``sys.path``, and
    nothing else of its state, so thread counts and seeds belong in the argument. Its standard
    output is discarded; the last line of its standard error is used in messages of errors.

    Args:
        target: "package.module:function", importable.
        argument: A JSON value.
        timeout: Seconds before the process is ended.
        memory_limit_bytes: Limit of its address space (RLIMIT_AS), libraries included.
        environment: Environment variables that are added to this process's, or replace them.

    Returns:
        The function's result, a JSON value.

    Raises:
        ValueError: The target is not of that form, or the limit is not positive.
        OutOfMemory: The process could not allocate, or was killed as the kernel does to free
            memory.
        TimeoutError: It took longer than the timeout.
        RuntimeError: It failed in another way.
    """
    module, colon, function = target.partition(":")
    if not (module and colon and function.isidentifier()):
        raise ValueError(f"target {target!r}: expected 'package.module:function'")
    if memory_limit_bytes is not None and memory_limit_bytes < 1:
        raise ValueError(f"memory_limit_bytes is {memory_limit_bytes}; expected a positive number")
    with tempfile.TemporaryDirectory() as folder:
        request, outcome, errors = (Path(folder, name) for name in ("request", "outcome", "errors"))
        call = {"target": target, "argument": argument, "memory_limit_bytes": memory_limit_bytes}
        request.write_text(json.dumps(call), encoding="utf-8")
        # The path is set before anything is imported, so that the process finds the same modules.
        code = (
            f"import sys; sys.path[:] = {[str(path) for path in sys.path]!r}; "
            f"from {__name__} import answer; answer({str(request)!r}, {str(outcome)!r})"
        )
        with errors.open("wb") as stderr:
            try:
                # The code is written above; what comes from outside is quoted in it.
                status = subprocess.run(  # noqa: S603
                    [sys.executable, "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=os.environ | dict(environment or {}),
                    timeout=timeout,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{target}: took longer than {timeout} s") from None
        if outcome.exists():
            return _result(target, json.loads(outcome.read_text(encoding="utf-8")))
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last_line = lines[-1] if lines else "nothing on standard error"
    if status == -signal.SIGKILL:
        raise OutOfMemory(f"{target}: killed, as the kernel does when memory runs out")
    failure = OutOfMemory if _says_out_of_memory("\n".join(lines)) else RuntimeError
    raise failure(f"{target}: exit status {status} without a result; {last_line}")


def _result(target: str, outcome: dict[str, Any]) -> Any:
    if "error" not in outcome:
        return outcome["result"]
    failure = OutOfMemory if outcome["out_of_memory"] else RuntimeError
    raise failure(f"{target}: {outcome['error']}")


def answer(request: str, outcome: str) -> None:
    """The fresh process's whole work: read the request file, call, write the outcome file."""
    call = json.loads(Path(request).read_text(encoding="utf-8"))
    try:
        if call["memory_limit_bytes"] is not None:
            _limit_address_space(call["memory_limit_bytes"])
        module, _, function = call["target"].partition(":")
        result = getattr(importlib.import_module(module), function)(call["argument"])
        text = json.dumps({"result": result})
    except Exception as error:
        text = json.dumps({"error": one_line(error), "out_of_memory": is_out_of_memory(error)})
    # The process may be killed at any time, and the file must then be whole or absent.
    partial = Path(f"{outcome}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(outcome)


def _limit_address_space(limit: int) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, on a device or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemory)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and _says_out_of_memory(str(error))


def _says_out_of_memory(text: str) -> bool:
    return any(sign in text for sign in _OUT_OF_MEMORY_TEXTS)
