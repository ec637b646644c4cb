"""How far the training of a job has come: one file, from which a killed run goes on bit for bit.

The Trainer's own checkpoints are directories, which a kill can leave half written; they hold the
weights of one adapter, and not the losses and counts that a record holds. Ours is one file, renamed
when it is whole, with everything that the rest of the training depends on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from ..messages import first_line
from ..store.files import atomic_file, remove_remains
from . import processes

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """Something that is kept beside weights and optimizer: counts, losses, clocks."""

    def state_dict(self) -> Any:
        """Tensors and plain types in dicts and lists."""

    def load_state_dict(self, state: Any) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Checkpoint:
    """The last checkpoint of a job, and when the next is due.

    Attributes:
        path: Its file.
        every: Number of steps from one checkpoint to the next, with one more at the end of the
            training; 0 writes none.
        made_by: What must be the same for the rest of the training to give the same numbers:
            versions, hardware, accumulation.
        others: Name -> what is kept in it beside weights, optimizer and random state.
    """

    path: Path
    every: int
    made_by: Mapping[str, Any]
    others: Mapping[str, Stateful] = field(default_factory=dict)

    def keeping(self, **others: Stateful) -> Checkpoint:
        """The same checkpoint, with these kept as well."""
        return dataclasses.replace(self, others={**self.others, **others})

    def due(self, step: int, steps: int) -> bool:
        """Whether a checkpoint is to be written after a step."""
        return self.every > 0 and (step % self.every == 0 or step == steps)

    def save(self, step: int, model: nn.Module, optimizer: Any, device: torch.device) -> None:
        """Write everything that the steps after this one depend on; log it if that fails.

        Of several processes all must be in that step, and the first one writes.
        """
        random, *others_random = gather_object([_random_state(device)])
        state = {
            "made_by": dict(self.made_by),
            "step": step,
            "weights": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
            "optimizer": optimizer.state_dict(),
            "random": random,
            "random of the other processes": others_random,
            "others": {name: other.state_dict() for name, other in self.others.items()},
        }
        if processes.rank():
            return
        try:
            remove_remains(self.path)
            with atomic_file(self.path) as file:
                torch.save(state, file)
        # torch makes either of the two of a full disk. The training goes on without.
        except (OSError, RuntimeError) as error:
            why = first_line(error)
            logger.warning("warning: no checkpoint of step %d: %s", step, why)

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None without it, or if it cannot be used, which is logged."""
        state = self._load() if processes.rank() == 0 else None
        return broadcast_object_list([state])[0]

    def _load(self) -> dict[str, Any] | None:
        state = read(self.path)
        if state is not None and state["made_by"] != self.made_by:
            _discard(self.path, "made by other versions or hardware, or in other batches")
            return None
        return state

    def restore(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Restore the weights and all that is kept beside them.

        The optimizer and the random state are restored later, when there is an optimizer and when
        the first step begins (`restore_random_state`).
        """
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                parameters[name].copy_(value)
        for name, other in self.others.items():
            other.load_state_dict(state["others"][name])


#: What `Checkpoint.save` writes.
_PARTS = {
    "made_by",
    "step",
    "weights",
    "optimizer",
    "random",
    "random of the other processes",
    "others",
}


def read(path: Path) -> dict[str, Any] | None:
    """What a checkpoint's file holds; None without one, or if it is damaged and was removed."""
    if not os.path.lexists(path):
        return None
    try:
        # torch writes a checksum of every part, but does not compare them when it reads.
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.keys() != _PARTS:
            raise zipfile.BadZipFile("not a checkpoint")
        return state
    # The exception depends on which bytes of the file are damaged.
    except Exception as error:
        _discard(path, f"cannot be read ({type(error).__name__})")
        return None


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Have the next random numbers be those that came after the checkpoint."""
    random = state["random"]
    if processes.rank():
        random = state["random of the other processes"][processes.rank() - 1]
    torch.set_rng_state(random["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(random[device.type])


def _random_state(device: torch.device) -> dict[str, Any]:
    # Dropout masks are all that training draws, on the device or on the CPU.
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def _discard(path: Path, why: str) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # For example, a folder of that name. The training goes on without.
        why += f", nor removed ({error.strerror})"
    logger.warning("checkpoint %s: %s; its training begins anew", path.name, why)
