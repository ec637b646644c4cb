"""What the forwards of a MixLoRA block work on: the frozen FFN, each adapter's share of the tokens,
and the pairs of a token and one of its experts.

Shape legend: T tokens, D hidden size, F inner size, E experts, K experts per token, N = T * K pairs
of a token and one of its experts, sorted by expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
        return F.dropout(inputs, self.dropout) if self.dropout > 0 else inputs

    def dropped_units(self, down: str, tokens: Tensor) -> Tensor | None:
        """Which inner units (T, F) of each token the adapter of the down projection does not see.

        Bool, on the tokens' device; None without dropout, or without such an adapter.
        """
        if self.dropout == 0 or down not in self.experts:
            return None
        inner_size = self.experts[down].lora_A.shape[2]
        mask = torch.empty(len(tokens), inner_size, dtype=torch.bool, device=tokens.device)
        return mask.bernoulli_(self.dropout)


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
    """The N = T * K (token, expert) pairs of a routing, sorted by expert, then by token.

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
        counts = torch.bincount(flat, minlength=num_experts).tolist()
        weight = routing.weights.flatten().index_select(0, order)
        top_k = routing.selected.shape[1]
        return cls(order // top_k, flat.index_select(0, order), weight, counts)

    def groups(self) -> Iterator[tuple[int, slice]]:
        """(expert, its rows), for every expert, those without tokens included."""
        start = 0
        for expert, count in enumerate(self.counts):
            yield expert, slice(start, start + count)
            start += count
