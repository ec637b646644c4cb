"""Packed batches: several adapters on one frozen base at once (arXiv 2404.15159, Algorithm 1).

``model(..., adapter_names=[...])`` names an adapter for every row of the batch, in training too.
The frozen projections run once over the whole batch; routing, experts, auxiliary loss and the loss
itself are each adapter's own, so that every adapter gets the values and gradients it would get
alone. Make all of them trainable with ``model.set_requires_grad([...])``; one optimiser serves all.

``outputs.loss`` is the sum of the adapters' losses, and ``outputs.adapter_losses`` has each one's.
Under gradient accumulation ``num_items_in_batch`` may be a mapping with a number for every adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .context import ForwardContext

#: PEFT's name for rows that go through the frozen model alone.
BASE = "__base__"


class Packing:
    """Which rows of a batch belong to which adapter.

    Args:
        adapter_names: One name per row, `BASE` for no adapter.

    Attributes:
        names: The distinct names, in the order of their first row.
        sizes: Number of rows of each.
        losses: Loss of each, detached scalars; empty before the model has computed them.
    """

    def __init__(self, adapter_names: Sequence[str]) -> None:
        groups: dict[str, list[int]] = {}
        for row, name in enumerate(adapter_names):
            groups.setdefault(name, []).append(row)
        self.names = list(groups)
        self.sizes = [len(rows) for rows in groups.values()]
        self.losses: dict[str, Tensor] = {}
        order = [row for rows in groups.values() for row in rows]
        self._order = None if order == sorted(order) else order
        self._inverse = sorted(range(len(order)), key=order.__getitem__)

    @property
    def num_rows(self) -> int:
        """Number of rows of the batch."""
        return len(self._inverse)

    def grouped(self, rows: Tensor) -> Tensor:
        """(B, ...) with the rows of an adapter next to each other, in the order of `names`.

        Raises:
            ValueError: The batch has another number of rows than there were names.
        """
        if len(rows) != self.num_rows:
            raise ValueError(
                f"adapter_names has {self.num_rows} names: expected one per row, {len(rows)}"
            )
        return rows if self._order is None else rows[self._order]

    def ungrouped(self, rows: Tensor) -> Tensor:
        """The inverse of `grouped`."""
        return rows if self._order is None else rows[self._inverse]

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """The rows of each adapter, in the order of `names`."""
        return self.grouped(rows).split(self.sizes)

    def rows_of(self, adapter_name: str, rows: Tensor) -> Tensor:
        """The rows of one adapter."""
        return self.split(rows)[self.names.index(adapter_name)]


@contextmanager
def packed(model: nn.Module, context: ForwardContext, packing: Packing) -> Iterator[None]:
    """While this lasts, the model's adapted layers send each row through its own adapter.

    Args:
        model: The transformers model with adapters.
        context: The model's context.
        packing: The adapters of the batch.
    """
    with ExitStack() as stack:
        stack.enter_context(_routed(model, context, packing))
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) and module.training:
                stack.enter_context(_routed_when_recomputed(module, context, packing))
        if hasattr(model, "loss_function"):
            stack.enter_context(_summed_losses(model, packing))
            stack.callback(model.register_forward_hook(partial(_add_losses, packing)).remove)
        yield


@contextmanager
def _routed(module: nn.Module, context: ForwardContext, packing: Packing) -> Iterator[None]:
    """Tell the MixLoRA blocks, and hook the LoRA layers of attention, which are PEFT's."""
    with ExitStack() as stack:
        before, context.packing = context.packing, packing
        stack.callback(setattr, context, "packing", before)
        for each in module.modules():
            if isinstance(each, LoraLayer):
                # PEFT is told that every row is the base's, and the adapters' part is added here.
                # PEFT's own mixed batches are for inference only, and go over the adapters in the
                # order of a set, which differs between runs and with it the dropout masks.
                frozen = partial(_as_frozen, packing)
                hook = each.register_forward_pre_hook(frozen, with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(each.register_forward_hook(partial(_add_lora, packing)).remove)
        yield


@contextmanager
def _routed_when_recomputed(
    layer: Any, context: ForwardContext, packing: Packing
) -> Iterator[None]:
    """Gradient checkpointing runs a layer again in the backward pass, when `packed` has ended."""
    original, is_forward = layer._gradient_checkpointing_func, True

    def run(function: Callable[..., Any], *args: Any) -> Any:
        if is_forward:
            return function(*args)
        with _routed(layer, context, packing):
            return function(*args)

    def checkpointed(function: Callable[..., Any], *args: Any) -> Any:
        return original(partial(run, function), *args)

    layer._gradient_checkpointing_func = checkpointed
    try:
        yield
    finally:
        is_forward = False
        layer._gradient_checkpointing_func = original


@contextmanager
def _summed_losses(model: Any, packing: Packing) -> Iterator[None]:
    """The model's loss becomes the sum of the losses that the adapters would have alone."""
    original = model.loss_function

    def loss_function(logits: Tensor, labels: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        by_row = {"labels": labels, "shift_labels": kwargs.pop("shift_labels", None)}
        parts = {name: packing.split(each) for name, each in by_row.items() if each is not None}
        num_items = kwargs.pop("num_items_in_batch", None)
        losses = []
        for index, part in enumerate(packing.split(logits)):
            own: dict[str, Any] = {name: each[index] for name, each in parts.items()}
            own_labels = own.pop("labels", None)
            own["num_items_in_batch"] = own_num_items(num_items, packing.names[index])
            losses.append(original(part, own_labels, *args, **own, **kwargs))
            packing.losses[packing.names[index]] = losses[-1].detach()
        return torch.stack(losses).sum()

    model.loss_function = loss_function
    try:
        yield
    finally:
        model.loss_function = original


def own_num_items(num_items_in_batch: Any, adapter_name: str) -> Any:
    """An adapter's own ``num_items_in_batch``: a mapping has one for each, a number is for all.

    Raises:
        ValueError: The mapping has none for this adapter.
    """
    if not isinstance(num_items_in_batch, Mapping):
        return num_items_in_batch
    if adapter_name not in num_items_in_batch:
        known = ", ".join(num_items_in_batch)
        raise ValueError(f"num_items_in_batch is of {known}: expected {adapter_name} as well")
    return num_items_in_batch[adapter_name]


def _add_losses(packing: Packing, model: nn.Module, args: Any, output: Any) -> None:
    if packing.losses and not isinstance(output, tuple):
        output.adapter_losses = packing.losses


def _as_frozen(
    packing: Packing, module: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"adapter_names": [BASE] * packing.num_rows}


def _add_lora(packing: Packing, layer: Any, args: tuple[Tensor, ...], result: Tensor) -> Tensor:
    """The frozen layer's result with every adapter's LoRA (or DoRA) on its own rows."""
    if layer.disable_adapters:
        return result
    parts = []
    rows = zip(packing.names, packing.split(args[0]), packing.split(result), strict=True)
    for name, inputs, output in rows:
        if name not in layer.lora_A:
            parts.append(output)
            continue
        lora_A, lora_B = layer.lora_A[name], layer.lora_B[name]
        inputs = inputs.to(lora_A.weight.dtype)
        if name in layer.lora_variant:
            variant = layer.lora_variant[name]
            adapted = variant.forward(layer, active_adapter=name, x=inputs, result=output)
        else:
            dropped = layer.lora_dropout[name](inputs)
            adapted = output + lora_B(lora_A(dropped)) * layer.scaling[name]
        parts.append(adapted.to(result.dtype))
    return packing.ungrouped(torch.cat(parts))
