"""Runs packs as tasks of a Ray cluster (``--executor ray``, extra ``ray``).

A task is what runs here too (`work.settle`): it takes the pack's lock and writes its records to the
output directory. So the nodes share a file system, with this checkout and the output in the same
places. A task whose worker is killed is begun again, from its checkpoint where there is one.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .inputs import InputLoader
from .progress import Progress
from .record_files import OutputError
from .records import RecordStore
from .spec import RunOptions, RunSpec, TrainSettings
from .work import POLL_SECONDS, Settled, Work, settle

# A worker that dies so often has a reason.
_RETRIES = 3


def run_on_ray(
    waiting: Sequence[Work],
    loader: InputLoader,
    output: Path,
    fresh: bool,
    options: RunOptions,
    progress: Progress,
) -> Iterator[Settled]:
    """Run packs on the cluster of RAY_ADDRESS, or on one started here for as long as it takes.

    Args:
        waiting: The packs.
        loader: For their inputs.
        output: Where records are kept.
        fresh: Run cells that had a record as well.
        options: How they are run.
        progress: Told when a pack is done.

    Yields:
        What became of each pack when it is done.

    Raises:
        ValueError: Ray is not installed, or no node has what a cell needs.
        OutputError: A worker cannot write a result, or has not written it where this process looks.
    """
