"""DoRA's norms without forming the adapted weights, for the experts and for attention's layers.

DoRA (arXiv 2402.09353) scales every row i of an adapted weight W + s B A by m_i / ||(W + s B A)_i||
with a trained magnitude m. The norm is a constant to the gradient (section 4.3 there).

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
    """W (O, I) of a frozen projection in a dtype; a quantised weight is dequantised."""
    # PEFT's helper looks at the weight's class in a way that torch.compile cannot follow.
    weight: Any = linear.weight
    if type(linear) is not nn.Linear:
        weight = dequantize_module_weight(linear)
    return weight.to(dtype)


class DoraNorms:
    """Computes ||W + s B_e A_e|| of each expert e and row, for one projection of one adapter.

    For row i, ``||W_i + s B_i A||^2 = ||W_i||^2 + 2 s (W A^T)_i . B_i + s^2 B_i (A A^T) B_i^T``.
    The first term does not change while W is frozen, so it is stored between calls.
    """

    def __init__(self) -> None:
        #: The weight, its address and version when the term was computed, and the term ||W_i||^2.
        self._frozen_term: tuple[Tensor, int, int, Tensor] | None = None
        self._cached_norms: Tensor | None = None

    @torch.no_grad()
    def compute(
        self, linear: nn.Module, lora_A: Tensor, lora_B: Tensor, scaling: float, training: bool
    ) -> Tensor:
        """The norms (E, O), without a gradient.

        Args:
            linear: The frozen projection.
            lora_A: (E, r, I).
            lora_B: (E, r, O).
            scaling: s.
            training: Whether the adapters may be changing. If not, the norms of the last call are
                returned inside PEFT's `DoraCaching`, which promises that adapters do not change.
        """
        if torch.compiler.is_compiling():
            weight = frozen_weight(linear, lora_A.dtype)
            return _norms(_squared_rows(weight), weight, lora_A, lora_B, scaling)
        use_cache = dora.ENABLE_DORA_CACHING and not training
        if use_cache and self._cached_norms is not None:
            return self._cached_norms
        weight = frozen_weight(linear, lora_A.dtype)
        source: Any = linear.weight
        norms = _norms(self._squared_weight_rows(source, weight), weight, lora_A, lora_B, scaling)
        self._cached_norms = norms if use_cache else None
        return norms

    def _squared_weight_rows(self, source: Tensor, weight: Tensor) -> Tensor:
        """||W_i||^2 (O,) of a weight that is stored as source, computed when that has changed."""
        if source.is_inference():  # such tensors have no version, so a change would go unnoticed
            return _squared_rows(weight)
        stored, address, version = self._frozen_term, source.data_ptr(), source._version
        if (
            stored is None
            or stored[0] is not source
            or stored[1:3] != (address, version)
            or stored[3].dtype != weight.dtype
        ):
            stored = (source, address, version, _squared_rows(weight))
            self._frozen_term = stored
        return stored[3]


def new_magnitude(linear: nn.Module, lora_A: Tensor, lora_B: Tensor, scaling: float) -> Tensor:
    """The DoRA magnitude (E, O) with which every expert acts as the LoRA expert it starts from.

    Args:
        linear: The frozen projection.
        lora_A: (E, r, I).
        lora_B: (E, r, O).
        scaling: s.
    """
    norms = DoraNorms().compute(linear, lora_A.detach(), lora_B.detach(), scaling, training=True)
    # The inverse of the scale that a magnitude of 1 gives. It rounds otherwise than the norms
    # themselves, and the stored runs started from it.
    return norms.reciprocal().reciprocal()


class LeanDoraLayer(dora.DoraLinearLayer):
    """PEFT's DoRA of one linear layer at LoRA's cost, with the same result and parameter.

    PEFT's own layer forms B A and W + s B A at every call.

    Args:
        original: The layer that this one replaces.
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
        """What to add to the frozen layer's output, (..., O); PEFT passes the arguments."""
        A, B = lora_A.weight.unsqueeze(0), lora_B.weight.T.unsqueeze(0)
        norm = self.norms.compute(base_layer, A, B, scaling, self.training).squeeze(0)
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
