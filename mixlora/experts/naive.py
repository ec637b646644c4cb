"""The readable reference: MixLoRA of each token by itself, straight from the paper's equations.

Slow, and meant to be: every other implementation is compared with this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .plan import ExpertPlan, implementation, one_adapter_at_a_time

if TYPE_CHECKING:
    from ..families import FrozenFfn


@implementation
@one_adapter_at_a_time
def naive(ffn: FrozenFfn, hidden_states: Tensor, plan: ExpertPlan) -> Tensor:
    """``sum_k w_k E_k(x)`` over the K experts that token x is sent to.

    Args:
        ffn: The frozen FFN.
        hidden_states: (T, D).
        plan: The experts, and for each token its selected experts and their routing weights (eq. 7,
            see router.py).

    Returns:
        (T, D) in hidden_states' dtype.

    Raises:
        ValueError: The experts are to drop inputs, which this implementation does not do.

    Source: arXiv 2404.15159 eq. 6.
    """
    if plan.dropout > 0:
        raise ValueError(
            "experts_implementation='naive' has no dropout: set lora_dropout=0, or call eval()"
        )
    outputs = []
    selected_experts = plan.routed.selected_experts.tolist()
    for x, experts, weights in zip(
        hidden_states.split(1), selected_experts, plan.routed.routing_weights, strict=True
    ):
        output = torch.zeros_like(x)
        for expert, weight in zip(experts, weights, strict=True):
            projected = [adapted(ffn, plan, name, expert, x) for name in ffn.layout.inputs]
            hidden = ffn.hidden(projected)  # in a gated FFN: act(W1 x) * W3 x
            output = output + weight * adapted(ffn, plan, ffn.layout.down, expert, hidden)
        outputs.append(output.to(x.dtype))
    return torch.cat(outputs)


def adapted(ffn: FrozenFfn, plan: ExpertPlan, name: str, expert: int, x: Tensor) -> Tensor:
    """One expert's version of a frozen projection: ``W x + s B_e A_e x``, for DoRA rescaled."""
    projected, experts = ffn.project(name, x), plan.experts.get(name)
    if experts is None:
        return projected
    return experts.apply(expert, projected, x.to(experts.lora_A.dtype))
