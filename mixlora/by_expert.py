"""The fused forward's middle step, one expert's tokens at a time; LoRA experts only.

Each expert's rows, or on a CPU blocks of them, are gathered, adapted, activated and added into the
mixed activation while they are in cache, by operations that write in place, and nothing of it is
kept. The backward pass walks over the experts again, computes their rows anew from what LoRA would
keep as well (the outputs of the frozen projections and rank-wide rows), and leaves to autograd the
activation alone.

Shape legend: see dispatch.py; n rows of one expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dispatch import Dispatch, FrozenFfn, Mixture

#: Numbers in a block's largest tensor on a CPU, where a dozen of these are alive at once: 2 MB in
#: float32, so that they are near and small beside what is kept. Elsewhere an expert is one block.
MAX_BLOCK = 2**19


def mix_by_expert(
    ffn: FrozenFfn,
    mixture: Mixture,
    projected: Sequence[Tensor],
    reduced: Sequence[Tensor | None],
    kept: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The mixed inner activation, and the rank-wide input of the down projection's B.

    Args:
        ffn: The frozen FFN.
        mixture: The experts and the tokens' routing.
        projected: Output of each input projection, (T, O).
        reduced: A x of all experts of each input projection, (T, E * r), None if not adapted.
        kept: (T, F) uint8, `Mixture.kept_units`.

    Returns:
        ``sum_k w_k h_k`` (T, F), float32 or wider, and ``s w_k A_k h_k`` of the chosen experts
        beside zeros of the others, (T, E * r) in the adapter's dtype; None if the down projection
        is not adapted.
    """
    experts = [mixture.experts.get(name) for name in ffn.layout.inputs]
    down = mixture.experts.get(ffn.layout.down)
    scaling = 1.0
    if down is not None:
        scaling = down.scaling / (1 - mixture.dropout if kept is not None else 1)
    plan = Dispatch.of(mixture.routing, mixture.num_experts)
    return _MixByExpert.apply(
        _Walk(ffn, plan, tuple(1.0 if each is None else each.scaling for each in experts)),
        scaling,
        plan.weight,
        kept,
        None if down is None else down.lora_A,
        *projected,
        *reduced,
        *(None if each is None else each.lora_B for each in experts),
    )


