"""Experts by groups: one expert's tokens at a time; LoRA experts only.

Each expert's rows, or on a CPU blocks of them, are gathered, adapted, activated and added into the
mixed activation while they are in cache, by operations that write in place. Nothing of it is saved:
the backward pass goes over the experts again, computes their rows anew from what LoRA would save as
well (the outputs of the frozen projections, and rows that are r wide), and leaves only the
activation to autograd.

Shape legend: see plan.py; n rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .plan import ExpertPlan, SortedPairs, sort_by_expert

if TYPE_CHECKING:
    from ..families import FrozenFfn

#: On a CPU, the number of elements in the largest tensor of a block, of which about a dozen are
#: alive at once. In float32 that is 2 MB: in cache, and small beside what is saved for the backward
#: pass. On other devices an expert is one block.
MAX_BLOCK = 2**19


def mix_grouped(
    ffn: FrozenFfn,
    plan: ExpertPlan,
    projected: Sequence[Tensor],
    lora_A_outputs: Sequence[Tensor | None],
    hidden_mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The mixed inner activation, and the rank-wide input of the down projection's B.

    Arguments and result are those of `masked.mix_masked`; the mixed activation is float32 or wider.
    """
    experts = [plan.experts.get(name) for name in ffn.layout.inputs]
    down = plan.experts.get(ffn.layout.down)
    down_scaling = 1.0
    if down is not None:
        down_scaling = down.scaling / (1 - plan.dropout if hidden_mask is not None else 1)
    pairs = sort_by_expert(plan.routed, plan.num_experts)
    scalings = tuple(1.0 if each is None else each.scaling for each in experts)
    return _MixGrouped.apply(
        _Loop(ffn, pairs, scalings),
        down_scaling,
        pairs.weight,
        hidden_mask,
        None if down is None else down.lora_A,
        *projected,
        *lora_A_outputs,
        *(None if each is None else each.lora_B for each in experts),
    )


