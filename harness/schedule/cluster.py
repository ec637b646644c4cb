"""Runs jobs as tasks of a Ray cluster (``--executor ray``, extra ``ray``).

A task does what a process does here (`work.settle`): it takes the job's lock and writes records to
the output directory. So the nodes must share a file system, with this checkout and the output in
the same places. A task whose worker is killed is begun again, from its checkpoint if there is one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..messages import first_line
from ..store.files import OutputError
from ..store.records import FailureStore, OutOfMemory, RecordStore
from ..store.stopping import finishing
from .progress import Progress
from .work import POLL_SECONDS, Settled, Work, settle

#: How often a task is begun again when its worker dies. One that dies more often has a reason.
_RETRIES = 3


def run_on_ray(waiting: Sequence[Work], progress: Progress) -> Iterator[Settled]:
    """Run jobs on the cluster of RAY_ADDRESS, or on one started here for as long as it takes.

    Args:
        waiting: The jobs.
        progress: Told when a job is done.

    Yields:
        What became of each job when it is done.

    Raises:
        ValueError: Ray is not installed, or no node has what a cell needs.
        OutputError: A worker cannot write a result, or has not written it where this process looks.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--executor ray: ray is not installed; pip install --group ray")
    import torch

    options = waiting[0].job.options
    gpu = any(work.job.spec.device == "cuda" for work in waiting)
    needs = {"CPU": options.cpus_per_cell or torch.get_num_threads(), "GPU": int(gpu)}
    with _cluster(needs) as ray:
        task = ray.remote(max_retries=_RETRIES, num_cpus=needs["CPU"], num_gpus=needs["GPU"])(
            _settle_there
        )
        # All jobs at once, because they share the rows of their cells.
        there = [dataclasses.replace(work, output=work.output.resolve()) for work in waiting]
        shared = ray.put((there, os.getcwd(), needs["CPU"]))
        running = {task.remote(number, shared): number for number in range(len(waiting))}
        said = False
        while running:
            # A signal that is raised within Ray becomes an exception of Ray's.
            with finishing():
                done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            if not done:
                continue
            (ready,) = done
            number = running.pop(ready)
            work = waiting[number]
            settled = _result(ray, ready, work)
            if settled is not None:
                progress.begin(work.job)
                yield settled
                continue
            if not said:
                progress.say_waiting([work.job])
                said = True
            time.sleep(POLL_SECONDS)
            running[task.remote(number, shared)] = number


def _settle_there(number: int, shared: tuple[list[Work], str, int]) -> Settled | None:
    """`settle` in a worker, in the folder and with the threads of the process that has the jobs."""
    import torch

    waiting, folder, threads = shared
    os.chdir(folder)
    torch.set_num_threads(threads)
    return settle(waiting[number])


def _result(ray: Any, ready: Any, work: Work) -> Settled | None:
    """What became of a task; a job whose workers have all died has failed."""
    try:
        with finishing():
            settled: Settled | None = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.OutOfMemoryError as error:
        return _failed(work, OutOfMemory(f"Ray: {first_line(error)}"))
    except ray.exceptions.RayError as error:
        return _failed(work, error)
    store = RecordStore(work.output)
    for record in () if settled is None else settled.records.values():
        path = store.path(record.id)
        if not path.exists():
            raise OutputError(path, OSError("a node that has done it has another file system"))
    return settled


def _failed(work: Work, error: Exception) -> Settled:
    failures, store = FailureStore(work.output), RecordStore(work.output)
    settled = Settled()
    for cell in work.job.cells:
        record = store.load(cell.id)
        if record is None:
            settled.failed[cell.spec] = failures.note(cell.spec, cell.fingerprints, error)
        else:
            settled.records[cell.spec] = record
    return settled


@contextmanager
def _cluster(needs: dict[str, int]) -> Iterator[Any]:
    """Ray, connected. At the end its tasks are stopped, and a cluster that was started here."""
    # Without this, Ray sends statistics on its use to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    address = os.environ.get("RAY_ADDRESS")
    try:
        # Workers find this project's code, because Ray gives them the folder of the script that
        # has started them.
        if address is None:
            ray.init("local", include_dashboard=False, logging_level=logging.ERROR)
        else:
            ray.init(address, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = "here" if address is None else f"at RAY_ADDRESS={address}"
        raise ValueError(f"--executor ray: no cluster {where}: {first_line(error)}") from error
    try:
        # Ray has put a handler of its own on SIGTERM.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _check_nodes(ray, needs)
        # Ray's threads print to standard output, where the tables go.
        with redirect_stdout(sys.stderr):
            yield ray
    finally:
        ray.shutdown()


def _check_nodes(ray: Any, needs: dict[str, int]) -> None:
    """Refuse needs that no node alone can meet: Ray would wait for such a node forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= n for kind, n in needs.items()) for node in nodes):
        found = "; ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
        )
        raise ValueError(
            f"--executor ray: a cell needs {needs['CPU']} CPUs and {needs['GPU']} GPUs of one "
            f"node, and the nodes have {found}; see --cpus-per-cell"
        )
