"""The MixLoRA block in three forwards of one signature and equal results.

- `vanilla`: the readable reference; every expert runs the whole FFN on its own tokens (eq. 6).
- `shared`: the paper's optimisation I; the input projections W1 x and W3 x run once for all tokens.
- `fused`: ours; W2 runs once per token as well, which the paper holds impossible. The
  router-weighted sum commutes with the frozen W2:
  ``sum_k w_k (W2 h_k + s B_k A_k h_k) = W2 (sum_k w_k h_k) + s sum_k w_k B_k A_k h_k``.

Shape legend: T tokens, D hidden size, F inner size, E experts, K experts per token, N = T * K pairs
of a token and one of its experts, sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .experts import ProjectionExperts
from .ffn import FfnLayout
from .router import Routing


@dataclass(frozen=True)
class ExpertFfn:
    """One frozen FFN and the experts that share it.

    Attributes:
        mlp: The frozen transformers FFN module.
        layout: How it is wired.
        experts: Projection name -> its experts; a projection without an entry is not adapted.
        dropout: Probability of dropping an adapter input; 0 outside training. One mask is drawn per
            projection input, so the experts of a token see the same input, in all three forwards.
    """

    mlp: nn.Module
    layout: FfnLayout
    experts: dict[str, ProjectionExperts]
    dropout: float

    @property
    def num_experts(self) -> int:
        return next(iter(self.experts.values())).lora_A.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The adapters' dtype, float32 over a half-precision base."""
        return next(iter(self.experts.values())).lora_A.dtype

    def project(self, name: str, inputs: Tensor) -> Tensor:
        """The frozen projection: (N, I) -> (N, O)."""
        return getattr(self.mlp, name)(inputs)

    def adapt(self, name: str, expert: int, projected: Tensor, inputs: Tensor) -> Tensor:
        """One expert's version of a frozen projection's output (N, O)."""
        experts = self.experts.get(name)
        return projected if experts is None else experts.apply(expert, projected, inputs)

    def drop(self, inputs: Tensor) -> Tensor:
        """Adapter inputs in the adapters' dtype, after dropout."""
        inputs = inputs.to(self.dtype)
        return F.dropout(inputs, self.dropout) if self.dropout > 0 else inputs


