"""The load of the experts over a training, as a record holds it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from mixlora import ExpertLoad

from ..cells.spec import RunSpec
from . import processes


def counting(model: Any, spec: RunSpec) -> AbstractContextManager[ExpertLoad | None]:
    """Counts the experts' tokens while the block lasts, if the cell asks for it."""
    return ExpertLoad(model) if spec.expert_load else nullcontext()


class LoadLog:
    """Takes the counts ten times over a training and at its end, of all processes together.

    Args:
        load: The counter, which is counting.
        adapter_names: Names of the adapters trained.

    Attributes:
        entries: Adapter name -> [{"step", "counts"}], the counts of shape (layers, E)
            since the entry before.
    """

    def __init__(self, load: ExpertLoad, adapter_names: Sequence[str]) -> None:
        self.entries: dict[str, list[dict[str, Any]]] = {name: [] for name in adapter_names}
        self._load = load

    def on_step(self, step: int, steps: int) -> None:
        """Take the counts if it is time."""
        if step % max(1, steps // 10) == 0 or step == steps:
            for name, counts in _total(self._load.take()).items():
                self.entries[name].append({"step": step, "counts": counts.tolist()})

    def state_dict(self) -> dict[str, Any]:
        """What was taken, and what has been counted since."""
        return {"entries": self.entries, "counts": _total(self._load.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.entries = state["entries"]
        # From here on the first process has what all had counted.
        self._load.counts = {} if processes.rank() else state["counts"]


def _total(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums over all processes; one that had no rows has no counts."""
    own: dict[str, Tensor] = {}
    for each in gather_object([counts]):
        own |= {name: own[name] + more if name in own else more for name, more in each.items()}
    return own
