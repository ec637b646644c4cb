"""The top-k router and the load-balancing loss (arXiv 2404.15159 eqs. 7-9).

Shape legend: T tokens, D hidden size, E experts, K experts per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        logits: (T, E) router scores before softmax, float32 or wider.
        weights: (T, K) mixing weights, each row sums to 1; same dtype as logits.
        selected: (T, K) int64 expert indices, distinct in a row.
    """

    logits: Tensor
    weights: Tensor
    selected: Tensor


class TopKRouter(nn.Module):
    """Sends each token to its K most probable experts.

    Args:
        hidden_size: D.
        num_experts: E.
        top_k: K.
        init_std: Standard deviation of the normal initialisation.

    Source: arXiv 2404.15159 eq. 7: softmax over all E experts of ``W_r x`` (no bias), the K largest
    kept and renormalised.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, init_std: float) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=torch.float32))
        nn.init.normal_(self.weight, std=init_std)

    def forward(self, hidden_states: Tensor) -> Routing:
        """Route hidden_states (T, D) of any float dtype; see `Routing` for what comes back."""
        # Half precision would flip close decisions, so neither autocast nor a half-precision base
        # reaches the router.
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(device_type=hidden_states.device.type, enabled=False):
            logits = F.linear(hidden_states.to(dtype), self.weight.to(dtype))
            probabilities = logits.softmax(dim=-1)
            weights, selected = probabilities.topk(self.top_k, dim=-1)
            return Routing(logits, weights / weights.sum(dim=-1, keepdim=True), selected)

    def extra_repr(self) -> str:
        num_experts, hidden_size = self.weight.shape
        return f"hidden_size={hidden_size}, num_experts={num_experts}, top_k={self.top_k}"


class RouterTap:
    """Where the blocks of a model leave their router logits, while it is open.

    One for all blocks of a model: opening and closing it costs nothing, however many they are.

    Attributes:
        is_open: Whether logits are kept.
        logits: By adapter, (T, E) of every layer in the order in which they ran.
        trainable: By adapter, whether the layers' routers were being trained.
    """

    def __init__(self) -> None:
        self.is_open = False
        self.logits: dict[str, list[Tensor]] = {}
        self.trainable: dict[str, list[bool]] = {}

    def open(self) -> None:
        """Keep logits from now on, with none kept yet."""
        self.is_open, self.logits, self.trainable = True, {}, {}

    def close(self) -> None:
        """Keep nothing, and let go of what was kept."""
        self.is_open, self.logits, self.trainable = False, {}, {}

    def keep(self, adapter_name: str, logits: Tensor, trainable: bool) -> None:
        """Add a layer's logits."""
        self.logits.setdefault(adapter_name, []).append(logits)
        self.trainable.setdefault(adapter_name, []).append(trainable)


def load_balancing_loss(logits: Tensor, top_k: int, token_mask: Tensor | None = None) -> Tensor:
    """``E * sum_i F_i P_i`` over all tokens given; uniform routing gives K.

    P_i is the mean router probability of expert i; F_i the number of times it is among a token's
    top_k, per token.

    Args:
        logits: (N, E) router logits; the layers of a model are concatenated, as the released code
            does.
        top_k: K. All K selections are counted, Mixtral's form and the released code's; eq. 9 of the
            paper counts only the first.
        token_mask: (N,) bool, False for padding; None counts every token.

    Returns:
        Scalar in the dtype of logits.

    Source: arXiv 2404.15159 eqs. 8-9.
    """
    num_experts = logits.shape[-1]
    probabilities = logits.softmax(dim=-1)
    selected = probabilities.topk(top_k, dim=-1).indices
    chosen = torch.zeros_like(probabilities).scatter(-1, selected, 1.0)
    if token_mask is None:
        share, probability = chosen.mean(dim=0), probabilities.mean(dim=0)
    else:
        mask = token_mask.to(logits.dtype).unsqueeze(-1)
        # A batch of padding alone has no balance to speak of: its loss is 0, not 0 / 0.
        count = mask.sum().clamp(min=1.0)
        share, probability = (
            (chosen * mask).sum(dim=0) / count,
            (probabilities * mask).sum(dim=0) / count,
        )
    return num_experts * (share * probability).sum()
