"""The order of the training rows, their batches, and which process computes what of a batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from tasks.encoding import TrainingRow

from ..cells.spec import TrainSettings

#: transformers' label for a position without loss.
_IGNORED = -100

#: The rows of one forward and backward pass, each with the name of its adapter.
MicroBatch = list[tuple[str, TrainingRow]]


@dataclass(frozen=True)
class TrainingSet:
    """What one adapter is trained on.

    Attributes:
        rows: Encoded training rows.
        seed: Seed of their order.
    """

    rows: Sequence[TrainingRow]
    seed: int


def row_order(lengths: Sequence[int], settings: TrainSettings, seed: int) -> list[list[list[int]]]:
    """The order of an adapter's rows, a function of the arguments alone.

    Args:
        lengths: Lengths of the rows, in tokens.
        settings: Epochs, batch size, whether batches are of like length.
        seed: Seed of the order.

    Returns:
        The optimiser steps, each a list of micro-batches of row indices. A step stays within its
        epoch, whose last step has what is left.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for _ in range(settings.epochs):
        if settings.group_by_length:
            order = list(
                LengthGroupedSampler(
                    settings.batch_size, lengths=list(lengths), generator=generator
                )
            )
        else:
            order = torch.randperm(len(lengths), generator=generator).tolist()
        for step in _chunks(order, settings.batch_size):
            steps.append(_chunks(step, settings.micro_batch_size))
    return steps


def joint_steps(sets: Mapping[str, TrainingSet], settings: TrainSettings) -> list[list[MicroBatch]]:
    """The optimiser steps of all adapters at once.

    Every adapter goes through its own `row_order`. One that has fewer steps than others, or fewer
    micro-batches in a step, is absent from the rest.

    Args:
        sets: Adapter name -> its rows.
        settings: Settings of the training, the same for all.
    """
    steps: list[list[MicroBatch]] = []
    for name, own in sets.items():
        lengths = [len(row.input_ids) for row in own.rows]
        for number, step in enumerate(row_order(lengths, settings, own.seed)):
            if number == len(steps):
                steps.append([])
            for index, micro_batch in enumerate(step):
                if index == len(steps[number]):
                    steps[number].append([])
                steps[number][index] += [(name, own.rows[row]) for row in micro_batch]
    return steps


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


class StepCollator:
    """Makes the model's inputs of an optimiser step.

    Rows are padded on the left. Their answers then end in the same column, so that the
    language-model head, which is a fifth of a small model's work, runs at the last few positions
    alone (``logits_to_keep``).

    Args:
        pad_token_id: Any token id; padding is masked out.
        packed: Whether the rows belong to several adapters.
        quirks: Names in `harness.cells.quirks.QUIRKS`; "loss-on-pad" and "pad-side" act here.
    """

    def __init__(self, pad_token_id: int, packed: bool, quirks: Collection[str] = ()) -> None:
        self.pad_token_id = pad_token_id
        self.packed = packed
        self.loss_on_padding = "loss-on-pad" in quirks
        self.count_padding = "pad-side" in quirks

    def __call__(self, steps: Sequence[list[MicroBatch]]) -> dict[str, list[dict[str, Any]]]:
        """One step, in a sequence of length 1, to its micro-batches.

        Returns:
            {"micro_batches": [...]}, each with input_ids, attention_mask and position_ids (B, S)
            and labels (B, logits_to_keep), all int64, the int logits_to_keep, and
            num_items_in_batch, the number of token ids that the loss of the whole step covers. When
            packed, the latter is a number for each adapter, and there is adapter_names, one name
            for each row.
        """
        (step,) = steps
        micro_batches = [self._inputs(micro_batch) for micro_batch in step]
        num_items: dict[str, int] = {}
        for micro_batch, inputs in zip(step, micro_batches, strict=True):
            # The model predicts the label of a column in the column before it.
            scored = (inputs["labels"][:, 1:] != _IGNORED).sum(dim=1).tolist()
            for (name, _), number in zip(micro_batch, scored, strict=True):
                num_items[name] = num_items.get(name, 0) + number
        # The loss of a step whose rows have all lost their answers is 0, not 0 / 0.
        total: Any = num_items if self.packed else max(1, sum(num_items.values()))
        return {"micro_batches": [each | {"num_items_in_batch": total} for each in micro_batches]}

    def _inputs(self, micro_batch: MicroBatch) -> dict[str, Any]:
        rows = [row for _, row in micro_batch]
        longest = max(len(row.input_ids) for row in rows)
        # One more than the longest answer, because the last position of the prompt predicts the
        # answer's first token.
        kept = longest if self.loss_on_padding else 1 + max(row.num_target for row in rows)
        input_ids = torch.full((len(rows), longest), self.pad_token_id)
        attention_mask = torch.zeros(len(rows), longest, dtype=torch.long)
        labels = torch.full((len(rows), kept), _IGNORED)
        for index, row in enumerate(rows):
            ids = torch.tensor(row.input_ids)
            input_ids[index, -len(ids) :] = ids
            attention_mask[index, -len(ids) :] = 1
            labels[index, kept - row.num_target :] = ids[len(ids) - row.num_target :]
            if self.loss_on_padding:
                labels[index, : longest - len(ids)] = self.pad_token_id
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        if self.count_padding:
            positions = torch.arange(longest).expand(len(rows), -1)
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": positions,
            "labels": labels,
            "logits_to_keep": kept,
        }
        if self.packed:
            inputs["adapter_names"] = [name for name, _ in micro_batch]
        return inputs


@dataclass(frozen=True)
class Part:
    """What one of several processes computes of a micro-batch.

    Attributes:
        inputs: The model's inputs, as `StepCollator` makes them.
        counts: Whether its loss counts; otherwise it is computed to take part in DDP's exchange,
            which every process must do in every step.
        shared: Whether the other processes have the other rows of the micro-batch, so that its
            auxiliary loss is that of the rows of all.
    """

    inputs: dict[str, Any]
    counts: bool = True
    shared: bool = False


_BY_ROW = ("input_ids", "attention_mask", "position_ids", "labels")


def parts_of(
    micro_batches: Sequence[dict[str, Any]], settings: TrainSettings, rank: int, count: int
) -> list[Part]:
    """What one of several processes computes of a step; together they compute the whole step.

    Where the number of micro-batches can be divided, each process takes some of them whole;
    otherwise each takes some rows of every micro-batch. The last step of an epoch may have fewer
    than there are processes: then some have nothing that counts.

    Args:
        micro_batches: The step, as `StepCollator` makes it.
        settings: How a whole step is divided into micro-batches.
        rank: Number of the process, from 0.
        count: Number of processes.

    Returns:
        One part or more.
    """
    if settings.accumulation % count == 0:
        own = [Part(micro_batch) for micro_batch in micro_batches[rank::count]]
        return own or [_nothing(micro_batches[0])]
    parts = []
    for micro_batch in micro_batches:
        if len(micro_batch["input_ids"]) >= count:
            rows = {name: micro_batch[name].tensor_split(count)[rank] for name in _BY_ROW}
            parts.append(Part(micro_batch | rows, shared=True))
        else:
            parts.append(Part(micro_batch) if rank == 0 else _nothing(micro_batch))
    return parts


def _nothing(micro_batch: dict[str, Any]) -> Part:
    """A row of which no token counts, neither for the loss nor as load of an expert."""
    row = {name: micro_batch[name][:1] for name in _BY_ROW}
    row["labels"] = torch.full_like(row["labels"], _IGNORED)
    row["attention_mask"] = torch.zeros_like(row["attention_mask"])
    return Part(micro_batch | row, counts=False)
