"""The routers (arXiv 2404.15159 eq. 7, and two variants of the released code).

`TopKRouter` is the paper's. `TopPRouter` and `SwitchRouter` are the routing strategies
``mixlora-dynamic`` and ``mixlora-switch`` of the authors' MoE-PEFT. As there, their routing weights
are the probabilities themselves and do not sum to 1, so a block with one of them scales its output
down, at initialisation too.

Shape legend: T tokens, D hidden size, E experts, K selected experts per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """Which experts each token is sent to.

    Attributes:
        router_logits: (T, E) router scores before softmax, float32 or wider.
        routing_weights: (T, K) mixing weights, in the dtype of router_logits.
        selected_experts: (T, K) int64 expert indices, distinct in a row.
        selection_mask: (T, K) bool, False where a token is not sent to the selected expert after
            all; its weight is 0 there. None if all are and each row of weights sums to 1.
    """

    router_logits: Tensor
    routing_weights: Tensor
    selected_experts: Tensor
    selection_mask: Tensor | None = None


class Router(nn.Module):
    """Scores the experts for each token: softmax over all E experts of ``W_r x`` (no bias).

    Args:
        hidden_size: D.
        num_experts: E.
        init_std: Standard deviation of the normal initialisation.
    """

    def __init__(self, hidden_size: int, num_experts: int, init_std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=torch.float32))
        nn.init.normal_(self.weight, std=init_std)

    def forward(self, hidden_states: Tensor, row_length: int = 1) -> Routing:
        """Route tokens.

        Args:
            hidden_states: (T, D) of any float dtype.
            row_length: Number of tokens in a row of the batch; a row's tokens are consecutive.
        """
        # Half precision would flip close decisions, so neither autocast nor a half-precision base
        # reaches the router.
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(device_type=hidden_states.device.type, enabled=False):
            logits = F.linear(hidden_states.to(dtype), self.weight.to(dtype))
            return Routing(logits, *self.choose(logits.softmax(dim=-1), row_length))

    def choose(
        self, probabilities: Tensor, row_length: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last three fields of a `Routing`, from the probabilities (T, E)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        num_experts, hidden_size = self.weight.shape
        return f"hidden_size={hidden_size}, num_experts={num_experts}"


class TopKRouter(Router):
    """Sends each token to its K most probable experts.

    Args:
        hidden_size: D.
        num_experts: E.
        top_k: K.
        init_std: Standard deviation of the normal initialisation.

    Source: arXiv 2404.15159 eq. 7: the K largest probabilities are kept and renormalised.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, init_std: float) -> None:
        super().__init__(hidden_size, num_experts, init_std)
        self.top_k = top_k

    def choose(
        self, probabilities: Tensor, row_length: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        weights, selected = probabilities.topk(self.top_k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True), selected, None


class TopPRouter(Router):
    """Sends each token to its most probable experts until their probabilities exceed top_p.

    K is E: all experts are selected in the order of their probability, and the mask says which of
    them a token is sent to.

    Args:
        hidden_size: D.
        num_experts: E.
        top_p: Probability above 0 and at most 1, which stands for all experts.
        init_std: Standard deviation of the normal initialisation.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_p: float, init_std: float) -> None:
        super().__init__(hidden_size, num_experts, init_std)
        self.top_p = top_p

    def choose(
        self, probabilities: Tensor, row_length: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ranked, selected, mask = select_up_to_p(probabilities, self.top_p)
        return ranked.masked_fill(~mask, 0.0), selected, mask


class SwitchRouter(Router):
    """Sends each token to its most probable expert, as long as that expert has room for its row.

    Each expert takes its first ``capacity`` tokens of every row, padding included. To the other
    tokens the FFN adds nothing (Switch Transformers, arXiv 2101.03961 section 2.2; the released
    code instead passes them on unchanged, and in evaluation all tokens).

    Args:
        hidden_size: D.
        num_experts: E.
        capacity: Number of tokens per row and expert, at least 1.
        init_std: Standard deviation of the normal initialisation.
    """

    def __init__(self, hidden_size: int, num_experts: int, capacity: int, init_std: float) -> None:
        super().__init__(hidden_size, num_experts, init_std)
        self.capacity = capacity

    def choose(
        self, probabilities: Tensor, row_length: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        weights, selected = probabilities.max(dim=-1, keepdim=True)
        rows = selected.view(-1, row_length)
        counts = F.one_hot(rows, probabilities.shape[1]).cumsum(dim=1)
        place_in_expert = counts.gather(2, rows.unsqueeze(2)).view_as(selected)
        mask = place_in_expert <= self.capacity
        return weights.masked_fill(~mask, 0.0), selected, mask


def select_up_to_p(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Experts by falling probability: (probabilities, experts, selection mask), each (T, E).

    An expert is selected as long as the probabilities of those before it sum to at most top_p, so
    the first one always is.
    """
    ranked, selected = probabilities.sort(dim=-1, descending=True)
    sum_before = F.pad(ranked.cumsum(dim=-1)[:, :-1], (1, 0))
    return ranked, selected, sum_before <= top_p
