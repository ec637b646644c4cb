"""Several processes that train a cell together, as torchrun or accelerate launch start them.

The first leads: it alone plans, locks, scores, writes and prints, and tells the others what to
train (`tell`, `told`). What they do together they do in blocks of `together`: every exchange within
begins with a word of each on whether it has failed, so that a failure in one is raised in all, and
nobody waits for a process that has given up. That is also why torch's DDP is not used: its
exchanges are hidden in the backward pass, where a process that has run out of memory leaves the
others waiting. A process alone leads none, and everything here does nothing.

torch is loaded where there are several processes only.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..cells.spec import TrainSettings
from ..messages import first_line
from ..store.records import OutOfMemory

if TYPE_CHECKING:
    from torch import Tensor

# Of torchrun; hidden from transformers and accelerate, which would divide things once more.
_ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")

# A follower waits for the first process to score a cell, or for a lock. One that has died is
# noticed by its connections.
_PATIENCE = timedelta(days=365)


class ProcessLost(Exception):
    """Another of the processes has died, or does not answer."""


class OtherProcessFailed(RuntimeError):
    """What was done together has failed in another process; says what that said."""


@dataclass
class _Group:
    """The processes.

    Attributes:
        count: How many.
        rank: Which one this is, from 0.
        gpus: How many GPUs each sees, 0 or 1.
        raised: The last failure that all have agreed on.
    """

    count: int = 1
    rank: int = 0
    gpus: tuple[int, ...] = ()
    raised: Exception | None = None


_group = _Group()


def count() -> int:
    """How many processes there are."""
    return _group.count


def rank() -> int:
    """Which one this is, from 0."""
    return _group.rank


@contextmanager
def joined() -> Iterator[bool]:
    """Be together with the others while the block lasts, if the environment says there are some.

    Each process sees one GPU from then on, its own, and is one process alone for all libraries.

    Yields:
        Whether this process follows another.

    Raises:
        ValueError: They are set up for something that changes what a cell is.
        ProcessLost: They cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1:
        yield False
        return
    _group.count, _group.rank = size, int(os.environ["RANK"])
    _check_accelerate()
    _join()
    try:
        yield _group.rank > 0
    except (KeyboardInterrupt, ProcessLost):
        # The others may be anywhere; they notice by their connections.
        raise
    except BaseException:
        _leave()
        raise
    else:
        _leave()


def _join() -> None:
    import torch

    # Its functions keep the group there is when it is loaded as a default argument, and the threads
    # of a group that is kept run into the end of the interpreter, which aborts the process. What
    # trains loads it sooner or later: here there is no group yet.
    import torch.distributed.nn
    from torch import distributed

    _take_gpu(int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count())
    gpus = torch.cuda.device_count()
    with _reached():
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        distributed.init_process_group(backend, timeout=_PATIENCE)
        for name in _ENVIRONMENT:
            os.environ.pop(name, None)
        _group.gpus = tuple(_gathered(gpus))


def _leave() -> None:
    from torch import distributed

    if _group.rank == 0:
        tell(None)
    distributed.destroy_process_group()


def check_training(train: TrainSettings, device: str) -> None:
    """See that the processes get equal parts of a training step, and a device each.

    Raises:
        ValueError: They do not.
    """
    rows = train.micro_batch_size
    if train.accumulation % _group.count and rows % _group.count:
        raise ValueError(
            f"batch size {train.batch_size}: a step of {train.accumulation} micro-batches of "
            f"{rows} rows cannot be divided by {_group.count} processes, neither the one number "
            "nor the other"
        )
    if device == "cuda" and not all(_group.gpus):
        raise ValueError(
            f"device 'cuda': {_group.count} processes and {sum(_group.gpus)} GPUs; start one "
            "process for each GPU (--nproc_per_node), or choose --device cpu"
        )


def one_only(what: str) -> None:
    """Refuse to be one of several processes.

    Raises:
        ValueError: There are several.
    """
    if _group.count > 1:
        raise ValueError(f"{what} runs in one process, and here are {_group.count}")


