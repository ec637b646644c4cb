"""What a run shows of its cells: a bar in a terminal, one line for each job in a log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tqdm import tqdm

from ..run.inputs import Job
from .work import Settled

logger = logging.getLogger(__name__)


class Progress:
    """Shows how far a run is, until it is closed.

    Args:
        done: Number of cells that were done before.
        total: Number of all cells that are asked for.
    """

    def __init__(self, done: int, total: int) -> None:
        self._total = total
        self._settled = done
        self._bar = tqdm(total=total, initial=done, unit="cell", dynamic_ncols=True, disable=None)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def begin(self, job: Job) -> None:
        """A job is about to be run."""
        self._bar.set_description(job.title)
        if self._bar.disable:
            logger.info("cell %d/%d: %s", self._settled + 1, self._total, job.title)

    def report(self, text: str) -> None:
        """How far a job is."""
        self._bar.set_postfix_str(text)

    def say_waiting(self, busy: Sequence[Job]) -> None:
        """Nothing is left but these jobs, which other processes run."""
        count = sum(len(job.cells) for job in busy)
        logger.info("waiting: another process runs %d cells", count)

    def end(self, settled: Settled) -> None:
        """A job is done."""
        for failure in settled.failed.values():
            logger.warning("%s", failure)
        new = len(settled.records) + len(settled.failed)
        self._settled += new
        self._bar.update(new)
