"""reproduce.py with cells that take a moment and no torch, for tests of processes and signals.

    python -m tests.harness.stand_in LOG MODE [arguments of reproduce.py]

Every cell that is begun appends its title to the file LOG. MODE is "run", or "hang" (the first cell
does not end), "stop" (each cell sends its process SIGTERM while its record is written), "oom" and
"nan" (mixlora fails), "clock" (the clock jumps at every look).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

if sys.argv[2] == "clock":
    time.time = lambda: random.uniform(0, 4e9)


def run_job(job: Any) -> Iterator[Any]:
    """The record of a job's only cell, which says nothing of this process."""
    from harness.store.records import OutOfMemory, RunRecord
    from tests.harness.builders import make_record

    log, mode = sys.argv[1:3]
    (cell,) = job.cells
    spec = cell.spec
    # One write of a few bytes at the end of a file is whole.
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{spec.title}\n")
    time.sleep(1000 if mode == "hang" else 0.15)
    if spec.method == "mixlora" and mode == "oom":
        raise OutOfMemory("training step 3, micro-batch of 8 rows of 96 tokens: no memory left")
    if spec.method == "mixlora" and mode == "nan":
        raise FloatingPointError("training loss is nan at step 3")
    if mode == "stop":
        fsync = os.fsync

        def stop(handle: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            fsync(handle)

        os.fsync = stop
    answers = [index % 2 for index in range(8)]
    predictions = [0, 1, 1, 1, 0, 1, 0, len(spec.method) % 2]
    record = make_record(spec, answers, predictions, predictions)
    yield RunRecord(**vars(record) | {"fingerprints": cell.fingerprints})


if __name__ == "__main__":
    # A shell starts what runs in its background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stand_in: Any = types.ModuleType("harness.run.cell")
    stand_in.run_job = run_job
    stand_in.release_memory = lambda: None
    sys.modules["harness.run.cell"] = stand_in

    import harness.accuracy
    import reproduce

    harness.accuracy.resolve_device = lambda name: "cpu"
    sys.exit(reproduce.main(sys.argv[3:]))
