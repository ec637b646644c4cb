"""What an implementation of the experts is given: parameters, routing, and helpers over them.

Shape legend: T tokens, D hidden size, F inner size, E experts, K selected experts per token, r
rank, I in_features, O out_features, N pairs of a token and an expert that it is sent to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dora import DoraNorms, frozen_weight

if TYPE_CHECKING:
    from ..families import FrozenFfn
    from ..router import Routing

    #: (frozen FFN, hidden_states (T, D), plans of its tokens in their order) -> (T, D) in
    #: hidden_states' dtype.
    Implementation = Callable[[FrozenFfn, Tensor, Sequence["ExpertPlan"]], Tensor]
    SingleImplementation = Callable[[FrozenFfn, Tensor, "ExpertPlan"], Tensor]

#: Value of ``experts_implementation`` -> function.
IMPLEMENTATIONS: dict[str, Implementation] = {}


@dataclass(frozen=True)
class ProjectionExperts:
    """The experts of one frozen linear projection W: expert e computes (W + s B_e A_e) x.

    Attributes:
        linear: The frozen projection, I -> O.
        lora_A: (E, r, I).
        lora_B: (E, r, O). Each expert's B_e is stored transposed, so that all of them together are
            one (E * r, O) matrix.
        magnitude: DoRA magnitudes (E, O), or None for LoRA.
        scaling: s = lora_alpha / r.
        norms: DoRA's norms of this projection, which outlive this object.
        training: Whether the experts may be changing.
    """

    linear: nn.Module
    lora_A: Tensor
    lora_B: Tensor
    magnitude: Tensor | None
    scaling: float
    norms: DoraNorms = field(default_factory=DoraNorms)
    training: bool = True

    def low_rank(self, expert: int, inputs: Tensor) -> Tensor:
        """s B_e A_e x of one expert for inputs (..., I): (..., O), without its DoRA scale."""
        return F.linear(inputs, self.lora_A[expert]) @ self.lora_B[expert] * self.scaling

    def dora_scale(self, expert: int) -> Tensor:
        """m_e / ||W + s B_e A_e|| of each row, (O,), the norm taken from the formed matrix."""
        if self.magnitude is None:
            raise ValueError("dora_scale needs experts with a DoRA magnitude")
        with torch.no_grad():
            weight = frozen_weight(self.linear, self.lora_A.dtype)
            adapted = weight + self.scaling * self.lora_B[expert].T @ self.lora_A[expert]
            norm = torch.linalg.vector_norm(adapted, dim=1)
        return self.magnitude[expert] / norm

    def dora_scales(self) -> Tensor:
        """`dora_scale` of all experts, (E, O), without forming any W + s B_e A_e."""
        if self.magnitude is None:
            raise ValueError("dora_scales needs experts with a DoRA magnitude")
        norms = self.norms.compute(
            self.linear, self.lora_A, self.lora_B, self.scaling, self.training
        )
        return self.magnitude / norms

    def apply(self, expert: int, projected: Tensor, inputs: Tensor) -> Tensor:
        """One expert's output (..., O).

        Args:
            expert: Its index.
            projected: W x + bias, (..., O), from the frozen projection.
            inputs: x as the adapter gets it, (..., I) in the adapter's dtype.
        """
        scale = None if self.magnitude is None else self.dora_scale(expert)
        return self.combine(projected, self.low_rank(expert, inputs), scale)

    def combine(self, projected: Tensor, low_rank: Tensor, scale: Tensor | None) -> Tensor:
        """``scale * (W x + low_rank) + bias`` from projected = W x + bias; scale None stands for 1.

        Computed in the adapter's dtype and returned in projected's, as PEFT's layers do.
        """
        if scale is None:
            return (projected + low_rank).to(projected.dtype)
        bias = getattr(self.linear, "bias", None)
        if bias is None:
            return (scale * (projected + low_rank)).to(projected.dtype)
        return (scale * (projected - bias + low_rank) + bias).to(projected.dtype)


@dataclass(frozen=True)
class ExpertPlan:
    """Consecutive tokens of a batch, the experts of their adapter, and which of them they go to.

    Attributes:
        num_tokens: T.
        experts: Projection name -> its experts; a projection without an entry is not adapted. Empty
            for tokens that go through the frozen FFN alone.
        routing: Where the tokens are sent, or None for tokens of the frozen FFN.
        dropout: Probability of dropping an adapter input; 0 outside training. One mask is drawn per
            token and projection input, so a token's experts drop the same units.
    """

    num_tokens: int
    experts: dict[str, ProjectionExperts]
    routing: Routing | None
    dropout: float = 0.0

    @property
    def routed(self) -> Routing:
        """The routing, of a plan that has one."""
        if self.routing is None:
            raise ValueError("these tokens go through the frozen FFN alone")
        return self.routing

    @property
    def _first(self) -> ProjectionExperts:
        # The projections of an adapter agree in all but their sizes.
        return next(iter(self.experts.values()))

    @property
    def num_experts(self) -> int:
        """E."""
        return self._first.lora_A.shape[0]

    @property
    def rank(self) -> int:
        """r."""
        return self._first.lora_A.shape[1]

    @property
    def top_k(self) -> int:
        """K."""
        return self.routed.selected_experts.shape[1]

    @property
    def scaling(self) -> float:
        """s."""
        return self._first.scaling

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the adapter: float32 over a half-precision base."""
        return self._first.lora_A.dtype

    @property
    def has_dora(self) -> bool:
        """Whether these are DoRA experts."""
        return len(self.experts) > 0 and self._first.magnitude is not None

    def drop_inputs(self, hidden_states: Tensor) -> Tensor:
        """Inputs of the input projections' adapters: in the adapter's dtype, after dropout."""
        inputs = hidden_states.to(self.dtype)
        if self.dropout == 0:
            return inputs
        return inputs * dropout_mask(inputs.shape, self.dropout, inputs.device) / (1 - self.dropout)

    def hidden_dropout_mask(self, down: str, device: torch.device) -> Tensor | None:
        """Which inner units (T, F) of each token the down projection's adapter gets.

        Args:
            down: Name of the down projection.
            device: Where the mask is needed.

        Returns:
            uint8, 0 for dropped units and else 1; the units left are still to be divided by
            1 - dropout. None without dropout, or if the down projection is not adapted.
        """
        if self.dropout == 0 or down not in self.experts:
            return None
        inner_size = self.experts[down].lora_A.shape[2]
        return dropout_mask(torch.Size((self.num_tokens, inner_size)), self.dropout, device)


