"""`ForwardContext`: what the parts of one model tell each other while one of its forwards runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from .packing import Packing

#: Sums a tensor, element by element, over the processes that share a batch; has no gradient.
SumOverProcesses = Callable[[Tensor], Tensor]


class ForwardContext:
    """One object that a tuner, its MixLoRA blocks and the auxiliary loss of a model share.

    It travels with the model: a deep copy of the model has a context of its own.

    Attributes:
        packing: Which rows of the batch belong to which adapter, or None if all rows go through the
            active one.
        router_logits: Adapter name -> (router logits (T, E), whether that router is being trained)
            of each layer in the order in which they ran; None while no loss is to be made of them.
        sum_over_processes: Sums the auxiliary loss's statistics over the processes that share a
            batch, or None if this process balances its own rows.
    """

    def __init__(self) -> None:
        self.packing: Packing | None = None
        self.router_logits: dict[str, list[tuple[Tensor, bool]]] | None = None
        self.sum_over_processes: SumOverProcesses | None = None

    def collect(self, adapter_name: str, router_logits: Tensor, is_trained: bool) -> None:
        """Keep a layer's router logits if the running forward makes a loss of them."""
        if self.router_logits is not None:
            self.router_logits.setdefault(adapter_name, []).append((router_logits, is_trained))


def find_context(model: nn.Module) -> ForwardContext | None:
    """The context of a model with MixLoRA adapters, in PEFT's wrapping or not; else None."""
    contexts = (getattr(module, "context", None) for module in model.modules())
    return next((each for each in contexts if isinstance(each, ForwardContext)), None)