@dataclass(frozen=True)
class _Loop:
    """The loop over the experts, the same in the forward and the backward pass.

    Attributes:
        ffn: The frozen FFN.
        pairs: The pairs of tokens and experts.
        scalings: s of each input projection.
    """

    ffn: FrozenFfn
    pairs: SortedPairs
    scalings: tuple[float, ...]

    def slots(self) -> Tensor:
        """(N,) row of each pair in a (T, E * r) tensor seen as (T * E, r)."""
        return self.pairs.token * len(self.pairs.counts) + self.pairs.expert

    def lora_B_inputs(
        self, lora_A_outputs: Sequence[Tensor | None], slots: Tensor
    ) -> list[Tensor | None]:
        """s A_e x of each pair, (N, r), for each input projection."""
        num_experts = len(self.pairs.counts)
        return [
            None
            if each is None
            else each.view(len(each) * num_experts, -1).index_select(0, slots) * scaling
            for each, scaling in zip(lora_A_outputs, self.scalings, strict=True)
        ]

    def blocks(
        self,
        projected: Sequence[Tensor],
        lora_B_inputs: Sequence[Tensor | None],
        lora_B: Sequence[Tensor | None],
    ) -> Iterator[tuple[int, slice, Tensor, list[Tensor]]]:
        """All pairs in blocks of one expert.

        Yields:
            The expert; the slice of its pairs; their tokens (n,); and for each input projection the
            adapted output (n, O) in the frozen projection's dtype.
        """
        for expert, rows in self._slices(projected[0]):
            token = self.pairs.token[rows]
            adapted = []
            for frozen, inputs, B in zip(projected, lora_B_inputs, lora_B, strict=True):
                output = frozen.index_select(0, token)
                if inputs is not None and B is not None:
                    output = output.to(B.dtype).addmm_(inputs[rows].to(B.dtype), B[expert])
                    output = output.to(frozen.dtype)
                adapted.append(output)
            yield expert, rows, token, adapted

    def _slices(self, projected: Tensor) -> Iterator[tuple[int, slice]]:
        """(expert, slice of some of its pairs), none of them empty."""
        size = len(self.pairs.token)
        if projected.device.type == "cpu":
            size = max(1, MAX_BLOCK // projected.shape[1])
        for expert, rows in self.pairs.slices():
            for start in range(rows.start, rows.stop, size):
                yield expert, slice(start, min(start + size, rows.stop))


class _MixGrouped(torch.autograd.Function):
    """The computation of `mix_grouped`, with a backward of its own.

    Its tensors are one frozen output, one A x and one B (E, r, O) for each input projection: first
    all outputs, then all A x, then all B.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loop: _Loop,
        down_scaling: float,
        weight: Tensor,
        hidden_mask: Tensor | None,
        lora_A: Tensor | None,
        *tensors: Any,
    ) -> tuple[Tensor, Tensor | None]:
        projected, lora_A_outputs, lora_B = _by_kind(tensors)
        slots, num_tokens = loop.slots(), len(projected[0])
        mixed: Any = None
        # s A h of the down projection's adapter for each pair.
        down_output = None if lora_A is None else lora_A.new_empty(len(slots), lora_A.shape[1])
        with torch.autocast(weight.device.type, enabled=False):
            lora_B_inputs = loop.lora_B_inputs(lora_A_outputs, slots)
            for expert, rows, token, adapted in loop.blocks(projected, lora_B_inputs, lora_B):
                hidden = loop.ffn.hidden(adapted).to(weight.dtype).mul_(weight[rows].unsqueeze(1))
                if mixed is None:
                    mixed = weight.new_zeros(num_tokens, hidden.shape[1])
                mixed.index_add_(0, token, hidden)
                if lora_A is not None and down_output is not None:
                    if hidden_mask is not None:
                        hidden *= hidden_mask.index_select(0, token)
                    torch.mm(hidden.to(lora_A.dtype), lora_A[expert].T, out=down_output[rows])
        ctx.loop, ctx.down_scaling = loop, down_scaling
        ctx.save_for_backward(weight, hidden_mask, lora_A, *tensors)
        if down_output is None:
            return mixed, None
        lora_B_input = down_output.new_zeros(
            num_tokens * len(loop.pairs.counts), down_output.shape[1]
        )
        lora_B_input.index_copy_(0, slots, down_output.mul_(down_scaling))
        return mixed, lora_B_input.view(num_tokens, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_mixed: Tensor, d_lora_B_input: Tensor | None) -> tuple[Any, ...]:
        loop: _Loop = ctx.loop
        weight, hidden_mask, lora_A, *tensors = ctx.saved_tensors
        projected, lora_A_outputs, lora_B = _by_kind(tensors)
        slots = loop.slots()
        d_weight = torch.empty_like(weight)
        d_A = _zeros_like(lora_A)
        d_B = [_zeros_like(each) for each in lora_B]
        d_projected = [torch.zeros_like(each, dtype=weight.dtype) for each in projected]
        if lora_A is not None and d_lora_B_input is not None:
            rank = lora_A.shape[1]
            d_down = d_lora_B_input.view(-1, rank).index_select(0, slots).mul_(ctx.down_scaling)
            weighted_d_down = d_down * weight.unsqueeze(1)

        def add_block(expert: int, rows: slice, token: Tensor, leaves: list[Tensor]) -> None:
            """Add a block's gradients. A function, so that its tensors are freed when it ends."""
            with torch.enable_grad():
                hidden = loop.ffn.hidden([each.requires_grad_() for each in leaves])
            value = hidden.detach()
            d_hidden = d_mixed.index_select(0, token)  # of the weighted activation
            if lora_A is not None:
                adapter_hidden = value.to(lora_A.dtype)
                d_adapter_hidden = d_down[rows] @ lora_A[expert]
                if hidden_mask is not None:
                    mask = hidden_mask.index_select(0, token)
                    adapter_hidden = adapter_hidden * mask
                    d_adapter_hidden *= mask
                d_A[expert].addmm_(weighted_d_down[rows].T, adapter_hidden)
                d_hidden += d_adapter_hidden
            d_weight[rows] = (d_hidden * value).sum(dim=1)
            d_hidden *= weight[rows].unsqueeze(1)
            gradients = torch.autograd.grad(hidden, leaves, d_hidden.to(hidden.dtype))
            for index, gradient in enumerate(gradients):
                d_projected[index].index_add_(0, token, gradient.to(weight.dtype))
                B, inputs = lora_B[index], lora_B_inputs[index]
                if B is not None and inputs is not None:
                    gradient = gradient.to(B.dtype)
                    d_B[index][expert].addmm_(inputs[rows].to(B.dtype).T, gradient)
                    d_lora_B_inputs[index][rows] = gradient @ B[expert].T

        with torch.autocast(weight.device.type, enabled=False):
            lora_B_inputs = loop.lora_B_inputs(lora_A_outputs, slots)
            d_lora_B_inputs = [_zeros_like(each) for each in lora_B_inputs]
            for block in loop.blocks(projected, lora_B_inputs, lora_B):
                add_block(*block)
        d_lora_A_outputs = [
            None
            if d_rows is None
            else torch.zeros_like(each)
            .view(-1, d_rows.shape[1])
            .index_copy_(0, slots, d_rows * scaling)
            .view_as(each)
            for each, d_rows, scaling in zip(
                lora_A_outputs, d_lora_B_inputs, loop.scalings, strict=True
            )
        ]
        d_frozen = [each.to(base.dtype) for each, base in zip(d_projected, projected, strict=True)]
        return None, None, d_weight, None, d_A, *d_frozen, *d_lora_A_outputs, *d_B


def _by_kind(tensors: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """The frozen outputs, the A x and the B that `_MixGrouped` is given in one row."""
    count = len(tensors) // 3
    return tensors[:count], tensors[count : 2 * count], tensors[2 * count :]


def _zeros_like(tensor: Tensor | None) -> Any:
    return None if tensor is None else torch.zeros_like(tensor)
