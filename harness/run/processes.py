"""Several processes that train a cell together, as ``torchrun`` or ``accelerate launch`` start them.

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
import logging
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
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

#: Variables of torchrun that tell libraries that there are several processes.
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")

_POLL_SECONDS = 0.05


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
    """Refuse a training whose steps do not divide into equal parts, or processes without a device.

    Raises:
        ValueError: It is one of these.
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
    _state.environment = {
        name: value for name in _LAUNCHED if (value := os.environ.pop(name, None)) is not None
    }
    # Otherwise accelerate sets the number of threads.
    _state.environment.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(_state.environment.get("LOCAL_RANK", 0)))
        # An exchange that takes too long raises an exception then, and does not end the process.
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
    if _state.rank == 0:
        _call("end")
    _wait_for_all("end")


def follow(train: Callable[[Any], object]) -> None:
    """Train what the first process says, in the others, until it has no more.

    Args:
        train: Trains a job.

    Raises:
        ProcessLost: A process is gone.
    """
    from .memory import release_memory

    while _next_call() == "train":
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
    if _state.rank == 0:
        _call("train")
    _state.trainings += 1
    name = f"training {_state.trainings}"
    raised: Exception | None = None
    try:
        with _group(name):
            try:
                yield _from_first(job)
            except BaseException as error:
                if isinstance(error, Exception):
                    # The first report that is written counts: what it breaks in others is later.
                    with _reached():
                        _state.store.compare_set(
                            f"{name} failed", "", pickle.dumps(_Report.of(error))
                        )
                _clear_frames(error)
                raise
    except ProcessLost:
        raise
    except Exception as error:
        raised = error
    _wait_for_all(name)
    with _reached():
        failed = _state.store.check([f"{name} failed"])
        report = pickle.loads(_state.store.get(f"{name} failed")) if failed else None
    if report is not None and report.rank != _state.rank:
        raise report.as_error()
    if raised is not None:
        raise raised


@contextmanager
def _group(name: str) -> Iterator[None]:
    """A group of all processes that is torch's default, and accelerate's, while the block lasts."""
    import torch
    from accelerate.state import AcceleratorState
    from torch import distributed

    with _reached():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=distributed.PrefixStore(name, _state.store),
            rank=_state.rank,
            world_size=_state.count,
            timeout=TIMEOUT,
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


def _clear_frames(error: BaseException) -> None:
    """Let go what the frames of an exception hold: DDP must be gone before its group is."""
    next_one: BaseException | None = error
    while next_one is not None:
        traceback.clear_frames(next_one.__traceback__)
        next_one = next_one.__cause__ or next_one.__context__


def _from_first(value: Any) -> Any:
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


@dataclass(frozen=True)
class _Report:
    """An exception as it is told to the others, which may not be able to unpickle it."""

    rank: int
    kind: str
    said: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Report:
        trace = "".join(traceback.format_exception(error))
        return cls(_state.rank, type(error).__name__, first_line(error), trace)

    def as_error(self) -> Exception:
        # Imported here, because it loads torch.
        from .memory import BatchTooLarge

        where = f"in process {self.rank + 1} of {_state.count}"
        for kind in (BatchTooLarge, OutOfMemory):
            if self.kind == kind.__name__:
                return kind(f"{self.said} ({where})\n{self.trace}")
        return OtherProcessFailed(f"{self.kind}: {self.said} ({where})\n{self.trace}")


def _call(what: str) -> None:
    """Tell the other processes what to do next, in the first process: "train" or "end"."""
    with _reached():
        _state.store.set(f"call {_state.trainings + 1}", what)


def _next_call() -> str:
    """What the first process says next, in the others. It may say nothing for hours."""
    key = f"call {_state.trainings + 1}"
    with _reached():
        while not _state.store.check([key]):
            time.sleep(_POLL_SECONDS)
        return _state.store.get(key).decode()


def _wait_for_all(what: str) -> None:
    """Wait until every process is as far as this one.

    Raises:
        ProcessLost: One is not, after `TIMEOUT`.
    """
    ranks: Sequence[str] = [f"{what} over for {rank}" for rank in range(_state.count)]
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    with _reached():
        _state.store.set(ranks[_state.rank], "")
        while not _state.store.check(ranks):
            if time.monotonic() > deadline:
                raise ProcessLost(f"a process has not answered for {TIMEOUT}")
            time.sleep(_POLL_SECONDS)


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    # Every backend and store raises this, whatever the reason.
    except RuntimeError as error:
        raise ProcessLost(f"another process is gone ({first_line(error)})") from error
