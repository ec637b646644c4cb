"""Shared by all tests: the real rows, what makes a test repeatable, a count of injected faults."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# More threads than this gain nothing at these sizes and starve other test runs on the machine.
torch.set_num_threads(2)

_FAULTS = pytest.StashKey[Counter[str]]()

# Here, because pytest looks for `--hypothesis-profile` before it comes to the folder of the tests
# that know it; see tests/fuzz/cases.py.
settings.register_profile("torture", print_blob=True)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real rows beside the project root; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real rows in {folder}")
    return folder


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Called with the kind of a fault that a test injects: pytest ends with how many of each."""
    counts = request.config.stash.setdefault(_FAULTS, Counter())

    def count(kind: str) -> None:
        counts[kind] += 1

    return count


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    counts = config.stash.get(_FAULTS, Counter())
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        terminalreporter.write_line(f"faults injected: {counts.total()}: {kinds}")
