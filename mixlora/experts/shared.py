"""The paper's two forwards: an expert at a time, without and with its optimisation I."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .plan import ExpertPlan, implementation, one_adapter_at_a_time, sort_by_expert

if TYPE_CHECKING:
    from ..families import FrozenFfn


@implementation
@one_adapter_at_a_time
def vanilla(ffn: FrozenFfn, hidden_states: Tensor, plan: ExpertPlan) -> Tensor:
    """Every expert's whole FFN on the tokens that are sent to it: the paper's plain forward.

    Arguments and result are those of `naive.naive`.
    """
    return _run_experts(ffn, hidden_states, plan, {})


@implementation
def shared(ffn: FrozenFfn, hidden_states: Tensor, plans: Sequence[ExpertPlan]) -> Tensor:
    """As `vanilla`, with W1 x and W3 x computed once for all tokens, experts and adapters.

    Source: arXiv 2404.15159, optimisation I.
    """
    sizes = [plan.num_tokens for plan in plans]
    names = ffn.layout.inputs
    projected = [ffn.project(name, hidden_states).split(sizes) for name in names]
    outputs = []
    for part, plan, *own in zip(hidden_states.split(sizes), plans, *projected, strict=True):
        if plan.experts:
            outputs.append(_run_experts(ffn, part, plan, dict(zip(names, own, strict=True))))
        else:
            outputs.append(ffn.mlp(part))
    return torch.cat(outputs)


def _run_experts(
    ffn: FrozenFfn, hidden_states: Tensor, plan: ExpertPlan, computed: Mapping[str, Tensor]
) -> Tensor:
    """One adapter's tokens (T, D), expert by expert.

    Args:
        ffn: The frozen FFN.
        hidden_states: (T, D).
        plan: The experts and the routing of these tokens.
        computed: Input projection name -> its output (T, O) for all tokens, if already computed.
    """
    pairs = sort_by_expert(plan.routed, plan.num_experts)
    down = ffn.layout.down
    adapter_inputs = plan.drop_inputs(hidden_states)
    hidden_mask = plan.hidden_dropout_mask(down, hidden_states.device)
    outputs = []
    # Experts without tokens run as well, so that every expert has a (zero) gradient, which
    # distributed training relies on.
    for expert, rows in pairs.slices():
        tokens = pairs.token[rows]
        projected = []
        for name in ffn.layout.inputs:
            if name in computed:
                frozen = computed[name][tokens]
            else:
                frozen = ffn.project(name, hidden_states[tokens])
            projected.append(_adapt(plan, name, expert, frozen, adapter_inputs[tokens]))
        hidden = ffn.hidden(projected)
        adapter_hidden = hidden.to(plan.dtype)
        if hidden_mask is not None:
            adapter_hidden = adapter_hidden * hidden_mask[tokens] / (1 - plan.dropout)
        output = _adapt(plan, down, expert, ffn.project(down, hidden), adapter_hidden)
        outputs.append(output * pairs.weight[rows].unsqueeze(-1))
    weighted = torch.cat(outputs)
    total = torch.zeros(hidden_states.shape, dtype=weighted.dtype, device=weighted.device)
    return total.index_add(0, pairs.token, weighted).to(hidden_states.dtype)


def _adapt(plan: ExpertPlan, name: str, expert: int, frozen: Tensor, inputs: Tensor) -> Tensor:
    """One expert's output (N, O) from the frozen projection's (N, O) and the adapter's inputs."""
    experts = plan.experts.get(name)
    return frozen if experts is None else experts.apply(expert, frozen, inputs)
