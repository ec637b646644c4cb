"""Runs packs as tasks of a Ray cluster (``--executor ray``, extra ``ray``).

A task is what runs here too (`work.settle`): it takes the pack's lock and writes its records to the
output directory. So the nodes share a file system, with this checkout and the output in the same
places. A task whose worker is killed is begun again, from its checkpoint where there is one.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from ..cells.spec import RunOptions
from ..messages import first_line
from ..run.inputs import InputLoader
from ..store.failures import FailureStore, OutOfMemory
from ..store.files import OutputError
from ..store.records import RecordStore
from ..store.stopping import finishing
from .progress import Progress
from .work import POLL_SECONDS, Settled, Work, settle

# A worker that dies more often has a reason.
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
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--executor ray: ray is not installed; pip install --group ray")
    import torch

    gpu = any(spec.device == "cuda" for work in waiting for spec in work.ids)
    needs = {"CPU": options.cpus_per_cell or torch.get_num_threads(), "GPU": int(gpu)}
    with _cluster(needs) as ray:
        task = ray.remote(max_retries=_RETRIES, num_cpus=needs["CPU"], num_gpus=needs["GPU"])(
            _settle_there
        )
        shared = ray.put((loader, output.resolve(), fresh, options, os.getcwd(), needs["CPU"]))
        running = {task.remote(work, shared): work for work in waiting}
        said = False
        while running:
            # Ray makes something else of what a signal raises within it.
            with finishing():
                done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            if not done:
                continue
            (ready,) = done
            work = running.pop(ready)
            settled = _result(ray, ready, work, loader, output)
            if settled is not None:
                progress.begin(work)
                yield settled
                continue
            if not said:
                progress.say_waiting([work])
                said = True
            time.sleep(POLL_SECONDS)
            running[task.remote(work, shared)] = work


def _settle_there(
    work: Work, shared: tuple[InputLoader, Path, bool, RunOptions, str, int]
) -> Settled | None:
    """`settle` in a worker, in the folder and with the threads of a process that runs cells."""
    import torch

    loader, output, fresh, options, folder, threads = shared
    os.chdir(folder)
    torch.set_num_threads(threads)
    return settle(work, loader.load, output, fresh, options, lambda: None, lambda text: None)


def _result(ray: Any, ready: Any, work: Work, loader: InputLoader, output: Path) -> Settled | None:
    """What a task has come to; a pack whose workers have all died has failed."""
    try:
        with finishing():
            settled: Settled | None = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.OutOfMemoryError as error:
        return _failed(work, loader, output, OutOfMemory(f"Ray: {first_line(error)}"))
    except ray.exceptions.RayError as error:
        return _failed(work, loader, output, error)
    store = RecordStore(output)
    for record in () if settled is None else settled.records.values():
        path = store.path(record.id)
        if not path.exists():
            raise OutputError(path, OSError("a node that has done it has another file system"))
    return settled


def _failed(work: Work, loader: InputLoader, output: Path, error: Exception) -> Settled:
    failures, store = FailureStore(output), RecordStore(output)
    settled = Settled()
    for spec, record_id in work.ids.items():
        record = store.load(record_id)
        if record is None:
            settled.failed[spec] = failures.save(spec, loader.load(spec).fingerprints, error)
        else:
            settled.records[spec] = record
    return settled


@contextmanager
def _cluster(needs: dict[str, int]) -> Iterator[Any]:
    """Ray, connected; its tasks are stopped at the end, and a cluster that was started here too."""
    # Otherwise it sends statistics on its use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    address = os.environ.get("RAY_ADDRESS")
    try:
        # Workers look for the code where the script is that has started them.
        if address is None:
            ray.init("local", include_dashboard=False, logging_level=logging.ERROR)
        else:
            ray.init(address, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = "here" if address is None else f"at RAY_ADDRESS={address}"
        raise ValueError(f"--executor ray: no cluster {where}: {first_line(error)}") from error
    try:
        # It has taken SIGTERM for itself.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _check_nodes(ray, needs)
        # What its threads print would stand among the tables.
        with redirect_stdout(sys.stderr):
            yield ray
    finally:
        ray.shutdown()


def _check_nodes(ray: Any, needs: dict[str, int]) -> None:
    """See that one node has what a pack needs: Ray would wait for it forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= n for kind, n in needs.items()) for node in nodes):
        found = "; ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
        )
        raise ValueError(
            f"--executor ray: a cell needs {needs['CPU']} CPUs and {needs['GPU']} GPUs of one "
            f"node, and the nodes have {found}; see --cpus-per-cell"
        )
