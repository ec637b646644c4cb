"""Every frozen projection once per token, and low-rank work at LoRA's cost.

The router-weighted sum commutes with the frozen W2:
``sum_k w_k (W2 h_k + s B_k A_k h_k) = W2 (sum_k w_k h_k) + s sum_k w_k B_k A_k h_k``.
So a block has three steps: the input projections, once per token; the mixed inner activation
``sum_k w_k h_k``; and W2, once per token. All experts' A are one product where they read the same
input; scales and routing weights are applied where rows are only r wide.

The middle step has two computations. `grouped` takes one expert's tokens at a time; `masked` has
static shapes and knows DoRA. Both keep for the backward pass about what LoRA keeps and compute the
rest again. ``auto`` takes the faster one, by shape.

DoRA on the down projection rescales the output of each expert, so that W2 cannot be shared; then it
runs once for each expert of a token, in one product.

Shape legend: see plan.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..router import Routing
from .grouped import mix_grouped
from .masked import down_per_pair, mix_masked, times_A, times_B
from .plan import ExpertPlan, implementation

if TYPE_CHECKING:
    from ..families import FrozenFfn

#: On a CPU tokens are grouped from this many pairs per expert on. Below, the loop over the experts
#: costs more than the masked products' extra work.
MIN_PAIRS_PER_EXPERT = 4
#: From more experts per pair than this, the selected experts are copied together and the others are
#: not read. A copy moves three times what it copies.
MIN_EXPERTS_PER_PAIR = 4


@implementation
def auto(ffn: FrozenFfn, hidden_states: Tensor, plans: Sequence[ExpertPlan]) -> Tensor:
    """`masked` or `grouped`, whichever is faster for each adapter's tokens."""
    return _fused(ffn, hidden_states, plans, _is_masked_faster)


@implementation
def masked(ffn: FrozenFfn, hidden_states: Tensor, plans: Sequence[ExpertPlan]) -> Tensor:
    """All experts at once with zeros for those that are not selected, see masked.py."""
    return _fused(ffn, hidden_states, plans, lambda plan, tokens: True)


@implementation
def grouped(ffn: FrozenFfn, hidden_states: Tensor, plans: Sequence[ExpertPlan]) -> Tensor:
    """One expert's tokens at a time, see grouped.py.

    Raises:
        ValueError: An adapter has DoRA experts, which this implementation cannot compute.
    """
    if any(plan.has_dora for plan in plans):
        raise ValueError("experts_implementation='grouped' cannot compute DoRA experts")
    return _fused(ffn, hidden_states, plans, lambda plan, tokens: False)


def _is_masked_faster(plan: ExpertPlan, tokens: Tensor) -> bool:
    """Whether the masked computation of tokens (T, D) is the faster one, or the only one."""
    if torch.compiler.is_compiling() or plan.has_dora:
        return True
    if tokens.device.type == "cpu":
        return len(tokens) * plan.top_k < MIN_PAIRS_PER_EXPERT * plan.num_experts
    # An accelerator would rather multiply by zeros than wait, until the zeros are as many as the
    # numbers that it multiplies in the frozen projections.
    return plan.top_k * plan.num_experts * plan.rank <= tokens.shape[1]


def _fused(
    ffn: FrozenFfn,
    hidden_states: Tensor,
    plans: Sequence[ExpertPlan],
    is_masked: Callable[[ExpertPlan, Tensor], bool],
) -> Tensor:
    """The block's output (T, D).

    Args:
        ffn: The frozen FFN.
        hidden_states: (T, D).
        plans: The adapters' parts, in the order of the tokens.
        is_masked: Whether the middle step of a plan's tokens is `mix_masked` or `mix_grouped`.
    """
    down = ffn.layout.down
    if len(plans) > 1 and any(plan.has_dora and down in plan.experts for plan in plans):
        parts = hidden_states.split([plan.num_tokens for plan in plans])
        each = zip(parts, plans, strict=True)
        return torch.cat([_fused(ffn, part, [plan], is_masked) for part, plan in each])

    projected = [ffn.project(name, hidden_states) for name in ffn.layout.inputs]
    if plans[0].has_dora and down in plans[0].experts:
        adapter = _adapter_inputs(ffn, plans[0], hidden_states)
        return down_per_pair(ffn, plans[0], projected, *adapter).to(hidden_states.dtype)

    sizes = [plan.num_tokens for plan in plans]
    columns = _split(hidden_states, sizes), *(_split(each, sizes) for each in projected)
    mixed, low_rank = [], []
    for plan, tokens, *own in zip(plans, *columns, strict=True):
        hidden, added = _mix(ffn, plan, tokens, own, is_masked)
        mixed.append(hidden.to(own[0].dtype))
        low_rank.append(added)
    frozen = _split(ffn.project(down, _join(mixed)), sizes)
    outputs = [
        output if added is None else output + added
        for output, added in zip(frozen, low_rank, strict=True)
    ]
    return _join(outputs).to(hidden_states.dtype)


