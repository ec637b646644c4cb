"""Checks of an adapter: that its weights fit the model, and that it changes what the model does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from .messages import printable_name


class NoEffectError(ValueError):
    """An adapter leaves the base model's logits as they are."""


@torch.inference_mode()
def require_effect(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
    """Refuse an adapter that does nothing, with which the model would score as the base model does.

    A batch's logits are compared with those of the same computation where every B is zero. Weights
    whose names do not match, a B that is still zero, an adapter that is switched off: whatever
    keeps an adapter from being applied shows in this comparison and nowhere else, because the model
    runs all the same. The comparison is not with the adapter switched off, because a MixLoRA block
    that is the identity still rounds in its own way: the weights of a token's experts sum to 1 only
    up to rounding.

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
    values = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = torch.zeros_like(parameter)
    try:
        yield
    finally:
        for parameter, data in zip(parameters, values, strict=True):
            parameter.data = data


def check_fit(source: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not exactly the expected ones.

    Args:
        source: Where the weights are from, for the message.
        given: The weights by key.
        expected: Tensors of the right shapes by the right keys.

    Raises:
        ValueError: A key is missing, unknown or has another shape, or its values are not finite
            real numbers; the message names it.
    """
    missing = expected.keys() - given.keys()
    if missing:
        raise ValueError(f"{source} lacks {_first_of(missing)}")
    unknown = given.keys() - expected.keys()
    if unknown:
        raise ValueError(f"{source} has keys that the model does not know: {_first_of(unknown)}")
    for key, tensor in expected.items():
        if given[key].shape != tensor.shape:
            shapes = f"{tuple(given[key].shape)}: expected {tuple(tensor.shape)}"
            raise ValueError(f"{source} has {key} of shape {shapes}")
        if not given[key].is_floating_point():
            raise ValueError(f"{source} has {key} of {given[key].dtype}: expected real numbers")
        # A NaN would spread to every logit, and an adapter that is nowhere finite still "works".
        if not given[key].isfinite().all():
            raise ValueError(f"{source} has NaN or infinity in {key}")


def _first_of(keys: Iterable[str]) -> str:
    """The first two keys, and how many more there are."""
    ordered = sorted(keys)
    more = f" and {len(ordered) - 2} more" if len(ordered) > 2 else ""
    return ", ".join(map(printable_name, ordered[:2])) + more