def dropout_mask(shape: torch.Size, dropout: float, device: torch.device) -> Tensor:
    """uint8, 0 with probability dropout (rounded to 2^-16) and else 1, from torch's generator.

    It draws 16 random bits per unit, a quarter of what ``bernoulli_`` draws, and takes a quarter of
    its time on a CPU. Multiplying by bytes is several times as fast there as filling by a bool
    mask.
    """
    if torch.compiler.is_compiling():  # the compiler cannot follow random_, but fuses rand
        return torch.rand(shape, device=device).ge(dropout).to(torch.uint8)
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device=device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: shape.numel()].view(shape)
    return bits.ge(round(dropout * 2**16) - 2**15).view(torch.uint8)


class SortedPairs(NamedTuple):
    """The N pairs of a token and an expert that it is sent to, sorted by expert, then by token.

    Attributes:
        token: (N,) int64, index of each pair's token.
        expert: (N,) int64, index of its expert.
        weight: (N,) its routing weight.
        counts: Number of pairs of each expert, E numbers.
    """

    token: Tensor
    expert: Tensor
    weight: Tensor
    counts: list[int]

    def slices(self) -> Iterator[tuple[int, slice]]:
        """(expert, slice of its pairs) of every expert, those without tokens included."""
        start = 0
        for expert, count in enumerate(self.counts):
            yield expert, slice(start, start + count)
            start += count


def sort_by_expert(routing: Routing, num_experts: int) -> SortedPairs:
    """Sort a routing's pairs. The counts are needed on the host, so this waits for the device."""
    experts = routing.selected_experts.flatten()
    order = experts.argsort(stable=True)
    if routing.selection_mask is not None:
        order = order[routing.selection_mask.flatten().index_select(0, order)]
    expert = experts.index_select(0, order)
    counts = torch.bincount(expert, minlength=num_experts).tolist()
    weight = routing.routing_weights.flatten().index_select(0, order)
    return SortedPairs(order // routing.selected_experts.shape[1], expert, weight, counts)


def implementation(function: Implementation) -> Implementation:
    """Make a function selectable by its name as ``experts_implementation``."""
    IMPLEMENTATIONS[function.__name__] = function
    return function


def one_adapter_at_a_time(function: SingleImplementation) -> Implementation:
    """An `Implementation` out of a function of one adapter's tokens: packed parts share no work."""

    @wraps(function)
    def run(ffn: FrozenFfn, hidden_states: Tensor, plans: Sequence[ExpertPlan]) -> Tensor:
        parts = hidden_states.split([plan.num_tokens for plan in plans])
        return torch.cat(
            [
                function(ffn, part, plan) if plan.experts else ffn.mlp(part)
                for part, plan in zip(parts, plans, strict=True)
            ]
        )

    return run
