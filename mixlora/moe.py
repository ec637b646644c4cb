"""The MixLoRA block in three forwards of one signature and equal results.

- `vanilla`: the readable reference; every expert runs the whole FFN on its own tokens (eq. 6).
- `shared`: the paper's optimisation I; the input projections W1 x and W3 x run once for all tokens.
- `fused`: ours, in fused.py; W2 runs once per token as well, which the paper holds impossible.

A batch may be packed: consecutive shares of its tokens go through different adapters, or none (the
paper's optimisation II, Algorithm 1). Shape legend: see dispatch.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .dispatch import Dispatch, FrozenFfn, Mixture, Share
from .fused import fused

Forward = Callable[[FrozenFfn, Tensor, Sequence[Share]], Tensor]


def vanilla(ffn: FrozenFfn, hidden_states: Tensor, shares: Sequence[Share]) -> Tensor:
    """Every expert's whole FFN on the tokens it was given.

    Args:
        ffn: The frozen FFN.
        hidden_states: (T, D).
        shares: Whose tokens they are, in order; their sizes add up to T.

    Returns:
        (T, D) in hidden_states' dtype.
    """
    parts = hidden_states.split([share.num_tokens for share in shares])
    return torch.cat([_per_expert(ffn, *each, None) for each in zip(parts, shares, strict=True)])


def shared(ffn: FrozenFfn, hidden_states: Tensor, shares: Sequence[Share]) -> Tensor:
    """As `vanilla`, with the frozen input projections computed once for all tokens and adapters."""
    sizes = [share.num_tokens for share in shares]
    common = [ffn.project(name, hidden_states).split(sizes) for name in ffn.layout.inputs]
    each = zip(hidden_states.split(sizes), shares, zip(*common, strict=True), strict=True)
    return torch.cat([_per_expert(ffn, part, share, bases) for part, share, bases in each])


def _per_expert(
    ffn: FrozenFfn, hidden_states: Tensor, share: Share, common: Sequence[Tensor] | None
) -> Tensor:
    """One share, expert by expert; common holds its input projections if they are computed."""
    mixture = share.mixture
    if mixture is None:
        return ffn.mlp(hidden_states)
    plan = Dispatch.of(mixture.routing, mixture.num_experts)
    layout, down = ffn.layout, ffn.layout.down
    adapter_inputs = mixture.drop(hidden_states)
    kept = mixture.kept_units(down, hidden_states)
    outputs = []
    # Experts without tokens run as well: so every expert has a (zero) gradient, which distributed
    # training relies on.
    for expert, rows in plan.groups():
        tokens = plan.token[rows]
        projected = []
        for index, name in enumerate(layout.inputs):
            if common is None:
                base = ffn.project(name, hidden_states[tokens])
            else:
                base = common[index][tokens]
            projected.append(_adapt(mixture, name, expert, base, adapter_inputs[tokens]))
        hidden = ffn.hidden(projected)
        seen = hidden.to(mixture.dtype)
        if kept is not None:
            seen = seen * kept[tokens] / (1 - mixture.dropout)
        output = _adapt(mixture, down, expert, ffn.project(down, hidden), seen)
        outputs.append(output * plan.weight[rows].unsqueeze(-1))
    weighted = torch.cat(outputs)
    total = torch.zeros(hidden_states.shape, dtype=weighted.dtype, device=weighted.device)
    return total.index_add(0, plan.token, weighted).to(hidden_states.dtype)


def _adapt(mixture: Mixture, name: str, expert: int, projected: Tensor, inputs: Tensor) -> Tensor:
    """One expert's version of a frozen projection's output (N, O)."""
    experts = mixture.experts.get(name)
    return projected if experts is None else experts.apply(expert, projected, inputs)


FORWARDS: dict[str, Forward] = {"vanilla": vanilla, "shared": shared, "fused": fused}
