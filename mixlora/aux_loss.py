"""Adds the load-balancing loss to the loss an unmodified transformers model returns.

Two hooks on the model: before a forward that computes a loss, the tap for the blocks' router logits
is opened; after it, the logits become the auxiliary loss and are let go. Keeping nothing outside
that window makes the recomputation of gradient checkpointing harmless.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .layer import MixLoraFfn
from .packed import PACKING, Packing, own_num_items
from .router import AddUp, RouterTap, load_balancing_loss, z_loss

_TAP = "_mixlora_router_tap"
_ADD_UP = "_mixlora_add_up"
_BY_ROW = ("attention_mask", "labels", "shift_labels")


def install_aux_loss(model: nn.Module) -> None:
    """Make ``outputs.loss`` of a transformers model include the auxiliary loss of all its blocks.

    The auxiliary loss of a batch is ``router_aux_loss_coef * load_balancing_loss`` (and with
    ``routing="switch"`` the z-loss) over the logits of all layers, padding left out (but for
    ``aux_loss_over_padding``), in training and in evaluation (as transformers' Mixtral does).
    When the caller normalises the loss over several batches (``num_items_in_batch``, as the Trainer
    does under gradient accumulation), the batch's auxiliary loss is weighted by its share of the
    scored tokens, so that the accumulated value is their mean.

    In a packed batch every adapter has an auxiliary loss of its own, over its own rows.

    Under data parallelism (DDP, FSDP) each process balances its own rows, weighted likewise; for
    the loss of the whole batch see `balanced_over`.

    A forward in training whose caller makes a loss of his own out of log-probabilities (TRL's
    trainers do) raises a ValueError, as he would train without the auxiliary loss.
    """
    tap = getattr(model, _TAP, None)
    installed = tap is not None
    if tap is None:
        tap = RouterTap()
        setattr(model, _TAP, tap)
    for module in model.modules():
        if isinstance(module, MixLoraFfn):
            module.router_tap = tap
    if installed:
        return
    names = tuple(inspect.signature(model.forward).parameters)

    # The tap is looked up, not closed over: a copy of the model has hooks of the same functions.
    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = dict(zip(names, args, strict=False)) | kwargs
        tap = getattr(module, _TAP)
        if _labels(arguments) is not None:
            tap.open()
        elif tap.is_open:  # the forward before this one has failed
            tap.close()

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        tap = getattr(module, _TAP)
        if not tap.is_open:
            return output
        kept, trainable = tap.logits, tap.trainable
        tap.close()
        arguments = dict(zip(names, args, strict=False)) | kwargs
        aux_loss = _aux_loss(module, kept, trainable, arguments)
        if aux_loss is None:
            return output
        if module.training and torch.is_grad_enabled() and hasattr(output, "log_probs"):
            raise ValueError(
                "TRL's fused LM head leaves the router's auxiliary loss out: set compute_loss = "
                "transformers.Trainer.compute_loss in a subclass of the trainer, or "
                "router_aux_loss_coef=0"
            )
        if isinstance(output, tuple):
            return (output[0] + aux_loss.to(output[0].dtype), *output[1:])
        output.loss = output.loss + aux_loss.to(output.loss.dtype)
        return output

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, with_kwargs=True)


@contextmanager
def balanced_over(model: Any, add_up: AddUp) -> Iterator[None]:
    """While this lasts, the auxiliary loss is that of a batch whose rows several processes share.

    Each computes its part, and the parts add up to what one process would have for all rows; so
    do their gradients. So sum gradients over the processes; do not average them.

    Args:
        model: With MixLoRA adapters, in PEFT's wrapping or not. Its forwards must be given
            ``num_items_in_batch``, the number of scored tokens of all processes, and every process
            must run as many, with the same adapters.
        add_up: Sums a tensor over the processes, as ``torch.distributed.all_reduce`` does; called
            during each forward that computes a loss.
    """
    inner = model.get_base_model() if hasattr(model, "peft_type") else model
    setattr(inner, _ADD_UP, add_up)
    try:
        yield
    finally:
        delattr(inner, _ADD_UP)


def _labels(arguments: dict[str, Any]) -> Tensor | None:
    labels = arguments.get("shift_labels")
    return arguments.get("labels") if labels is None else labels


def _aux_loss(
    model: Any,
    kept: dict[str, list[Tensor]],
    trainable: dict[str, list[bool]],
    arguments: dict[str, Any],
) -> Tensor | None:
    """The weighted auxiliary losses of the forward just run, summed; None if there are none.

    Args:
        model: With PEFT's configurations of its adapters.
        kept: `RouterTap.logits`.
        trainable: `RouterTap.trainable`.
        arguments: Of the forward.
    """
    packing = getattr(model, PACKING, None)
    add_up: AddUp | None = getattr(model, _ADD_UP, None)
    total: Tensor | None = None
    for adapter_name, logits in kept.items():
        config = model.peft_config[adapter_name]
        if config.router_aux_loss_coef == 0 and not _has_z_loss(config):
            continue
        if model.training and torch.is_grad_enabled():
            _check_gradient(logits, trainable[adapter_name])
        own = arguments if packing is None else _rows_of(packing, adapter_name, arguments)
        # Layers may live on several devices.
        device = logits[0].device
        mask = None
        if not config.aux_loss_over_padding:
            mask = token_mask(own.get("attention_mask"), len(logits[0]))
        if mask is not None:
            mask = mask.to(device).repeat(len(logits))
        every = torch.cat([layer.to(device) for layer in logits])
        loss = _router_loss(config, every, mask, add_up) * _share_of_batch(own, add_up)
        total = loss if total is None else total + loss
        if packing is not None and adapter_name in packing.losses:
            packing.losses[adapter_name] = packing.losses[adapter_name] + loss.detach()
    return total


def _has_z_loss(config: Any) -> bool:
    return config.routing == "switch" and config.router_z_loss_coef > 0


def _router_loss(config: Any, logits: Tensor, mask: Tensor | None, add_up: AddUp | None) -> Tensor:
    """The losses of an adapter's kind of routing, by their coefficients."""
    top_k = 1 if config.routing == "switch" else config.top_k
    top_p = config.top_p if config.routing == "top_p" else None
    loss = config.router_aux_loss_coef * load_balancing_loss(logits, top_k, mask, top_p, add_up)
    if _has_z_loss(config):
        loss = loss + config.router_z_loss_coef * z_loss(logits, mask, add_up)
    return loss


def _check_gradient(logits: list[Tensor], trainable: list[bool]) -> None:
    if any(t and not layer.requires_grad for layer, t in zip(logits, trainable, strict=True)):
        raise ValueError(
            "the router's auxiliary loss has no gradient under reentrant gradient "
            "checkpointing; set gradient_checkpointing_kwargs={'use_reentrant': False}"
        )


def _rows_of(packing: Packing, adapter_name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as one adapter alone would be given them: its rows, its number of items."""
    index = packing.names.index(adapter_name)
    own = {
        name: packing.split(value)[index] if name in _BY_ROW and value is not None else value
        for name, value in arguments.items()
    }
    num_items = own_num_items(arguments.get("num_items_in_batch"), adapter_name)
    return own | {"num_items_in_batch": num_items}


def token_mask(attention_mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """(num_tokens,) bool from a (B, past + S) mask; None when every token counts."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask of {attention_mask.dim()} dimensions: the auxiliary loss leaves out "
            "padding and needs a mask of shape (batch, sequence), or router_aux_loss_coef=0"
        )
    length = num_tokens // attention_mask.shape[0]
    return attention_mask[:, -length:].reshape(-1).bool()


def _share_of_batch(arguments: dict[str, Any], add_up: AddUp | None) -> Tensor | float:
    num_items = arguments.get("num_items_in_batch")
    if num_items is None:
        if add_up is not None:
            raise ValueError("balanced_over: a forward needs num_items_in_batch, of all processes")
        return 1.0
    if arguments.get("shift_labels") is not None:
        scored = arguments["shift_labels"]
    else:
        scored = arguments["labels"][..., 1:]
    number = (scored != -100).sum()
    if add_up is not None:
        number = add_up(number.float().view(1)).squeeze()
    return number / num_items
