"""Several processes that train a cell together, as torchrun or ``accelerate launch`` start them.

How a training step is divided and gradients are added up is accelerate's (DDP), through the
Trainer. Here is what accelerate leaves open:

- The first process leads. It alone plans, locks, scores, writes and prints, and calls the others
  for each training (`together`, `follow`), which may be hours later. accelerate can only have them
  wait in an exchange, and an exchange that takes longer than the timeout counts as a failure.
- A failure in one process must fail the cell in all, with its reason, and the next cell must run.
  accelerate has nothing for this: the other processes are left in the all-reduce of DDP's backward
  pass, and when that ends in an error, the group of processes cannot be used again. So each
  training has a group of its own. A process that fails writes its reason where all can read it and
  leaves the group. That breaks the exchange which the others wait in, with gloo at once and with
  NCCL after `TIMEOUT` at the latest, and they find the reason.

Calls and reasons are kept in the key-value store that every launcher of torch provides. Outside of
a training, every process is a process alone for all libraries: the launcher's variables are hidden.
A process that was started alone leads nobody; then nothing here does anything, nor loads torch.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from ..cells.spec import TrainSettings
from ..messages import first_line
from ..store.records import OutOfMemory

logger = logging.getLogger(__name__)

#: How long the processes wait for each other in a training, at most.
TIMEOUT = timedelta(minutes=30)

#: Variables of a launcher that tell libraries that there are several processes.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")

#: What the first process says when there is nothing more to train.
_END = "end"


class ProcessLost(Exception):
    """Another of the processes has died, or does not answer."""


class OtherProcessFailed(RuntimeError):
    """A training has failed in another process; the message is what that process said."""


@dataclass
class _State:
    """The processes, as this one knows them.

    Attributes:
        count: Number of processes.
        rank: Number of this process, from 0.
        environment: What the launcher has set of `_LAUNCHED`.
        store: torch's key-value store, shared by all processes.
        trainings: Number of trainings that were begun.
    """

    count: int = 1
    rank: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    store: Any = None
    trainings: int = 0


_state = _State()


def count() -> int:
    """Number of processes."""
    return _state.count


def rank() -> int:
    """Number of this process, from 0."""
    return _state.rank


def check_training(train: TrainSettings, device: str) -> None:
    """Refuse steps that do not divide into equal parts, and processes without a device.

    Raises:
        ValueError: There are such.
    """
    rows = train.micro_batch_size
    if train.accumulation % _state.count and rows % _state.count:
        raise ValueError(
            f"batch size {train.batch_size}: a step of {train.accumulation} micro-batches of "
            f"{rows} rows cannot be divided by {_state.count} processes, neither the one number "
            "nor the other"
        )
    if device == "cuda" and _state.count > 1:
        import torch

        local = int(_state.environment.get("LOCAL_WORLD_SIZE", _state.count))
        if torch.cuda.device_count() < local:
            raise ValueError(
                f"device 'cuda': {local} processes and {torch.cuda.device_count()} GPUs; start one "
                "process for each GPU (--nproc_per_node), or choose --device cpu"
            )


def one_only(what: str) -> None:
    """Refuse to be one of several processes.

    Raises:
        ValueError: There are several.
    """
    if _state.count > 1:
        raise ValueError(f"{what} runs in one process, and here are {_state.count}")


@contextmanager
def joined() -> Iterator[bool]:
    """Know the other processes while the block lasts, if the environment says there are some.

    Yields:
        Whether this process follows another.

    Raises:
        ValueError: They are set up for something that changes what a cell is.
        ProcessLost: They cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield False
        return
    _check_accelerate()
    _join()
    try:
        yield _state.rank > 0
    except (KeyboardInterrupt, ProcessLost):
        # The others may be anywhere. They notice when the store is gone, or are stopped as well.
        raise
    except BaseException:
        _dismiss()
        raise
    else:
        _dismiss()


