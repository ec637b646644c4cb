"""Shared by all tests: one thread each, seeds, the real rows, and a count of injected faults."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# `make test` runs as many tests at a time as it has worker processes, and at these sizes a second
# thread gains a test nothing. Processes that a test starts take this from the environment.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

_FAULTS = pytest.StashKey[Counter[str]]()

# Registered here because pytest reads `--hypothesis-profile` before it comes to `tests/fuzz`, whose
# tests know what it means; see `tests/fuzz/cases.py`.
settings.register_profile("torture", print_blob=True)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real rows beside the project; a test that uses it is skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real rows in {folder}")
    return folder


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that a test calls with the kind of a fault that it injects, to count it."""
    counts = request.config.stash.setdefault(_FAULTS, Counter())

    def count(kind: str) -> None:
        counts[kind] += 1

    return count


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker process, hand the counts to the process that has started it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = dict(session.config.stash.get(_FAULTS, {}))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up the counts of the worker processes."""
    faults = getattr(node, "workeroutput", {}).get("faults", {})
    node.config.stash.setdefault(_FAULTS, Counter()).update(faults)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print how many faults of each kind were injected."""
    counts = config.stash.get(_FAULTS, Counter())
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        terminalreporter.write_line(f"faults injected: {counts.total()}: {kinds}")
