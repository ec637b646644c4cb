"""DoRA's norms without forming the adapted weights: for the experts, and for PEFT's layers beside
them in attention.

Shape legend: E experts, r rank, I in_features, O out_features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import dora
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn


def frozen_weight(linear: nn.Module, dtype: torch.dtype) -> Tensor:
    """W (O, I) of a frozen projection in a dtype, dequantised if need be."""
    # PEFT's helper looks at the weight's class in a way that torch.compile cannot follow.
    weight: Any = linear.weight
    if type(linear) is not nn.Linear:
        weight = dequantize_module_weight(linear)
    return weight.to(dtype)


class DoraNorms:
    """||W + s B_e A_e|| of each expert e and output row, for one projection of one adapter.

    For row i, ``||W_i + s B_i A||^2 = ||W_i||^2 + 2 s (W A^T)_i . B_i + s^2 B_i (A A^T) B_i^T``.
    The first term does not change while W is frozen, and is kept.
    """

    def __init__(self) -> None:
        self._frozen: tuple[Tensor, int, int, Tensor] | None = None
        self._norms: Tensor | None = None

    @torch.no_grad()
    def of(
        self, linear: nn.Module, lora_A: Tensor, lora_B: Tensor, scaling: float, training: bool
    ) -> Tensor:
        """(E, O), a constant to the gradient (DoRA, arXiv 2402.09353 section 4.3).

        Args:
            linear: The frozen projection.
            lora_A: (E, r, I).
            lora_B: (E, r, O).
            scaling: s.
            training: Outside training and inside PEFT's `DoraCaching`, which says that adapters do
                not change, the norms of last time are returned.
        """
        if torch.compiler.is_compiling():
            weight = frozen_weight(linear, lora_A.dtype)
            return _norms(_squared_rows(weight), weight, lora_A, lora_B, scaling)
        keep = dora.ENABLE_DORA_CACHING and not training
        if keep and self._norms is not None:
            return self._norms
        weight = frozen_weight(linear, lora_A.dtype)
        source: Any = linear.weight
        norms = _norms(self._frozen_term(source, weight), weight, lora_A, lora_B, scaling)
        self._norms = norms if keep else None
        return norms

    def _frozen_term(self, source: Tensor, weight: Tensor) -> Tensor:
        if source.is_inference():  # such tensors have no version
            return _squared_rows(weight)
        frozen, address, version = self._frozen, source.data_ptr(), source._version
        if (
            frozen is None
            or frozen[0] is not source
            or frozen[1:3] != (address, version)
            or frozen[3].dtype != weight.dtype
        ):
            frozen = (source, address, version, _squared_rows(weight))
            self._frozen = frozen
        return frozen[3]


class LeanDoraLayer(dora.DoraLinearLayer):
    """PEFT's DoRA of one linear layer, at LoRA's cost: the same result and parameter.

    PEFT forms B A by sending an identity matrix through both, and W + s B A, at every call.

    Args:
        original: The layer whose place it takes.
    """

    def __init__(self, original: dora.DoraLinearLayer) -> None:
        super().__init__(original.fan_in_fan_out)
        self.weight = original.weight
        self.norms = DoraNorms()

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: nn.Linear,
        lora_B: nn.Linear,
        scaling: float,
        base_layer: Any,
        base_result: Tensor | None = None,
        adapter_name: str = "default",
    ) -> Tensor:
        """What to add to the frozen layer's output, (..., O); arguments as PEFT passes them."""
        A, B = lora_A.weight.unsqueeze(0), lora_B.weight.T.unsqueeze(0)
        norm = self.norms.of(base_layer, A, B, scaling, self.training).squeeze(0)
        if base_result is None:
            base_result = F.linear(x, frozen_weight(base_layer, x.dtype))
        elif base_layer.bias is not None:
            base_result = base_result - base_layer.bias
        scale = self.weight / norm
        return (scale - 1) * base_result + scale * lora_B(lora_A(x)) * scaling


def _norms(
    squared_rows: Tensor, weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float
) -> Tensor:
    crossed = F.linear(lora_A.flatten(0, 1), weight).view_as(lora_B)
    gram = lora_A @ lora_A.transpose(1, 2)
    low_rank = 2 * scaling * crossed + scaling**2 * (gram @ lora_B)
    # Rounding could make the square of a vanishing row negative.
    return (squared_rows + (low_rank * lora_B).sum(dim=1)).clamp(min=0).sqrt()


def _squared_rows(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=1).square()
