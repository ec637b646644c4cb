"""What the forwards of a MixLoRA block work on: the frozen FFN, each adapter's share of the tokens,
and the pairs of a token and one of its experts.

Shape legend: T tokens, D hidden size, F inner size, E experts, K selections per token, N pairs of a
token and one of its experts, sorted by expert: T * K, less those that the routing does not take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .experts import ProjectionExperts
from .ffn import FfnLayout
from .router import Routing


@dataclass(frozen=True)
class FrozenFfn:
    """The transformers FFN module that the experts share, and how it is wired."""

    mlp: nn.Module
    layout: FfnLayout

    def project(self, name: str, inputs: Tensor) -> Tensor:
        """One frozen projection: (..., I) -> (..., O)."""
        return getattr(self.mlp, name)(inputs)

    def hidden(self, projected: list[Tensor]) -> Tensor:
        """The inner activation (..., F) from the outputs of the input projections."""
        return self.layout.hidden(self.mlp, projected)


@dataclass(frozen=True)
class Mixture:
    """One adapter's experts, and where they are to send a batch of tokens.

    Attributes:
        experts: Projection name -> its experts; a projection without an entry is not adapted.
        routing: Of the tokens.
        dropout: Probability of dropping an adapter input; 0 outside training. One mask is drawn per
            projection input of a token, so a token's experts drop the same units, and all forwards
            draw the same masks.
    """

    experts: dict[str, ProjectionExperts]
    routing: Routing
    dropout: float

    @property
    def _any_experts(self) -> ProjectionExperts:
        # The projections of an adapter agree in all but their sizes.
        return next(iter(self.experts.values()))

    @property
    def num_experts(self) -> int:
        """E."""
        return self._any_experts.lora_A.shape[0]

    @property
    def rank(self) -> int:
        """r."""
        return self._any_experts.lora_A.shape[1]

    @property
    def top_k(self) -> int:
        """K."""
        return self.routing.selected.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The adapter's dtype, float32 over a half-precision base."""
        return self._any_experts.lora_A.dtype

    @property
    def has_dora(self) -> bool:
        """Whether the experts are DoRA's."""
        return self._any_experts.magnitude is not None

    def chosen(self) -> Tensor:
        """(K, T, E): s where expert e is the k-th of a token, else 0, in the adapter's dtype."""
        selected = self.routing.selected.T.unsqueeze(-1)
        zeros = torch.zeros(
            (*selected.shape[:2], self.num_experts), dtype=self.dtype, device=selected.device
        )
        return zeros.scatter_(-1, selected, self._any_experts.scaling)

    def drop(self, inputs: Tensor) -> Tensor:
        """Adapter inputs in the adapter's dtype, after dropout."""
        inputs = inputs.to(self.dtype)
        if self.dropout == 0:
            return inputs
        return inputs * _kept(inputs.shape, self.dropout, inputs.device) / (1 - self.dropout)

    def kept_units(self, down: str, tokens: Tensor) -> Tensor | None:
        """Which inner units (T, F) of each token the adapter of the down projection sees.

        uint8, 0 where dropout hides a unit and else 1; None without dropout, or without such an
        adapter. What is kept is still to be divided by 1 - dropout.
        """
        if self.dropout == 0 or down not in self.experts:
            return None
        inner_size = self.experts[down].lora_A.shape[2]
        return _kept(torch.Size((len(tokens), inner_size)), self.dropout, tokens.device)

    def per_pair(self) -> Mixture:
        """The same mixture as if each of the T * K pairs had an expert of its own; LoRA only.

        For so few tokens that T * K < E: the experts that no token chose are then not even read.
        """
        selected = self.routing.selected
        flat = selected.flatten()
        experts = {
            name: replace(
                each,
                lora_A=each.lora_A.index_select(0, flat),
                lora_B=each.lora_B.index_select(0, flat),
            )
            for name, each in self.experts.items()
        }
        own = torch.arange(len(flat), device=flat.device).view_as(selected)
        return replace(self, experts=experts, routing=self.routing._replace(selected=own))


def _kept(shape: torch.Size, dropout: float, device: torch.device) -> Tensor:
    """uint8, 0 with probability dropout (to 2^-16) and else 1, of torch's generator.

    16 random bits a unit: a quarter of the numbers, and on a CPU of the time, of ``bernoulli_``.
    Multiplying by bytes is in turn several times as fast there as filling by a bool mask.
    """
    if torch.compiler.is_compiling():  # it cannot follow random_, and draws inside its kernels
        return torch.rand(shape, device=device).ge(dropout).to(torch.uint8)
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device=device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: shape.numel()].view(shape)
    return bits.ge(round(dropout * 2**16) - 2**15).view(torch.uint8)


@dataclass(frozen=True)
class Share:
    """Consecutive tokens of a batch, and what they go through.

    Attributes:
        num_tokens: T.
        mixture: An adapter, routed for these tokens; None for the frozen FFN alone.
    """

    num_tokens: int
    mixture: Mixture | None


@dataclass(frozen=True)
class Dispatch:
    """The N (token, expert) pairs that a routing takes, sorted by expert, then by token.

    Attributes:
        token: (N,) int64, the token of each pair.
        expert: (N,) int64, its expert.
        weight: (N,) its mixing weight.
        counts: Pairs per expert, E numbers.
    """

    token: Tensor
    expert: Tensor
    weight: Tensor
    counts: list[int]

    @classmethod
    def of(cls, routing: Routing, num_experts: int) -> Dispatch:
        """Sort a routing's pairs; waits for the device, as the counts are needed on the host."""
        flat = routing.selected.flatten()
        order = flat.argsort(stable=True)
        if routing.taken is not None:
            order = order[routing.taken.flatten().index_select(0, order)]
        expert = flat.index_select(0, order)
        counts = torch.bincount(expert, minlength=num_experts).tolist()
        weight = routing.weights.flatten().index_select(0, order)
        return cls(order // routing.selected.shape[1], expert, weight, counts)

    def groups(self) -> Iterator[tuple[int, slice]]:
        """(expert, its rows), for every expert, those without tokens included."""
        start = 0
        for expert, count in enumerate(self.counts):
            yield expert, slice(start, start + count)
            start += count
