"""Where the training of a pack has got to: one file, from which a killed run goes on, bit for bit.

The Trainer's own checkpoints are directories that a kill can leave half written; they know one
adapter's weights, and nothing of the losses and counts that a record holds. Ours are one file,
renamed when it is whole, with everything that the rest of the training depends on.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from ..messages import first_line
from ..store.files import atomic_file, remove_remains
from . import processes


class Stateful(Protocol):
    """What is kept beside weights and optimizer: counts, losses, clocks."""

    def state_dict(self) -> Any:
        """Tensors and plain types in dicts and lists."""

    def load_state_dict(self, state: Any) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class Checkpoint:
    """The last checkpoint of a pack, and when the next is due.

    Attributes:
        path: Its file.
        every: Steps from one to the next, and one at the end; 0 writes none.
        made_by: What must be the same for the rest of the training to give the same numbers:
            versions, hardware, accumulation.
        others: What is kept in it beside weights, optimizer and random state.
    """

    path: Path
    every: int
    made_by: Mapping[str, Any]
    others: Mapping[str, Stateful] = field(default_factory=dict)

    def keeping(self, **others: Stateful) -> Checkpoint:
        """The same, with these kept as well."""
        return dataclasses.replace(self, others={**self.others, **others})

    def due(self, step: int, steps: int) -> bool:
        """Whether one is to be written after a step."""
        return self.every > 0 and (step % self.every == 0 or step == steps)

    def save(self, step: int, model: nn.Module, optimizer: Any, device: torch.device) -> None:
        """Write everything that the steps after this one depend on; if it fails, that is said.

        Of several processes all must be in that step; the first one writes.
        """
        random, *others_random = processes.gathered(_random_state(device))
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
        # A full disk is the one or the other, as torch has it. Training can do without.
        except (OSError, RuntimeError) as error:
            why = first_line(error)
            tqdm.write(f"warning: no checkpoint of step {step}: {why}", file=sys.stderr)

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None without it, or if it cannot be used, which is said."""
        return processes.from_first(self._load)

    def _load(self) -> dict[str, Any] | None:
        state = read(self.path)
        if state is not None and state["made_by"] != self.made_by:
            _discard(self.path, "made by other versions or hardware, or in other batches")
            return None
        return state

    def restore(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Put the weights and all the others where they were; optimizer and random state wait."""
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
        # torch writes sums of its parts, but does not look at them when it reads.
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.keys() != _PARTS:
            raise zipfile.BadZipFile("not a checkpoint")
        return state
    # A damaged file gives a different exception for every place that is hit.
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
    # Dropout's masks are all that training draws, on the device or on the CPU.
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def _discard(path: Path, why: str) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # A folder has its name: training can do without.
        why += f", nor removed ({error.strerror})"
    tqdm.write(f"checkpoint {path.name}: {why}; its training begins anew", file=sys.stderr)
