"""Running out of memory: the batch it happened in is named, and the memory is given back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from harness.speed.profiling.fresh_process import is_out_of_memory

from ..messages import first_line
from ..store.records import OutOfMemory


class BatchTooLarge(OutOfMemory):
    """A training ran out of memory; smaller micro-batches may help."""


@contextmanager
def naming_out_of_memory(
    where: Callable[[], str], kind: type[OutOfMemory] = OutOfMemory
) -> Iterator[None]:
    """Turn every way in which memory runs out in the block into one exception.

    Args:
        where: Called then; says what was being computed, with the size of its batch.
        kind: Class of the exception.

    Raises:
        OutOfMemory: Memory ran out; the message has what torch or Python said, in one line.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        said = first_line(error) or type(error).__name__
        raise kind(f"{where()}: {said}") from error


def release_memory() -> None:
    """Give back memory that frames of an exception held; the exception must be gone already."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