@dataclass(frozen=True)
class _Walk:
    """The way over the experts, the same forward and backward.

    Attributes:
        ffn: The frozen FFN.
        plan: The pairs.
        scalings: s of each input projection.
    """

    ffn: FrozenFfn
    plan: Dispatch
    scalings: tuple[float, ...]

    def slots(self) -> Tensor:
        """(N,) row of each pair in a (T, E * r) tensor seen as (T * E, r)."""
        return self.plan.token * len(self.plan.counts) + self.plan.expert

    def rank_rows(self, reduced: Sequence[Tensor | None], slots: Tensor) -> list[Tensor | None]:
        """s A_e x of each pair, (N, r), for each input projection."""
        num_experts = len(self.plan.counts)
        return [
            None
            if each is None
            else each.view(len(each) * num_experts, -1).index_select(0, slots) * scaling
            for each, scaling in zip(reduced, self.scalings, strict=True)
        ]

    def _blocks(self, projected: Tensor) -> Iterator[tuple[int, slice]]:
        """(expert, some of its rows), none of them empty."""
        size = len(self.plan.token)
        if projected.device.type == "cpu":
            size = max(1, MAX_BLOCK // projected.shape[1])
        for expert, rows in self.plan.groups():
            for start in range(rows.start, rows.stop, size):
                yield expert, slice(start, min(start + size, rows.stop))

    def visit(
        self,
        projected: Sequence[Tensor],
        rank_rows: Sequence[Tensor | None],
        lora_B: Sequence[Tensor | None],
    ) -> Iterator[tuple[int, slice, Tensor, list[Tensor]]]:
        """(expert, rows of its, their tokens, their adapted input projections (n, O) in the base's
        dtype), until every row of every expert was there once.
        """
        for expert, rows in self._blocks(projected[0]):
            token = self.plan.token[rows]
            adapted = []
            for base, low, B in zip(projected, rank_rows, lora_B, strict=True):
                out = base.index_select(0, token)
                if low is not None and B is not None:
                    out = out.to(B.dtype).addmm_(low[rows].to(B.dtype), B[expert]).to(base.dtype)
                adapted.append(out)
            yield expert, rows, token, adapted


class _MixByExpert(torch.autograd.Function):
    """See `mix_by_expert`; its tensors are projected, reduced and lora_B, one after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        walk: _Walk,
        scaling: float,
        weight: Tensor,
        kept: Tensor | None,
        lora_A: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor | None]:
        projected, reduced, lora_B = _thirds(tensors)
        slots, num_tokens = walk.slots(), len(projected[0])
        mixed: Any = None
        low = None if lora_A is None else lora_A.new_empty(len(slots), lora_A.shape[1])
        with torch.autocast(weight.device.type, enabled=False):
            rank_rows = walk.rank_rows(reduced, slots)
            for expert, rows, token, adapted in walk.visit(projected, rank_rows, lora_B):
                hidden = walk.ffn.hidden(adapted).to(weight.dtype).mul_(weight[rows].unsqueeze(1))
                if mixed is None:
                    mixed = weight.new_zeros(num_tokens, hidden.shape[1])
                mixed.index_add_(0, token, hidden)
                if lora_A is not None and low is not None:
                    if kept is not None:
                        hidden *= kept.index_select(0, token)
                    torch.mm(hidden.to(lora_A.dtype), lora_A[expert].T, out=low[rows])
        ctx.walk, ctx.scaling = walk, scaling
        ctx.save_for_backward(weight, kept, lora_A, *tensors)
        if low is None:
            return mixed, None
        spread = low.new_zeros(num_tokens * len(walk.plan.counts), low.shape[1])
        spread.index_copy_(0, slots, low.mul_(scaling))
        return mixed, spread.view(num_tokens, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor, d_spread: Tensor | None) -> tuple[Any, ...]:
        walk: _Walk = ctx.walk
        weight, kept, lora_A, *tensors = ctx.saved_tensors
        projected, reduced, lora_B = _thirds(tensors)
        slots = walk.slots()
        d_weight = torch.empty_like(weight)
        d_A = _zeros_like(lora_A)
        d_B = [_zeros_like(each) for each in lora_B]
        d_projected = [torch.zeros_like(base, dtype=weight.dtype) for base in projected]
        if lora_A is not None and d_spread is not None:
            rank = lora_A.shape[1]
            d_low = d_spread.view(-1, rank).index_select(0, slots).mul_(ctx.scaling)
            weighted_d_low = d_low * weight.unsqueeze(1)

        def add_block(expert: int, rows: slice, token: Tensor, leaves: list[Tensor]) -> None:
            """A function of its own, so that a block's tensors are let go before the next."""
            with torch.enable_grad():
                hidden = walk.ffn.hidden([each.requires_grad_() for each in leaves])
            value = hidden.detach()
            d_hidden = d_mixed.index_select(0, token)  # of what was weighted
            if lora_A is not None:
                seen, d_seen = value.to(lora_A.dtype), d_low[rows] @ lora_A[expert]
                if kept is not None:
                    own = kept.index_select(0, token)
                    seen = seen * own
                    d_seen *= own
                d_A[expert].addmm_(weighted_d_low[rows].T, seen)
                d_hidden += d_seen
            d_weight[rows] = (d_hidden * value).sum(dim=1)
            d_hidden *= weight[rows].unsqueeze(1)
            gradients = torch.autograd.grad(hidden, leaves, d_hidden.to(hidden.dtype))
            for index, gradient in enumerate(gradients):
                d_projected[index].index_add_(0, token, gradient.to(weight.dtype))
                B, x = lora_B[index], rank_rows[index]
                if B is not None and x is not None:
                    gradient = gradient.to(B.dtype)
                    d_B[index][expert].addmm_(x[rows].to(B.dtype).T, gradient)
                    d_rank_rows[index][rows] = gradient @ B[expert].T

        with torch.autocast(weight.device.type, enabled=False):
            rank_rows = walk.rank_rows(reduced, slots)
            d_rank_rows = [_zeros_like(each) for each in rank_rows]
            for block in walk.visit(projected, rank_rows, lora_B):
                add_block(*block)
        d_reduced = [
            None
            if d_rows is None
            else torch.zeros_like(each)
            .view(-1, d_rows.shape[1])
            .index_copy_(0, slots, d_rows * each_scaling)
            .view_as(each)
            for each, d_rows, each_scaling in zip(reduced, d_rank_rows, walk.scalings, strict=True)
        ]
        d_bases = [each.to(base.dtype) for each, base in zip(d_projected, projected, strict=True)]
        return None, None, d_weight, None, d_A, *d_bases, *d_reduced, *d_B


def _thirds(tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    size = len(tensors) // 3
    return tensors[:size], tensors[size : 2 * size], tensors[2 * size :]


def _zeros_like(tensor: Tensor | None) -> Any:
    return None if tensor is None else torch.zeros_like(tensor)
