"""`ExpertLoad`: counts the tokens that each expert is sent, at no cost where it is not used."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from .layer import MixLoraFfn
from .losses import token_mask
from .router import Routing


class ExpertLoad:
    """Counts the tokens of each expert in every forward of a model inside a ``with`` block.

        with ExpertLoad(model) as load:
            model(**batch)
        fractions = load.counts["default"] / load.counts["default"].sum(dim=1, keepdim=True)

    A token counts once for each expert that it is sent to. Padding, as the attention mask has it,
    does not count, nor do the tokens of gradient checkpointing's second forward.

    Args:
        model: A model with MixLoRA adapters, in PEFT's wrapping or not.

    Attributes:
        counts: Adapter name -> (layers, E) int64 on the CPU; empty before the first forward.

    Raises:
        ValueError: The model has no MixLoRA block.
    """

    def __init__(self, model: Any) -> None:
        self._model: nn.Module = model.get_base_model() if hasattr(model, "peft_type") else model
        self._blocks = [each for each in self._model.modules() if isinstance(each, MixLoraFfn)]
        if not self._blocks:
            raise ValueError(f"{type(self._model).__name__} has no MixLoRA block to count in")
        self.counts: dict[str, Tensor] = {}
        self._arguments: dict[str, Any] | None = None
        self._stack = ExitStack()

    def take(self) -> dict[str, Tensor]:
        """Return the counts so far, and start again from nothing."""
        counts, self.counts = self.counts, {}
        return counts

    def __enter__(self) -> ExpertLoad:
        names = tuple(inspect.signature(self._model.forward).parameters)
        before = partial(self._begin, names)
        for hook in (
            self._model.register_forward_pre_hook(before, with_kwargs=True),
            self._model.register_forward_hook(self._end, always_call=True),
        ):
            self._stack.callback(hook.remove)
        for layer, block in enumerate(self._blocks):
            for name, router in block.lora_router.items():
                count = partial(self._count, layer, name)
                self._stack.callback(router.register_forward_hook(count).remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _begin(
        self, names: tuple[str, ...], model: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        self._arguments = dict(zip(names, args, strict=False)) | kwargs

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        self._arguments = None

    def _count(
        self, layer: int, adapter_name: str, router: nn.Module, args: Any, routing: Routing
    ) -> None:
        if self._arguments is None:  # a checkpointed layer's second run
            return
        selected, num_experts = routing.selected_experts, routing.router_logits.shape[1]
        sent = routing.selection_mask
        mask = token_mask(self._mask(adapter_name), len(selected))
        if mask is not None:
            mask = mask.to(selected.device)
            selected, sent = selected[mask], None if sent is None else sent[mask]
        if sent is not None:
            selected = selected[sent]
        counts = torch.bincount(selected.flatten(), minlength=num_experts).cpu()
        if adapter_name not in self.counts:
            shape = (len(self._blocks), num_experts)
            self.counts[adapter_name] = torch.zeros(shape, dtype=torch.int64)
        self.counts[adapter_name][layer] += counts

    def _mask(self, adapter_name: str) -> Tensor | None:
        """The attention mask of an adapter's rows."""
        mask = (self._arguments or {}).get("attention_mask")
        packing = self._blocks[0].context.packing
        return mask if packing is None or mask is None else packing.rows_of(adapter_name, mask)
