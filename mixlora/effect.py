"""Refuses an adapter that does nothing: the scores of such a model are the base model's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class NoEffectError(ValueError):
    """An adapter leaves the base model's logits as they are."""


@torch.inference_mode()
def require_effect(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Compare a batch's logits with and without the active adapter, in evaluation mode.

    Whatever keeps an adapter from being applied (names of weights that do not match, B still zero,
    an adapter that is switched off) shows here, and nowhere else: the model runs all the same.

    Args:
        model: A `PeftModel`; left in the mode it was in.
        input_ids: (B, S), on the model's device.
        attention_mask: (B, S).

    Raises:
        NoEffectError: All logits are the same bits.
    """
    peft_model: Any = model
    training = [module for module in model.modules() if module.training]
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    model.eval()
    try:
        adapted = peft_model(**batch).logits
        with peft_model.disable_adapter():
            plain = peft_model(**batch).logits
    finally:
        for module in training:
            module.training = True
    if torch.equal(adapted, plain):
        raise NoEffectError(
            "the adapter leaves the base model's logits unchanged: it was not trained, or not "
            "loaded, and its scores would be the base model's"
        )
