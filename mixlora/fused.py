"""The fused forward: every frozen projection once per token, and low-rank work at LoRA's cost.

The router-weighted sum commutes with the frozen W2:
``sum_k w_k (W2 h_k + s B_k A_k h_k) = W2 (sum_k w_k h_k) + s sum_k w_k B_k A_k h_k``,
so a block is three steps: the input projections (shared), the mixed inner activation, and W2
(shared). All experts' A is one product where they read the same input; scales and mixing weights
are applied where rows are r wide.

The middle step has two computations, chosen by shape. `mix_by_expert` takes one expert's tokens at
a time, while they are in cache. The masked one, in this file, has static shapes and nothing that
waits for the device: for few tokens, accelerators, torch.compile and CUDA graphs; and it is the one
that knows DoRA. Both keep for the backward pass about what LoRA keeps, and compute the rest again.

Shape legend: see dispatch.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .by_expert import mix_by_expert
from .dispatch import FrozenFfn, Mixture, Share
from .experts import ProjectionExperts

#: A CPU goes by expert from this many pairs per expert: below, the loop's own cost is more than the
#: masked products' extra work.
MIN_PAIRS_PER_EXPERT = 4
#: From more experts per pair than this, the pairs' experts are copied together and the rest is left
#: unread: a copy moves three times what it copies.
MIN_EXPERTS_PER_PAIR = 4


def fused(ffn: FrozenFfn, hidden_states: Tensor, shares: Sequence[Share]) -> Tensor:
    """As `moe.vanilla`, with every frozen projection computed once per token where that is exact.

    DoRA scales a projection's output per expert, so with DoRA on the down projection W2 runs once
    per (token, expert) pair, in one product; the input projections are shared all the same.
    """
    down = ffn.layout.down
    if len(shares) > 1 and any(_scales_outputs(share.mixture, down) for share in shares):
        tokens = hidden_states.split([share.num_tokens for share in shares])
        each = zip(tokens, shares, strict=True)
        return torch.cat([fused(ffn, part, [share]) for part, share in each])

    projected = [ffn.project(name, hidden_states) for name in ffn.layout.inputs]
    mixture = shares[0].mixture
    if mixture is not None and _scales_outputs(mixture, down):
        return _down_per_pair(ffn, mixture, hidden_states, projected).to(hidden_states.dtype)

    sizes = [share.num_tokens for share in shares]
    parts = zip(_split(hidden_states, sizes), *(_split(p, sizes) for p in projected), strict=True)
    mixed, low_rank = [], []
    for share, (tokens, *bases) in zip(shares, parts, strict=True):
        hidden, low = _mix(ffn, share.mixture, tokens, bases)
        mixed.append(hidden.to(bases[0].dtype))
        low_rank.append(low)
    outputs = _split(ffn.project(down, _join(mixed)), sizes)
    added = [
        output if low is None else output + low
        for output, low in zip(outputs, low_rank, strict=True)
    ]
    return _join(added).to(hidden_states.dtype)


def _mix(
    ffn: FrozenFfn, mixture: Mixture | None, tokens: Tensor, projected: list[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """``sum_k w_k h_k`` (T, F), and the low-rank part of the output (T, D) if W2 is adapted."""
    if mixture is None:
        return ffn.hidden(projected), None
    num_pairs = len(tokens) * mixture.top_k
    if num_pairs * MIN_EXPERTS_PER_PAIR < mixture.num_experts and not mixture.has_dora:
        mixture = mixture.per_pair()
    reduced = _reduce(ffn, mixture, tokens)
    kept = mixture.kept_units(ffn.layout.down, tokens)
    arguments = (ffn, mixture, projected, reduced, kept)
    if not _is_masked(mixture, tokens):
        mixed, spread = mix_by_expert(*arguments)
    elif torch.compiler.is_compiling() or not torch.is_grad_enabled():
        mixed, spread = _mix_masked(*arguments)
    else:
        # Its (K, T, F) intermediates are computed again in the backward pass.
        mixed, spread = checkpoint(
            _mix_masked, *arguments, use_reentrant=False, preserve_rng_state=False
        )
    down = mixture.experts.get(ffn.layout.down)
    low = None if down is None or spread is None else _times_B(spread, down)
    return mixed, _with_excess_bias(ffn, mixture, low)


def _with_excess_bias(ffn: FrozenFfn, mixture: Mixture, low: Tensor | None) -> Tensor | None:
    """Adds ``(sum_k w_k - 1) b``: W2 runs once, and so adds its bias once, whatever w is."""
    bias = getattr(getattr(ffn.mlp, ffn.layout.down), "bias", None)
    if mixture.routing.taken is None or bias is None:
        return low
    excess = (mixture.routing.weights.sum(dim=1, keepdim=True) - 1) * bias
    return excess if low is None else low + excess


def _is_masked(mixture: Mixture, tokens: Tensor) -> bool:
    """Whether the masked computation is the faster one, or the only one."""
    if torch.compiler.is_compiling() or mixture.has_dora:
        return True
    num_experts, top_k = mixture.num_experts, mixture.top_k
    if tokens.device.type == "cpu":
        return len(tokens) * top_k < MIN_PAIRS_PER_EXPERT * num_experts
    # An accelerator rather multiplies by zeros than waits, until they are as many as the numbers
    # that it multiplies in the frozen projections.
    return top_k * num_experts * mixture.rank <= tokens.shape[1]


def _mix_masked(
    ffn: FrozenFfn,
    mixture: Mixture,
    projected: list[Tensor],
    reduced: list[Tensor | None],
    kept: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """As `mix_by_expert`."""
    chosen = mixture.chosen()
    weights = mixture.routing.weights.T.unsqueeze(-1)
    hidden = _pair_hidden(ffn, mixture, chosen, projected, reduced)
    mixed = (hidden * weights).sum(dim=0)
    down = mixture.experts.get(ffn.layout.down)
    if down is None:
        return mixed, None
    low = _pair_low(mixture, down, hidden, kept)
    return mixed, (low * (chosen * weights.to(chosen.dtype)).unsqueeze(-1)).sum(dim=0).flatten(1)


def _down_per_pair(
    ffn: FrozenFfn, mixture: Mixture, tokens: Tensor, projected: list[Tensor]
) -> Tensor:
    """The block's output (T, D) with DoRA on W2, which scales every pair's output."""
    reduced = _reduce(ffn, mixture, tokens)
    kept = mixture.kept_units(ffn.layout.down, tokens)
    chosen = mixture.chosen()
    hidden = _pair_hidden(ffn, mixture, chosen, projected, reduced)
    down = mixture.experts[ffn.layout.down]
    low = _pair_low(mixture, down, hidden, kept) * chosen.unsqueeze(-1)
    delta = _times_B(low.flatten(2), down)
    outputs = down.combine(ffn.project(ffn.layout.down, hidden), delta, _pair_scale(mixture, down))
    return (outputs * mixture.routing.weights.T.unsqueeze(-1)).sum(dim=0)


def _pair_hidden(
    ffn: FrozenFfn,
    mixture: Mixture,
    chosen: Tensor,
    projected: list[Tensor],
    reduced: list[Tensor | None],
) -> Tensor:
    """h_k of each token, (K, T, F)."""
    adapted = []
    for name, base, low in zip(ffn.layout.inputs, projected, reduced, strict=True):
        if low is None:
            adapted.append(base.expand(mixture.top_k, *base.shape))
            continue
        experts = mixture.experts[name]
        low = low.unflatten(1, (mixture.num_experts, -1)) * chosen.unsqueeze(-1)
        delta = _times_B(low.flatten(2), experts)
        adapted.append(experts.combine(base, delta, _pair_scale(mixture, experts)))
    return ffn.hidden(adapted)


def _pair_low(
    mixture: Mixture, down: ProjectionExperts, hidden: Tensor, kept: Tensor | None
) -> Tensor:
    """A h_k of all experts, (K, T, E, r), after dropout."""
    seen = hidden.to(down.lora_A.dtype)
    if kept is None:
        low = _times_A(seen, down)
    else:
        low = _times_A(seen * kept, down) / (1 - mixture.dropout)
    return low.unflatten(2, (mixture.num_experts, -1))


def _pair_scale(mixture: Mixture, experts: ProjectionExperts) -> Tensor | None:
    """The DoRA scale of each pair's expert, (K, T, O), or None for LoRA."""
    if experts.magnitude is None:
        return None
    selected = mixture.routing.selected.T
    scales = experts.dora_scales().index_select(0, selected.flatten())
    return scales.unflatten(0, selected.shape)


def _reduce(ffn: FrozenFfn, mixture: Mixture, tokens: Tensor) -> list[Tensor | None]:
    """A x of all experts, (T, E * r), for each input projection; None where it is not adapted.

    For K of E experts that is E / K times the work of the chosen ones, and still less time than E
    separate products.
    """
    inputs = mixture.drop(tokens)
    experts = [mixture.experts.get(name) for name in ffn.layout.inputs]
    return [None if each is None else _times_A(inputs, each) for each in experts]


def _times_A(inputs: Tensor, experts: ProjectionExperts) -> Tensor:
    return F.linear(inputs, experts.lora_A.flatten(0, 1))


def _times_B(spread: Tensor, experts: ProjectionExperts) -> Tensor:
    """(..., E * r) -> (..., O), summed over the experts."""
    return spread @ experts.lora_B.flatten(0, 1)


def _scales_outputs(mixture: Mixture | None, down: str) -> bool:
    return mixture is not None and mixture.has_dora and down in mixture.experts


def _split(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    return [rows] if len(sizes) == 1 else rows.split(sizes)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
