"""All experts of one projection, stored as stacked parameters.

Shape legend: E experts, r rank, I in_features, O out_features, N rows (tokens, or token and expert
pairs), T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dora import DoraNorms, frozen_weight


@dataclass(frozen=True)
class ProjectionExperts:
    """The experts that one frozen linear projection W is shared by: expert e acts as W + s B_e A_e.

    Attributes:
        linear: The frozen projection, I -> O.
        lora_A: (E, r, I).
        lora_B: (E, r, O), each expert's B_e transposed: so all of them are one (E * r, O) matrix.
        magnitude: (E, O) DoRA magnitudes, or None for LoRA.
        scaling: s = lora_alpha / r.
        norms: Of DoRA; they outlive this object.
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
        """s B_e A_e x of one expert for inputs (N, I): (N, O), without its DoRA scale."""
        return F.linear(inputs, self.lora_A[expert]) @ self.lora_B[expert] * self.scaling

    def dora_scale(self, expert: int) -> Tensor:
        """m_e / ||W + s B_e A_e|| per output row, (O,), the norm taken from the formed matrix.

        The norm is a constant to the gradient (DoRA, arXiv 2402.09353 section 4.3).
        """
        with torch.no_grad():
            weight = frozen_weight(self.linear, self.lora_A.dtype)
            adapted = weight + self.scaling * self.lora_B[expert].T @ self.lora_A[expert]
            norm = torch.linalg.vector_norm(adapted, dim=1)
        if self.magnitude is None:
            raise ValueError("dora_scale needs experts with a DoRA magnitude")
        return self.magnitude[expert] / norm

    def dora_scales(self) -> Tensor:
        """`dora_scale` of all experts, (E, O), without forming any W + s B_e A_e."""
        if self.magnitude is None:
            raise ValueError("dora_scales needs experts with a DoRA magnitude")
        norms = self.norms.of(self.linear, self.lora_A, self.lora_B, self.scaling, self.training)
        return self.magnitude / norms

    def apply(self, expert: int, projected: Tensor, inputs: Tensor) -> Tensor:
        """One expert's output (N, O) from projected = W x + bias (N, O) and adapter inputs (N, I).

        Computed in the adapter's dtype and returned in projected's, as PEFT's layers do.
        """
        scale = None if self.magnitude is None else self.dora_scale(expert)
        return self.combine(projected, self.low_rank(expert, inputs), scale)

    def combine(self, projected: Tensor, low_rank: Tensor, scale: Tensor | None) -> Tensor:
        """``scale * (W x + low_rank) + bias`` in projected's dtype; scale None stands for 1."""
        if scale is None:
            return (projected + low_rank).to(projected.dtype)
        bias = getattr(self.linear, "bias", None)
        if bias is None:
            return (scale * (projected + low_rank)).to(projected.dtype)
        return (scale * (projected - bias + low_rank) + bias).to(projected.dtype)


def new_lora(
    num_experts: int, rank: int, sizes: tuple[int, int], identity: bool, device: torch.device
) -> tuple[nn.Parameter, nn.Parameter]:
    """Freshly initialised float32 (lora_A (E, r, I), lora_B (E, r, O)) for sizes (I, O).

    Each expert is initialised as PEFT's LoRA is: A Kaiming-uniform, B zero so that the adapter
    starts as the identity (identity=False draws B as well).
    """
    in_features, out_features = sizes
    lora_A = torch.empty(num_experts, rank, in_features, dtype=torch.float32, device=device)
    lora_B = torch.zeros(num_experts, rank, out_features, dtype=torch.float32, device=device)
    for expert in range(num_experts):
        nn.init.kaiming_uniform_(lora_A[expert], a=5**0.5)
        if not identity:
            nn.init.kaiming_uniform_(lora_B[expert].T, a=5**0.5)
    return nn.Parameter(lora_A), nn.Parameter(lora_B)


def new_magnitude(
    linear: nn.Module, lora_A: Tensor, lora_B: Tensor, scaling: float
) -> nn.Parameter:
    """The DoRA magnitude (E, O) that makes every expert's initial scale 1."""
    ones = torch.ones(lora_B.shape[::2], dtype=lora_B.dtype, device=lora_B.device)
    experts = ProjectionExperts(linear, lora_A.detach(), lora_B.detach(), ones, scaling)
    return nn.Parameter(experts.dora_scales().reciprocal())