def tell(job: Any) -> None:
    """Say to the others what to do, in the first process; None: nothing more."""
    if _group.count > 1:
        _from_first(job)


def told() -> Any:
    """What the first process says next, in the others."""
    return _from_first(None)


@contextmanager
def together() -> Iterator[None]:
    """What fails in one process while the block lasts fails in all.

    Raises:
        OtherProcessFailed: In the processes that have not failed themselves, or `OutOfMemory` of
            the kind that the other has raised: all raise the same kind.
        ProcessLost: A process is gone.
    """
    if _group.count == 1:
        yield
        return
    try:
        yield
    except ProcessLost:
        raise
    except Exception as error:
        if error is not _group.raised:
            _meet(error)
        raise
    else:
        _meet()
    finally:
        _group.raised = None


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, in all; the others make nothing."""
    if _group.count == 1:
        return make()
    made = make() if _group.rank == 0 else None
    _meet()
    return _from_first(made)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in all."""
    if _group.count == 1:
        return [value]
    _meet()
    return _gathered(value)


def add_up(values: Tensor) -> Tensor:
    """The sum over all processes, in all, bit for bit the same; values are of one shape."""
    if _group.count == 1:
        return values
    from torch import distributed

    _meet(size=values.numel())
    total = values.detach().clone()
    with _reached():
        distributed.all_reduce(total)
    return total


def add_nothing(device: Any) -> None:
    """Take part in the others' `add_up` until they `pause`, with nothing to add."""
    import torch
    from torch import distributed

    while size := _meet():
        with _reached():
            distributed.all_reduce(torch.zeros(size, device=device))


def pause() -> None:
    """Say that nothing is to be added up for now, to those that add nothing."""
    if _group.count > 1:
        _meet()


def _meet(error: Exception | None = None, size: int = 0) -> int:
    """Wait for all, and raise in all if one of them has failed.

    Args:
        error: Of this process, if it has failed.
        size: How many numbers it adds up next.

    Returns:
        The largest of all sizes.
    """
    import torch
    from torch import distributed

    word = torch.tensor([int(error is not None), size])
    with _reached():
        distributed.all_reduce(word, distributed.ReduceOp.MAX)
        failed, most = word.tolist()
        if not failed:
            return most
        reports = _gathered(None if error is None else _Report.of(error))
    # All go by the first that failed, so that all do the same about it.
    first = next(number for number, report in enumerate(reports) if report is not None)
    raised = reports[first].as_error(first)
    if error is not None and first == _group.rank:
        raised = error
    _group.raised = raised
    raise raised


@dataclass(frozen=True)
class _Report:
    """An exception as it is told to the others, which may not be able to unpickle it."""

    kind: str
    said: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Report:
        trace = "".join(traceback.format_exception(error))
        return cls(type(error).__name__, first_line(error), trace)

    def as_error(self, process: int) -> Exception:
        # Here, because it loads torch.
        from .memory import BatchTooLarge

        where = f"in process {process + 1} of {_group.count}"
        for kind in (BatchTooLarge, OutOfMemory):
            if self.kind == kind.__name__:
                return kind(f"{self.said} ({where})\n{self.trace}")
        return OtherProcessFailed(f"{self.kind}: {self.said} ({where})\n{self.trace}")


def _gathered(value: Any) -> list[Any]:
    from torch import distributed

    values: list[Any] = [None] * _group.count
    with _reached():
        distributed.all_gather_object(values, value)
    return values


def _from_first(value: Any) -> Any:
    from torch import distributed

    values = [value]
    with _reached():
        distributed.broadcast_object_list(values)
    return values[0]


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    # Of every backend, whatever the reason.
    except RuntimeError as error:
        raise ProcessLost(f"another process is gone ({first_line(error)})") from error


def _take_gpu(local_rank: int, num_gpus: int) -> None:
    """Have this process see its GPU only, before torch has looked."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(num_gpus))) if visible is None else visible.split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = names[local_rank] if local_rank < len(names) else ""


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
