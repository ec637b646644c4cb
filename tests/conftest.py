"""Shared by all tests: where the real rows lie, and what makes a test's run repeatable."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# More threads than this gain nothing at these sizes and starve other test runs on the machine.
torch.set_num_threads(2)

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
