"""Running out of memory: said with the batch it happened in, and what was taken given back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from harness.speed.profiling import is_out_of_memory

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
        where: Called then; what was being computed, with the size of its batch.
        kind: Of the exception.

    Raises:
        OutOfMemory: With what torch or Python said, in one line.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        said = first_line(error) or type(error).__name__
        raise kind(f"{where()}: {said}") from error


def release_memory() -> None:
    """Give back what an exception's frames held; it must be gone already."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
