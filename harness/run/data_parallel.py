"""Divides the optimiser steps of a training over the processes of `processes`, to the same losses.

A step is the same rows whatever the number of processes. Where there are enough micro-batches, each
process takes some of them whole; otherwise each takes some rows of every micro-batch, and the
auxiliary loss is that of the rows of all (`mixlora.losses.balanced_over`). Losses and gradients
are added up, as they are already divided by the scored tokens of the whole step. So a step's loss
is that of one process but for rounding, and for dropout, whose masks every process draws itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from mixlora.losses import balanced_over

from ..cells.spec import TrainSettings
from . import processes

_BY_ROW = ("input_ids", "attention_mask", "position_ids", "labels")


def balance(model: nn.Module, train: TrainSettings) -> AbstractContextManager[None]:
    """While this lasts, the auxiliary loss is over the rows of all processes if they share them."""
    return balanced_over(model, processes.add_up) if _by_row(train) else nullcontext()


def own_part(
    micro_batches: Sequence[dict[str, Any]], train: TrainSettings, device: torch.device
) -> Iterator[dict[str, Any]]:
    """What this process computes of a step's micro-batches; others may have more of them.

    Args:
        micro_batches: Of `StepCollator`.
        train: How a step is divided.
        device: Of the model.

    Yields:
        Micro-batches, to be run forward and backward before the next is asked for.
    """
    count, rank = processes.count(), processes.rank()
    if not _by_row(train):
        yield from micro_batches[rank::count]
        return
    for micro_batch in micro_batches:
        own = {
            name: value.tensor_split(count)[rank] if name in _BY_ROW else value
            for name, value in micro_batch.items()
        }
        # The last step of an epoch may have fewer rows than there are processes.
        if len(own["input_ids"]):
            yield own
            processes.pause()
        else:
            processes.add_nothing(device)


def _by_row(train: TrainSettings) -> bool:
    return train.accumulation % processes.count() != 0


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make every gradient the sum of those of all processes; one that none of them has stays."""
    if processes.count() == 1:
        return
    trained = [each for each in parameters if each.requires_grad]
    own = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
    has = torch.tensor([float(each.grad is not None) for each in trained])
    total = processes.add_up(torch.cat([*(each.flatten() for each in own), has.to(own[0])]))
    sums = total[: -len(trained)].split([each.numel() for each in trained])
    for parameter, value, number in zip(trained, sums, total[-len(trained) :], strict=True):
        if number:
            parameter.grad = value.view_as(parameter).to(parameter.dtype)


def begin_alike(model: nn.Module) -> None:
    """Give all processes the first one's adapters, whatever machine each was made on."""
    if processes.count() == 1:
        return
    trained = [each for each in model.parameters() if each.requires_grad]
    values = processes.from_first(lambda: [each.detach().cpu() for each in trained])
    with torch.no_grad():
        for parameter, value in zip(trained, values, strict=True):
            parameter.copy_(value)


def draw_apart(seed: int) -> None:
    """Have the processes draw different dropout masks; the first draws those of one alone."""
    if processes.rank():
        torch.manual_seed(seed + (processes.rank() << 32))