def _mix(
    ffn: FrozenFfn,
    plan: ExpertPlan,
    tokens: Tensor,
    projected: list[Tensor],
    is_masked: Callable[[ExpertPlan, Tensor], bool],
) -> tuple[Tensor, Tensor | None]:
    """``sum_k w_k h_k`` (T, F) of one adapter's tokens, and what is to be added to W2's output.

    The second, (T, D), is the low-rank part; None if the down projection is not adapted.
    """
    if not plan.experts:
        return ffn.hidden(projected), None
    num_pairs = len(tokens) * plan.top_k
    if num_pairs * MIN_EXPERTS_PER_PAIR < plan.num_experts and not plan.has_dora:
        plan = _copy_selected_experts(plan)
    arguments = (ffn, plan, projected, *_adapter_inputs(ffn, plan, tokens))
    if not is_masked(plan, tokens):
        mixed, lora_B_input = mix_grouped(*arguments)
    elif torch.compiler.is_compiling() or not torch.is_grad_enabled():
        mixed, lora_B_input = mix_masked(*arguments)
    else:
        # Its (K, T, F) intermediates are computed again in the backward pass.
        mixed, lora_B_input = checkpoint(
            mix_masked, *arguments, use_reentrant=False, preserve_rng_state=False
        )
    down = plan.experts.get(ffn.layout.down)
    low_rank = None if down is None or lora_B_input is None else times_B(lora_B_input, down)
    return mixed, _with_excess_bias(ffn, plan, low_rank)


def _adapter_inputs(
    ffn: FrozenFfn, plan: ExpertPlan, tokens: Tensor
) -> tuple[list[Tensor | None], Tensor | None]:
    """What `mix_masked` and `mix_grouped` need beside the frozen projections.

    Returns:
        For each input projection A x of all experts, (T, E * r), or None if it is not adapted; and
        the dropout mask of the down projection's adapter. A x of all E experts is E / K times the
        work of the K selected ones, and still takes less time than E separate products.
    """
    inputs = plan.drop_inputs(tokens)
    experts = [plan.experts.get(name) for name in ffn.layout.inputs]
    lora_A_outputs = [None if each is None else times_A(inputs, each) for each in experts]
    return lora_A_outputs, plan.hidden_dropout_mask(ffn.layout.down, tokens.device)


def _copy_selected_experts(plan: ExpertPlan) -> ExpertPlan:
    """The same plan as if each of the T * K pairs had an expert of its own; LoRA only."""
    selected = plan.routed.selected_experts
    flat = selected.flatten()
    experts = {
        name: replace(
            each,
            lora_A=each.lora_A.index_select(0, flat),
            lora_B=each.lora_B.index_select(0, flat),
        )
        for name, each in plan.experts.items()
    }
    own = torch.arange(len(flat), device=flat.device).view_as(selected)
    # Not by `_replace`, which torch.compile of torch 2.8 cannot follow.
    routed = plan.routed
    routing = Routing(
        routed.router_logits, routed.routing_weights, own, selection_mask=routed.selection_mask
    )
    return replace(plan, experts=experts, routing=routing)


def _with_excess_bias(ffn: FrozenFfn, plan: ExpertPlan, low_rank: Tensor | None) -> Tensor | None:
    """Add ``(sum_k w_k - 1) b``: W2 runs once and so adds its bias once, whatever the weights."""
    bias = getattr(getattr(ffn.mlp, ffn.layout.down), "bias", None)
    if plan.routed.selection_mask is None or bias is None:
        return low_rank
    excess = (plan.routed.routing_weights.sum(dim=1, keepdim=True) - 1) * bias
    return excess if low_rank is None else low_rank + excess


def _split(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    return [rows] if len(sizes) == 1 else rows.split(sizes)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
