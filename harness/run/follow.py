"""What every process but the first does of those that train a cell together."""

from __future__ import annotations

from . import processes
from .cell import release_memory, run_pack


def follow() -> None:
    """Train what the first process says, until it has no more.

    Raises:
        ProcessLost: It is gone.
    """
    while (job := processes.told()) is not None:
        cells, options, checkpoint = job
        try:
            # No cell is wanted here: the first process scores them.
            for _ in run_pack(cells, (), lambda text: None, options, checkpoint):
                raise RuntimeError("a process that follows has scored a cell")
        except processes.ProcessLost:
            raise
        # The first process has the failure too, says it and writes it down.
        except Exception:
            release_memory()
