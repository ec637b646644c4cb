"""Five hundred real cells in one process: memory, open files and threads stay as they are.

`make torture` runs it and prints what it measured after each cell: resident memory once glibc has
given back what is free (`malloc_trim`), open file descriptors, threads, and the process's own CPU
time, which other processes do not change. The first cells, which load what is loaded once, are left
out of the slope and of the ratio.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.models.weights import MODELS, resolve
from harness.request import single_task
from harness.run.inputs import InputLoader
from harness.schedule.executor import execute
from harness.store.records import RecordStore
from tasks.sources import open_source
from tests.harness.builders import make_request

TASKS = ("arc-e", "boolq", "obqa", "piqa", "siqa")
METHODS = ("lora", "dora", "mixlora", "mixdora")
SEEDS = 25
CELLS = len(TASKS) * len(METHODS) * SEEDS
WARM_UP = 50
#: Cells at either end whose times are compared.
ENDS = 100

pytestmark = pytest.mark.slow


@dataclass
class Samples:
    """What the process had after each cell, and at its beginning what it began with.

    Attributes:
        memory: Resident, in KiB.
        files: Open descriptors.
        threads: Python's.
        seconds: CPU time of the process so far.
    """

    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def take(self) -> None:
        # What is measured is what is held: garbage in cycles and free pages of the heap are not.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1024)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(threading.active_count())
        self.seconds.append(time.process_time())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine count as CPU time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_five_hundred_cells_in_one_process(
    one_thread: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = Samples()
    save: Any = RecordStore.save

    def saved(*arguments: Any) -> Path:
        path: Path = save(*arguments)
        samples.take()
        with capsys.disabled():
            print(f"\r{len(samples.memory)} cells", end="", flush=True)
        return path

    monkeypatch.setattr(RecordStore, "save", saved)
    request = make_request(
        tasks=TASKS,
        methods=METHODS,
        seeds=range(SEEDS),
        scoring="choice",
        limit_train=4,
        limit_eval=2,
    )
    # Seed by seed, so that every stretch has all tasks and methods alike.
    cells = sorted(single_task()(request), key=lambda spec: spec.seed)
    loader = InputLoader(open_source(None, bundled=True), {"tiny": resolve(MODELS["tiny"])})
    outcome = execute(cells, loader, RecordStore(tmp_path), fresh=False)
    assert outcome.failed == {} and len(samples.memory) == CELLS == len(outcome.records)

    (slope, _), covariance = np.polyfit(
        range(CELLS - WARM_UP), samples.memory[WARM_UP:], deg=1, cov=True
    )
    spent = [after - before for before, after in itertools.pairwise(samples.seconds)]
    first = statistics.median(spent[WARM_UP : WARM_UP + ENDS])
    last = statistics.median(spent[-ENDS:])
    with capsys.disabled():
        print(
            f"\nresident memory: {samples.memory[WARM_UP] / 1024:.0f} MiB after {WARM_UP} cells, "
            f"{samples.memory[-1] / 1024:.0f} MiB after {CELLS}, "
            f"slope {slope:.2f} ± {covariance[0, 0] ** 0.5:.2f} KiB a cell"
        )
        for name, counts in (("open files", samples.files), ("threads", samples.threads)):
            print(
                f"{name}: {counts[0]} after the first cell, {counts[WARM_UP]} after {WARM_UP}, "
                f"{counts[-1]} after the last, at most {max(counts)}"
            )
        print(
            f"CPU time of a cell: median {first:.3f} s of the first {ENDS} after {WARM_UP}, "
            f"{last:.3f} s of the last {ENDS}, ratio {last / first:.2f}"
        )
    # Libraries lose some KiB at every load of a model, safetensors 2 of them as it reads. What of
    # ours could be held on to is more: an adapter is 800 KiB at least, a model 4 MiB.
    assert slope < 64
    assert samples.files[-1] <= samples.files[WARM_UP]
    assert samples.threads[-1] <= samples.threads[WARM_UP]
    # A scan of all records for each cell would grow with every cell.
    assert last < 1.5 * first