@dataclass(frozen=True)
class Dispatch:
    """The N = T * K (token, expert) pairs of a routing, sorted by expert, then by token.

    Attributes:
        token: (N,) int64, the token of each pair.
        expert: (N,) int64, its expert.
        weight: (N,) its mixing weight.
        counts: (E,) int64, pairs per expert.
    """

    token: Tensor
    expert: Tensor
    weight: Tensor
    counts: Tensor

    @classmethod
    def of(cls, routing: Routing, num_experts: int) -> Dispatch:
        top_k = routing.selected.shape[1]
        flat = routing.selected.flatten()
        order = flat.argsort(stable=True)
        expert = flat[order]
        counts = F.one_hot(expert, num_experts).sum(dim=0)
        return cls(order // top_k, expert, routing.weights.flatten()[order], counts)

    def groups(self) -> Iterator[tuple[int, slice]]:
        """(expert, its rows), for every expert, those without tokens included.

        Empty groups are not skipped: running them gives every expert a (zero) gradient, which
        distributed training relies on.
        """
        start = 0
        for expert, count in enumerate(self.counts.tolist()):
            yield expert, slice(start, start + count)
            start += count

    def sum_per_token(self, rows: Tensor, num_tokens: int) -> Tensor:
        """Router-weighted sum (T, D) of rows (N, D) over each token's experts, float32 or wider."""
        weighted = rows * self.weight.unsqueeze(-1)
        out = torch.zeros(num_tokens, rows.shape[1], dtype=weighted.dtype, device=rows.device)
        return out.index_add(0, self.token, weighted)


def vanilla(ffn: ExpertFfn, hidden_states: Tensor, routing: Routing) -> Tensor:
    """Every expert's whole FFN on the tokens it was given.

    Args:
        ffn: The shared FFN and its experts.
        hidden_states: (T, D).
        routing: Of the same T tokens.

    Returns:
        (T, D) in hidden_states' dtype.
    """
    return _per_expert(ffn, hidden_states, routing, share_inputs=False)


def shared(ffn: ExpertFfn, hidden_states: Tensor, routing: Routing) -> Tensor:
    """As `vanilla`, with the frozen input projections computed once for all tokens."""
    return _per_expert(ffn, hidden_states, routing, share_inputs=True)


def _per_expert(
    ffn: ExpertFfn, hidden_states: Tensor, routing: Routing, share_inputs: bool
) -> Tensor:
    plan = Dispatch.of(routing, ffn.num_experts)
    layout, down = ffn.layout, ffn.layout.down
    adapter_inputs = ffn.drop(hidden_states)
    common = {name: ffn.project(name, hidden_states) for name in layout.inputs if share_inputs}
    inner_mask: Tensor | None = None
    outputs = []
    for expert, rows in plan.groups():
        tokens = plan.token[rows]
        projected = []
        for name in layout.inputs:
            base = (
                common[name][tokens] if share_inputs else ffn.project(name, hidden_states[tokens])
            )
            projected.append(ffn.adapt(name, expert, base, adapter_inputs[tokens]))
        hidden = layout.hidden(ffn.mlp, projected)
        if inner_mask is None:
            inner_mask = ffn.drop(hidden.new_ones(len(plan.token), hidden.shape[1]))
        adapter_hidden = hidden.to(ffn.dtype) * inner_mask[rows]
        outputs.append(ffn.adapt(down, expert, ffn.project(down, hidden), adapter_hidden))
    return plan.sum_per_token(torch.cat(outputs), len(hidden_states)).to(hidden_states.dtype)


def fused(ffn: ExpertFfn, hidden_states: Tensor, routing: Routing) -> Tensor:
    """As `vanilla`, with every frozen projection computed once per token where that is exact.

    DoRA scales a projection's output per expert, so with DoRA on the down projection W2 runs once
    per (token, expert) pair, in one product; the input projections are shared all the same.
    """
    plan = Dispatch.of(routing, ffn.num_experts)
    num_tokens, down = len(hidden_states), ffn.layout.down
    adapter_inputs = ffn.drop(hidden_states)
    projected = []
    for name in ffn.layout.inputs:
        base = ffn.project(name, hidden_states)[plan.token]
        experts = ffn.experts.get(name)
        if experts is not None:
            base = experts.combine(
                base, _shared_input_low_rank(experts, adapter_inputs, plan), _scales(experts, plan)
            )
        projected.append(base)
    hidden = ffn.layout.hidden(ffn.mlp, projected)

    adapter_hidden = ffn.drop(hidden)
    experts = ffn.experts.get(down)
    if experts is not None and experts.magnitude is not None:
        low_rank = _low_rank(experts, adapter_hidden, plan)
        outputs = experts.combine(ffn.project(down, hidden), low_rank, _scales(experts, plan))
        return plan.sum_per_token(outputs, num_tokens).to(hidden_states.dtype)

    mixed = plan.sum_per_token(hidden, num_tokens).to(hidden.dtype)
    output = ffn.project(down, mixed)
    if experts is not None:
        output = output + plan.sum_per_token(_low_rank(experts, adapter_hidden, plan), num_tokens)
    return output.to(hidden_states.dtype)


def _scales(experts: ProjectionExperts, plan: Dispatch) -> Tensor | None:
    """The DoRA scale of each pair's expert, (N, O), or None for LoRA."""
    return None if experts.magnitude is None else experts.dora_scales()[plan.expert]


def _shared_input_low_rank(experts: ProjectionExperts, inputs: Tensor, plan: Dispatch) -> Tensor:
    """s B_e A_e x of each pair, (N, O), where the experts of a token read the same input (T, I).

    A of all experts is one product, (T, E * r): for K of E experts that is E / K times the work of
    the chosen ones, and still less time than E separate products.
    """
    num_experts, rank, _ = experts.lora_A.shape
    reduced = F.linear(inputs, experts.lora_A.flatten(0, 1)).unflatten(1, (num_experts, rank))
    # Scaled while it is r wide, not O wide.
    reduced = reduced[plan.token, plan.expert] * experts.scaling
    return _grouped(reduced, experts.lora_B, plan)


def _low_rank(experts: ProjectionExperts, inputs: Tensor, plan: Dispatch) -> Tensor:
    """s B_e A_e x of each pair, (N, O), for inputs (N, I) of their own."""
    reduced = _grouped(inputs, experts.lora_A, plan) * experts.scaling
    return _grouped(reduced, experts.lora_B, plan)


def _grouped(rows: Tensor, weights: Tensor, plan: Dispatch) -> Tensor:
    """rows (N, I) times the transposed weight (O, I) of each row's expert; weights is (E, O, I)."""
    parts = rows.split(plan.counts.tolist())
    return torch.cat([F.linear(part, weights[expert]) for expert, part in enumerate(parts)])


FORWARDS: dict[str, Callable[[ExpertFfn, Tensor, Routing], Tensor]] = {
    "vanilla": vanilla,
    "shared": shared,
    "fused": fused,
}
