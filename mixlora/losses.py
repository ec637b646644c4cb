"""The routers' losses, and how they get into the loss of an unmodified transformers model.

Shape legend: N tokens (of all layers together), T tokens of one layer, E experts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .context import ForwardContext, SumOverProcesses, find_context
from .packing import Packing, own_num_items
from .router import select_up_to_p

_ARGUMENTS_BY_ROW = ("attention_mask", "labels", "shift_labels")


def load_balancing_loss(
    router_logits: Tensor,
    top_k: int,
    token_mask: Tensor | None = None,
    top_p: float | None = None,
    sum_over_processes: SumOverProcesses | None = None,
) -> Tensor:
    """``E * sum_i F_i P_i`` over all given tokens; uniform top-k routing gives K.

    P_i is the mean router probability of expert i; F_i is how often it is among a token's top_k,
    per token.

    Args:
        router_logits: (N, E); the layers of a model are concatenated, as in the released code.
        top_k: K. All K selections are counted, as Mixtral and the released code do; eq. 9 of the
            paper counts only the first.
        token_mask: (N,) bool, False for padding; None counts every token.
        top_p: Count the experts that `TopPRouter` selects instead.
        sum_over_processes: Given where several processes share the tokens. The value is then this
            process's part: F_i counts the tokens of all processes, and P_i is the sum over its own
            tokens divided by the number of all, so that the parts, and their gradients, sum to the
            loss of all tokens.

    Returns:
        Scalar in the dtype of router_logits.

    Source: arXiv 2404.15159 eqs. 8-9.
    """
    num_experts = router_logits.shape[-1]
    probabilities = router_logits.softmax(dim=-1)
    if top_p is None:
        selected = probabilities.topk(top_k, dim=-1).indices
        chosen = torch.zeros_like(probabilities).scatter(-1, selected, 1.0)
    else:
        _, selected, mask = select_up_to_p(probabilities, top_p)
        chosen = torch.zeros_like(probabilities).scatter(-1, selected, mask.to(router_logits.dtype))
    if sum_over_processes is None:
        frequency, mean_probability = _means(token_mask, chosen, probabilities)
    else:
        (times, sums), count = _sums(token_mask, chosen, probabilities)
        of_all = sum_over_processes(torch.cat([times, count.view(1)]))
        total = of_all[-1].clamp(min=1.0)
        frequency, mean_probability = of_all[:-1] / total, sums / total
    return num_experts * (frequency * mean_probability).sum()


def z_loss(
    router_logits: Tensor,
    token_mask: Tensor | None = None,
    sum_over_processes: SumOverProcesses | None = None,
) -> Tensor:
    """The mean squared log-sum-exp of the router's logits, which keeps them small.

    Arguments and result are those of `load_balancing_loss`.

    Source: ST-MoE, arXiv 2202.08906 eq. 5.
    """
    squares = router_logits.logsumexp(dim=-1, keepdim=True).square()
    if sum_over_processes is None:
        return _means(token_mask, squares)[0].sum()
    (own,), count = _sums(token_mask, squares)
    return (own / sum_over_processes(count.view(1)).clamp(min=1.0)).sum()


def _means(token_mask: Tensor | None, *values: Tensor) -> list[Tensor]:
    """The mean of each value over the tokens, (N, ...) -> (...)."""
    if token_mask is None:
        return [each.mean(dim=0) for each in values]
    sums, count = _sums(token_mask, *values)
    # A batch of padding alone has a loss of 0, not of 0 / 0.
    return [each / count.clamp(min=1.0) for each in sums]


def _sums(token_mask: Tensor | None, *values: Tensor) -> tuple[list[Tensor], Tensor]:
    """The sum of each value over the tokens, (N, ...) -> (...), and the number of tokens."""
    if token_mask is None:
        return [each.sum(dim=0) for each in values], values[0].new_tensor(len(values[0]))
    mask = token_mask.to(values[0].dtype).unsqueeze(-1)
    return [(each * mask).sum(dim=0) for each in values], mask.sum()


class AuxiliaryLoss:
    """Makes ``outputs.loss`` of a transformers model include the auxiliary loss of its blocks.

    The auxiliary loss of a batch is ``router_aux_loss_coef * load_balancing_loss`` (and the z-loss
    with ``routing="switch"``) over the router logits of all layers, in training and in evaluation,
    as in transformers' Mixtral. Padding is left out, except with ``aux_loss_over_padding``. When
    the caller normalises the loss over several batches (``num_items_in_batch``, as the Trainer does
    under gradient accumulation), the batch's auxiliary loss is weighted by its fraction of the
    scored tokens, so that the accumulated value is their mean.

    In a packed batch every adapter has an auxiliary loss of its own, over its own rows.

    Under data parallelism (DDP, FSDP) each process balances its own rows and weights them in the
    same way; see `balanced_over` for the loss of the whole batch.

    The two methods are hooks of the model: one before a forward, which asks the blocks for their
    router logits if the forward computes a loss; one after it, which makes the auxiliary loss of
    the logits and lets them go. Nothing is kept outside a forward, so the recomputation of gradient
    checkpointing does no harm.

    Args:
        context: The model's context.
        argument_names: Names of the parameters of the model's ``forward``.
    """

    def __init__(self, context: ForwardContext, argument_names: tuple[str, ...]) -> None:
        self.context = context
        self._argument_names = argument_names

    @classmethod
    def install(cls, model: nn.Module) -> ForwardContext:
        """Hook a transformers model, unless it is hooked already; returns the model's context."""
        for hook in model._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, cls):
                return owner.context
        loss = cls(ForwardContext(), tuple(inspect.signature(model.forward).parameters))
        model.register_forward_pre_hook(loss.before_forward, with_kwargs=True)
        model.register_forward_hook(loss.after_forward, with_kwargs=True)
        return loss.context

    def before_forward(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Ask the blocks for their router logits if this forward computes a loss."""
        is_with_loss = _labels(self._arguments(args, kwargs)) is not None
        # Reset in any case: the forward before this one may have failed half-way.
        self.context.router_logits = {} if is_with_loss else None

    def after_forward(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Add the auxiliary loss to the model's.

        Raises:
            ValueError: In training, the caller makes a loss of its own out of log-probabilities (as
                TRL's trainers do) and would train without the auxiliary loss; or the router logits
                have no gradient.
        """
        router_logits, self.context.router_logits = self.context.router_logits, None
        if not router_logits:
            return output
        aux_loss = self._compute(model, router_logits, self._arguments(args, kwargs))
        if aux_loss is None:
            return output
        if model.training and torch.is_grad_enabled() and hasattr(output, "log_probs"):
            raise ValueError(
                "TRL's fused LM head leaves the router's auxiliary loss out: set compute_loss = "
                "transformers.Trainer.compute_loss in a subclass of the trainer, or "
                "router_aux_loss_coef=0"
            )
        if isinstance(output, tuple):
            return (output[0] + aux_loss.to(output[0].dtype), *output[1:])
        output.loss = output.loss + aux_loss.to(output.loss.dtype)
        return output

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        # Of equal length, as torch.compile of torch 2.8 takes every zip for a strict one.
        names = self._argument_names[: len(args)]
        return dict(zip(names, args, strict=True)) | kwargs

    def _compute(
        self,
        model: Any,
        router_logits: dict[str, list[tuple[Tensor, bool]]],
        arguments: dict[str, Any],
    ) -> Tensor | None:
        """The adapters' weighted auxiliary losses, summed; None if there are none.

        Args:
            model: The transformers model, which has PEFT's configurations of its adapters.
            router_logits: What `ForwardContext.router_logits` has collected.
            arguments: The arguments of the forward.
        """
        packing, sum_over_processes = self.context.packing, self.context.sum_over_processes
        total: Tensor | None = None
        for adapter_name, layers in router_logits.items():
            config = model.peft_config[adapter_name]
            if config.router_aux_loss_coef == 0 and not _has_z_loss(config):
                continue
            if model.training and torch.is_grad_enabled():
                _check_gradient(layers)
            own = arguments if packing is None else _own(packing, adapter_name, arguments)
            first, _ = layers[0]
            mask = None
            if not config.aux_loss_over_padding:
                mask = token_mask(own.get("attention_mask"), len(first))
            if mask is not None:
                mask = mask.to(first.device).repeat(len(layers))
            # The layers may live on several devices.
            logits = torch.cat([each.to(first.device) for each, _ in layers])
            loss = _router_loss(config, logits, mask, sum_over_processes)
            loss = loss * _fraction_of_batch(own, sum_over_processes)
            total = loss if total is None else total + loss
            if packing is not None and adapter_name in packing.losses:
                packing.losses[adapter_name] = packing.losses[adapter_name] + loss.detach()
        return total


@contextmanager
def balanced_over(model: Any, sum_over_processes: SumOverProcesses) -> Iterator[None]:
    """While this lasts, the auxiliary loss is that of a batch whose rows several processes share.

    Each process computes its part, and the parts sum to what one process would have for all rows;
    so do their gradients. Therefore sum gradients over the processes; do not average them.

    Args:
        model: A model with or without MixLoRA adapters, in PEFT's wrapping or not. Its forwards
            must be given ``num_items_in_batch``, the number of scored tokens of all processes, and
            every process must run as many forwards, with the same adapters.
        sum_over_processes: Sums a tensor over the processes, as ``torch.distributed.all_reduce``
            does; called in each forward that computes a loss.
    """
    context = find_context(model) or ForwardContext()
    context.sum_over_processes = sum_over_processes
    try:
        yield
    finally:
        context.sum_over_processes = None


def token_mask(attention_mask: Tensor | None, num_tokens: int) -> Tensor | None:
    """(num_tokens,) bool, False for padding, from a (B, past + S) mask; None if all tokens count.

    Raises:
        ValueError: The mask has not two dimensions.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask of {attention_mask.dim()} dimensions: the auxiliary loss leaves out "
            "padding and needs a mask of shape (batch, sequence), or router_aux_loss_coef=0"
        )
    length = num_tokens // attention_mask.shape[0]
    return attention_mask[:, -length:].reshape(-1).bool()


def _labels(arguments: dict[str, Any]) -> Tensor | None:
    labels = arguments.get("shift_labels")
    return arguments.get("labels") if labels is None else labels


def _has_z_loss(config: Any) -> bool:
    return config.routing == "switch" and config.router_z_loss_coef > 0


def _router_loss(
    config: Any,
    router_logits: Tensor,
    mask: Tensor | None,
    sum_over_processes: SumOverProcesses | None,
) -> Tensor:
    """The losses of an adapter's kind of routing, weighted by their coefficients."""
    top_k = 1 if config.routing == "switch" else config.top_k
    top_p = config.top_p if config.routing == "top_p" else None
    loss = config.router_aux_loss_coef * load_balancing_loss(
        router_logits, top_k, mask, top_p, sum_over_processes
    )
    if _has_z_loss(config):
        loss = loss + config.router_z_loss_coef * z_loss(router_logits, mask, sum_over_processes)
    return loss


def _check_gradient(layers: list[tuple[Tensor, bool]]) -> None:
    if any(is_trained and not logits.requires_grad for logits, is_trained in layers):
        raise ValueError(
            "the router's auxiliary loss has no gradient under reentrant gradient "
            "checkpointing; set gradient_checkpointing_kwargs={'use_reentrant': False}"
        )


def _own(packing: Packing, adapter_name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that one adapter alone would be given: its rows and its number of items."""
    own = {
        name: packing.rows_of(adapter_name, value)
        if name in _ARGUMENTS_BY_ROW and value is not None
        else value
        for name, value in arguments.items()
    }
    num_items = own_num_items(arguments.get("num_items_in_batch"), adapter_name)
    return own | {"num_items_in_batch": num_items}


def _fraction_of_batch(
    arguments: dict[str, Any], sum_over_processes: SumOverProcesses | None
) -> Tensor | float:
    """The fraction of the scored tokens of the whole batch that are in this part of it."""
    num_items = arguments.get("num_items_in_batch")
    if num_items is None:
        if sum_over_processes is not None:
            raise ValueError("balanced_over: a forward needs num_items_in_batch, of all processes")
        return 1.0
    if arguments.get("shift_labels") is not None:
        scored = arguments["shift_labels"]
    else:
        scored = arguments["labels"][..., 1:]
    number = (scored != -100).sum()
    if sum_over_processes is not None:
        number = sum_over_processes(number.float().view(1)).squeeze()
    return number / num_items