def _join() -> None:
    import torch

    # Functions in it have the group that exists when it is loaded as a default argument, and so
    # keep it, with its threads, until the interpreter ends, which may abort the process. Training
    # loads it sooner or later; here there is no group yet.
    import torch.distributed.nn
    from torch.distributed.rendezvous import rendezvous

    with _reached():
        _state.store, _state.rank, _state.count = next(iter(rendezvous("env://")))
    launched = {name: os.environ.pop(name, None) for name in _LAUNCHED}
    # accelerate chooses a number of threads where this is not set.
    launched["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads()))
    _state.environment = {name: value for name, value in launched.items() if value is not None}
    if torch.cuda.is_available():
        torch.cuda.set_device(int(_state.environment.get("LOCAL_RANK", 0)))
        # Have an exchange that takes too long raise an exception, not end the process.
        os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"


def _check_accelerate() -> None:
    set_up = [
        name
        for name, variable in (
            ("FSDP", "ACCELERATE_USE_FSDP"),
            ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"),
        )
        if os.environ.get(variable, "false").lower() == "true"
    ]
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    set_up += [] if precision == "no" else [f"mixed precision {precision}"]
    if set_up:
        raise ValueError(
            f"accelerate is set up for {' and '.join(set_up)}: a cell is trained by data "
            "parallelism in its own dtype; launch it with --multi_gpu --mixed_precision no"
        )


def _dismiss() -> None:
    """Tell the others that there is nothing more to train, and wait until they know."""
    _call(_END)
    _wait_for_all(_END)


def follow(train: Callable[[Any], object]) -> None:
    """Train what the first process says, in the others, until it has no more.

    Args:
        train: Trains a job.

    Raises:
        ProcessLost: A process is gone.
    """
    from .memory import release_memory

    while _next_call() != _END:
        try:
            with together(None) as job:
                train(job)
        except ProcessLost:
            raise
        except Exception as error:
            logger.debug("the first process writes this down: %s", error)
        release_memory()


@contextmanager
def together(job: Any) -> Iterator[Any]:
    """Train in all processes while the block lasts; if it fails in one, it fails in all.

    Args:
        job: What is trained, in the first process; the others are given it.

    Yields:
        The first process's job.

    Raises:
        OtherProcessFailed: The training failed in another process; `OutOfMemory` of the kind that
            was raised there if memory ran out.
        ProcessLost: A process is gone.
    """
    if _state.count == 1:
        yield job
        return
    from torch import distributed

    _call("train")
    _state.trainings += 1
    training = f"training {_state.trainings}"
    store: Any = distributed.PrefixStore(training, _state.store)
    raised: BaseException | None = None
    try:
        with _group(store):
            try:
                jobs = [job]
                distributed.broadcast_object_list(jobs)
                yield jobs[0]
            except BaseException as error:
                if isinstance(error, Exception):
                    # The first reason that is written counts: those that it causes come later.
                    store.compare_set("reason", "", _reason(error))
                # DDP must be gone before its group is, and frames of the exception have it.
                each: BaseException | None = error
                while each is not None:
                    traceback.clear_frames(each.__traceback__)
                    each = each.__cause__ or each.__context__
                raise
    except Exception as error:
        raised = error
    _wait_for_all(training)
    with _reached():
        reason = json.loads(store.get("reason")) if store.check(["reason"]) else None
    if reason is not None and reason[0] != _state.rank:
        raise _told(*reason)
    if raised is not None:
        raise raised


@contextmanager
def _group(store: Any) -> Iterator[None]:
    """A group of all processes that is torch's default, and accelerate's, while the block lasts."""
    import torch
    from accelerate.state import AcceleratorState
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=_state.rank, world_size=_state.count, timeout=TIMEOUT
    )
    os.environ.update(_state.environment)
    try:
        yield
    finally:
        for variable in _LAUNCHED:
            os.environ.pop(variable, None)
        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()
        distributed.destroy_process_group()


def _call(what: str) -> None:
    """Say what to do next, in the first process."""
    if _state.rank == 0:
        with _reached():
            _state.store.set(f"call {_state.trainings + 1}", what)


def _next_call() -> str:
    """What the first process says next, in the others. It may say nothing for hours."""
    key = f"call {_state.trainings + 1}"
    with _reached():
        # Not by the store's own way to wait, which a signal does not interrupt.
        while not _state.store.check([key]):
            time.sleep(0.05)
        return _state.store.get(key).decode()


def _reason(error: Exception) -> str:
    """An exception as JSON for the other processes: rank, type, first line and traceback."""
    trace = "".join(traceback.format_exception(error))
    return json.dumps([_state.rank, type(error).__name__, first_line(error), trace])


def _told(rank: int, kind: str, said: str, trace: str) -> Exception:
    """The exception of another process, of the kinds that something is done about."""
    # Imported here, because it loads torch.
    from .memory import BatchTooLarge

    text = f"{said} (in process {rank + 1} of {_state.count})\n{trace}"
    for known in (BatchTooLarge, OutOfMemory):
        if kind == known.__name__:
            return known(text)
    return OtherProcessFailed(f"{kind}: {text}")


def _wait_for_all(what: str) -> None:
    """Wait until every process is as far as this one.

    Raises:
        ProcessLost: One is not, after `TIMEOUT`.
    """
    keys = [f"{what} is over in process {number}" for number in range(_state.count)]
    with _reached():
        _state.store.set(keys[_state.rank], "")
        _state.store.wait(keys, TIMEOUT)


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    # Every backend and store raises this, whatever the reason.
    except RuntimeError as error:
        raise ProcessLost(f"another process is gone ({first_line(error)})") from error
