"""Refuses an adapter that does nothing: the scores of such a model are the base model's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn


class NoEffectError(ValueError):
    """An adapter leaves the base model's logits as they are."""


@torch.inference_mode()
def require_effect(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Compare a batch's logits with those of the same computation where every B is zero.

    Whatever keeps an adapter from being applied (weights whose names do not match, a B that is
    still zero, an adapter that is switched off) shows here, and nowhere else: the model runs all
    the same. Not compared with the adapter switched off, because a MixLoRA that is the identity
    still rounds in its own way: the weights of a token's experts add up to 1 but for rounding.

    Args:
        model: A `PeftModel` with LoRA, DoRA or MixLoRA; left as it was.
        input_ids: (B, S), on the model's device.
        attention_mask: (B, S).

    Raises:
        NoEffectError: All logits are the same bits, or no adapter of these kinds is active.
    """
    active = model.active_adapters if isinstance(model, PeftModel) else []
    matrices = [
        parameter
        for key, parameter in model.named_parameters()
        if any(f"lora_B.{name}." in key for name in active)
    ]
    if not matrices:
        raise NoEffectError("no lora_B is active: expected a model with LoRA, DoRA or MixLoRA")
    training = [module for module in model.modules() if module.training]
    batch: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    model.eval()
    try:
        adapted = model(**batch).logits
        with _zeroed(matrices):
            plain = model(**batch).logits
    finally:
        for module in training:
            module.training = True
    if torch.equal(adapted, plain):
        raise NoEffectError(
            "the adapter leaves the base model's logits unchanged: it was not trained, or not "
            "loaded, and its scores would be the base model's"
        )


@contextmanager
def _zeroed(parameters: list[nn.Parameter]) -> Iterator[None]:
    kept = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data
