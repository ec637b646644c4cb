"""Experts by masks: all experts' A in one product, all experts' B in another, zeros in between.

It has static shapes and nothing in it waits for the device, so it serves few tokens, accelerators,
torch.compile and CUDA graphs; and it is the only fast computation of DoRA experts.

Shape legend: see plan.py. A token's experts stand in the first dimension, K.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .plan import ExpertPlan, ProjectionExperts

if TYPE_CHECKING:
    from ..families import FrozenFfn


def mix_masked(
    ffn: FrozenFfn,
    plan: ExpertPlan,
    projected: list[Tensor],
    lora_A_outputs: list[Tensor | None],
    hidden_mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The mixed inner activation, and the rank-wide input of the down projection's B.

    Args:
        ffn: The frozen FFN.
        plan: The experts and the routing of these tokens.
        projected: Output (T, O) of each frozen input projection.
        lora_A_outputs: For each input projection A x of all experts, (T, E * r), or None if it is
            not adapted.
        hidden_mask: (T, F) uint8, see `ExpertPlan.hidden_dropout_mask`.

    Returns:
        ``sum_k w_k h_k`` (T, F), and ``s w_k A_k h_k`` of each token's experts beside zeros of the
        others, (T, E * r) in the adapter's dtype; None if the down projection is not adapted.
    """
    one_hot = _scaled_one_hot(plan)
    weights = plan.routed.routing_weights.T.unsqueeze(-1)
    hidden = _hidden_per_pair(ffn, plan, one_hot, projected, lora_A_outputs)
    mixed = (hidden * weights).sum(dim=0)
    down = plan.experts.get(ffn.layout.down)
    if down is None:
        return mixed, None
    lora_A_output = _down_lora_A(plan, down, hidden, hidden_mask)
    weighted = lora_A_output * (one_hot * weights.to(one_hot.dtype)).unsqueeze(-1)
    return mixed, weighted.sum(dim=0).flatten(1)


def down_per_pair(
    ffn: FrozenFfn,
    plan: ExpertPlan,
    projected: list[Tensor],
    lora_A_outputs: list[Tensor | None],
    hidden_mask: Tensor | None,
) -> Tensor:
    """Returns the block's output, (T, D), with DoRA on the down projection.

    DoRA rescales the output of every pair, so W2 runs once for each of the K experts of a token.
    The arguments are those of `mix_masked`.
    """
    one_hot = _scaled_one_hot(plan)
    hidden = _hidden_per_pair(ffn, plan, one_hot, projected, lora_A_outputs)
    down = plan.experts[ffn.layout.down]
    lora_A_output = _down_lora_A(plan, down, hidden, hidden_mask) * one_hot.unsqueeze(-1)
    low_rank = times_B(lora_A_output.flatten(2), down)
    frozen = ffn.project(ffn.layout.down, hidden)
    outputs = down.combine(frozen, low_rank, _dora_scale_per_pair(plan, down))
    return (outputs * plan.routed.routing_weights.T.unsqueeze(-1)).sum(dim=0)


def _scaled_one_hot(plan: ExpertPlan) -> Tensor:
    """(K, T, E): s where expert e is the k-th of a token, else 0, in the adapter's dtype."""
    selected = plan.routed.selected_experts.T.unsqueeze(-1)
    zeros = torch.zeros(
        (*selected.shape[:2], plan.num_experts), dtype=plan.dtype, device=selected.device
    )
    return zeros.scatter_(-1, selected, plan.scaling)


def _hidden_per_pair(
    ffn: FrozenFfn,
    plan: ExpertPlan,
    one_hot: Tensor,
    projected: list[Tensor],
    lora_A_outputs: list[Tensor | None],
) -> Tensor:
    """The inner activation h_k of each token's experts, (K, T, F)."""
    adapted = []
    for name, frozen, output in zip(ffn.layout.inputs, projected, lora_A_outputs, strict=True):
        if output is None:
            adapted.append(frozen.expand(plan.top_k, *frozen.shape))
            continue
        experts = plan.experts[name]
        masked = output.unflatten(1, (plan.num_experts, -1)) * one_hot.unsqueeze(-1)
        low_rank = times_B(masked.flatten(2), experts)
        adapted.append(experts.combine(frozen, low_rank, _dora_scale_per_pair(plan, experts)))
    return ffn.hidden(adapted)


def _down_lora_A(
    plan: ExpertPlan, down: ProjectionExperts, hidden: Tensor, hidden_mask: Tensor | None
) -> Tensor:
    """A h_k of all experts, (K, T, E, r), after dropout."""
    inputs = hidden.to(plan.dtype)
    if hidden_mask is None:
        output = times_A(inputs, down)
    else:
        output = times_A(inputs * hidden_mask, down) / (1 - plan.dropout)
    return output.unflatten(2, (plan.num_experts, -1))


def _dora_scale_per_pair(plan: ExpertPlan, experts: ProjectionExperts) -> Tensor | None:
    """The DoRA scale of each pair's expert, (K, T, O), or None for LoRA."""
    if experts.magnitude is None:
        return None
    selected = plan.routed.selected_experts.T
    scales = experts.dora_scales().index_select(0, selected.flatten())
    return scales.unflatten(0, selected.shape)


def times_A(inputs: Tensor, experts: ProjectionExperts) -> Tensor:
    """A_e x of all experts, (..., I) -> (..., E * r)."""
    return F.linear(inputs, experts.lora_A.flatten(0, 1))


def times_B(inputs: Tensor, experts: ProjectionExperts) -> Tensor:
    """``sum_e B_e x_e``, (..., E * r) -> (..., O)."""
    return inputs @ experts.lora_B.flatten(0, 1)
